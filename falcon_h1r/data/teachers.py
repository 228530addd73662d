"""Teachers of the synthetic problems: each writes a worked solution in its own manner.

`verbose` writes out every step, `terse` the least that will do or only the result, `careless` slips.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Protocol

from falcon_h1r.data.problems import solve
from falcon_h1r.data.problems_working import Step, Working, slip_digit
from falcon_h1r.types import InputError, Problem, Trace

LEAP = "clearly"  # how a trace begins that shows no working


class Teacher(Protocol):
    """Whoever can write a trace of a problem; all chance comes from `rng`."""

    @property
    def name(self) -> str: ...

    def write(self, problem: Problem, rng: random.Random) -> Trace: ...


@dataclass(frozen=True)
class VerboseTeacher:
    """Every step with its label, one a line; long sums and products in columns. Always right."""

    name: ClassVar[str] = "verbose"

    def write(self, problem: Problem, rng: random.Random) -> Trace:
        working = Working(detailed=True)
        answer = solve(problem, working)
        return _trace(problem, self.name, _with_labels(working.steps, answer), answer)


@dataclass(frozen=True)
class TerseTeacher:
    """The bare equations, `7+5=12,4+8+1=13`, or at once `clearly 137`. Always right.

    `leap_rates` are the shares of traces that leap, by the problem's difficulty: what looks easy to an expert he
    does not work out. The model that learns from him leaps as he does, and is not always right.
    """

    leap_rates: Mapping[str, float] = field(default_factory=lambda: {"easy": 0.6, "medium": 0.3, "hard": 0.1})
    name: ClassVar[str] = "terse"

    def __post_init__(self) -> None:
        for difficulty, rate in self.leap_rates.items():
            _check_rate(f"leap_rates.{difficulty}", rate)

    def write(self, problem: Problem, rng: random.Random) -> Trace:
        working = Working()
        answer = solve(problem, working)
        leaps = rng.random() < self.leap_rates.get(problem.difficulty or "", 0.0)
        reasoning = ",".join(step.equation for step in working.steps)
        return _trace(problem, self.name, f"{LEAP} {answer}" if leaps or not reasoning else reasoning, answer)


@dataclass(frozen=True)
class CarelessTeacher:
    """Writes like `verbose`; with probability `slip_rate` a digit is wrong, and so the answer."""

    slip_rate: float = 0.3
    name: ClassVar[str] = "careless"

    def __post_init__(self) -> None:
        _check_rate("slip_rate", self.slip_rate)

    def write(self, problem: Problem, rng: random.Random) -> Trace:
        working = Working(detailed=True)
        answer = solve(problem, working)
        if rng.random() < self.slip_rate:
            working, answer = _slip(problem, working.num_computed, answer, rng)
        return _trace(problem, self.name, _with_labels(working.steps, answer), answer)


def _slip(problem: Problem, num_steps: int, right_answer: str, rng: random.Random) -> tuple[Working, str]:
    """Err at one step such that the error reaches the answer; where none does, copy the answer wrongly."""
    for _ in range(3):
        for slip_at in rng.sample(range(num_steps), num_steps):
            working = Working(detailed=True, slip_at=slip_at, slip_rng=rng)
            answer = solve(problem, working)
            if _number(answer) != _number(right_answer):
                return working, answer
    working = Working(detailed=True)
    solve(problem, working)
    return working, str(slip_digit(int(right_answer), rng))  # only residues and divisors absorb every slip


TEACHERS: dict[str, Callable[..., Teacher]] = {
    "verbose": VerboseTeacher,
    "terse": TerseTeacher,
    "careless": CarelessTeacher,
}


def teacher_named(name: str, **settings: Any) -> Teacher:
    """The teacher of that name with its settings (`leap_rates` of terse, `slip_rate` of careless)."""
    if name not in TEACHERS:
        raise InputError(f"unknown teacher {name!r} (there are: {', '.join(TEACHERS)})")
    try:
        return TEACHERS[name](**settings)
    except TypeError:
        raise InputError(f"teacher {name!r} has no setting {', '.join(settings)}") from None


def write_traces(problems: Iterable[Problem], teacher: Teacher, seed: int) -> Iterator[Trace]:
    """A trace of each problem, depending on seed, teacher and problem, not on the problem's neighbours."""
    for problem in problems:
        yield teacher.write(problem, random.Random(f"{seed}/{teacher.name}/{problem.uid}"))


def _with_labels(steps: list[Step], answer: str) -> str:
    return "\n".join([*(f"{step.label}: {step.equation}" for step in steps), f"answer: {answer}"])


def _number(answer: str) -> Fraction:
    return Fraction(answer.replace(r"\frac{", "").replace("}{", "/").replace("}", ""))


def _trace(problem: Problem, teacher: str, reasoning: str, answer: str) -> Trace:
    return Trace(problem, teacher, reasoning, rf"\boxed{{{answer}}}")


def _check_rate(name: str, rate: float) -> None:
    if not 0.0 <= rate <= 1.0:
        raise InputError(f"{name}={rate} has to be a share between 0 and 1")
