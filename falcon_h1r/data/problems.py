"""Synthetic maths problems with exact answers, and their split into training, RL and evaluation.

The quickstart learns from these: questions short enough for a model of 0.3M parameters, answers checked by
sympy, a difficulty known by construction, spaces large enough to fill every split with distinct problems.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from falcon_h1r.data.problems_algebra import GreatestCommonDivisor, LinearEquation, Modular
from falcon_h1r.data.problems_arithmetic import Addition, Expression, FractionArithmetic, Multiplication
from falcon_h1r.data.problems_family import Family
from falcon_h1r.data.problems_sympy import agrees_with_sympy
from falcon_h1r.data.problems_working import Working, format_value
from falcon_h1r.types import DIFFICULTIES, Difficulty, InputError, Problem

FAMILIES: dict[str, Family[Any]] = {
    family.name: family
    for family in (
        Addition(),
        Multiplication(),
        Expression(),
        LinearEquation(),
        FractionArithmetic(),
        Modular(),
        GreatestCommonDivisor(),
    )
}

DIFFICULTY_SHARES: dict[str, float] = {"easy": 0.25, "medium": 0.4, "hard": 0.35}
SPLIT_FRACTIONS: dict[str, float] = {"sft": 0.6, "rl": 0.3, "dev": 0.03, "eval": 0.07}

SMALL_SPACE = 4_000  # below it, a cell (family, difficulty) is drawn in proportion to its size, so as not to run dry
REPEATS_BEFORE_A_CELL_IS_DRY = 300


def generate_problems(
    seed: int,
    count: int,
    families: Sequence[str] | None = None,
    difficulty_shares: Mapping[str, float] | None = None,
) -> Iterator[Problem]:
    """Yield `count` problems with distinct uids; the same arguments give the same problems, in order.

    The first n problems of a longer stream are those of a shorter one.

    Raises:
        InputError: at once for an unknown family or difficulty, and for more problems than there are.
    """
    shares = DIFFICULTY_SHARES if difficulty_shares is None else difficulty_shares
    cells = _weigh_cells(families, shares)
    space = sum(family.spaces[difficulty] for family, difficulty in cells)
    if count > space:
        raise InputError(f"{count} distinct problems asked of families that have about {space}")
    return _draw_distinct(random.Random(seed), count, cells)


def _weigh_cells(
    families: Sequence[str] | None, shares: Mapping[str, float]
) -> dict[tuple[Family[Any], Difficulty], float]:
    """The weight with which each (family, difficulty) is drawn."""
    names = list(FAMILIES) if families is None else list(families)
    for name in names:
        family_named(name)
    for difficulty_name, share in shares.items():
        if difficulty_name not in DIFFICULTIES:
            raise InputError(f"unknown difficulty {difficulty_name!r} (there are: {', '.join(DIFFICULTIES)})")
        if share < 0:
            raise InputError(f"the share {share} of {difficulty_name} problems has to be at least 0")
    cells = {
        (FAMILIES[name], difficulty): share * min(1.0, FAMILIES[name].spaces[difficulty] / SMALL_SPACE)
        for name in dict.fromkeys(names)
        for difficulty in DIFFICULTIES
        if (share := shares.get(difficulty, 0.0)) > 0
    }
    if not cells:
        raise InputError("no family or no difficulty to draw problems from")
    return cells


def _draw_distinct(
    rng: random.Random, count: int, cells: dict[tuple[Family[Any], Difficulty], float]
) -> Iterator[Problem]:
    seen: set[str] = set()
    repeats = dict.fromkeys(cells, 0)
    while len(seen) < count:
        if not cells:
            raise InputError(f"the families ran dry after {len(seen)} distinct problems of {count}")
        (cell,) = rng.choices(list(cells), weights=list(cells.values()))
        family, difficulty = cell
        problem = _pose(family, family.sample(rng, difficulty), difficulty)
        if problem.uid in seen:
            repeats[cell] += 1
            if repeats[cell] >= REPEATS_BEFORE_A_CELL_IS_DRY:
                del cells[cell]
            continue
        repeats[cell] = 0
        seen.add(problem.uid)
        yield problem


def _pose(family: Family[Any], terms: Any, difficulty: Difficulty) -> Problem:
    answer = family.answer(terms)
    gold = format_value((answer.numerator, answer.denominator))
    return Problem.from_question(family.question(terms), gold, family=family.name, difficulty=difficulty)


def family_named(name: str) -> Family[Any]:
    """The family of that name, or an InputError that lists the names there are."""
    if name not in FAMILIES:
        raise InputError(f"unknown problem family {name!r} (there are: {', '.join(FAMILIES)})")
    return FAMILIES[name]


def solve(problem: Problem, working: Working) -> str:
    """Work a synthetic problem into `working`; returns the answer that the written steps lead to."""
    family = family_named(problem.family)
    return format_value(family.work(family.parse(problem.question), working))


def check_with_sympy(problem: Problem) -> bool:
    """Whether sympy, reading the question on its own, gets the same answer: 0.1 ms, an equation 2 ms."""
    return agrees_with_sympy(problem.question, problem.answer)


def split_of(problem: Problem, fractions: Mapping[str, float] = SPLIT_FRACTIONS) -> str:
    """The split a problem belongs to, by a hash of its uid alone, whatever else is generated."""
    if abs(sum(fractions.values()) - 1.0) > 1e-9 or min(fractions.values(), default=-1.0) < 0:
        raise InputError(f"split fractions have to be non-negative and sum to 1, not {dict(fractions)}")
    position = int.from_bytes(hashlib.sha256(f"split:{problem.uid}".encode()).digest()[:8], "big") / 2**64
    upper_bound = 0.0
    for name, fraction in fractions.items():
        upper_bound += fraction
        if position < upper_bound:
            return name
    return [name for name, fraction in fractions.items() if fraction > 0][-1]
