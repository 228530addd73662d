"""From a program and its tests to a verdict: one input after the other, until one fails.

Runs in the trusted process: here alone are what the program wrote and what it should have written side by side.
"""

from __future__ import annotations

import json
import random
import signal
from typing import Protocol

from falcon_h1r.types import VerdictStatus
from falcon_h1r.verifier.code.compare import difference_of_results, difference_of_texts
from falcon_h1r.verifier.code.formats import CallCase, CodeTests, StdinCase
from falcon_h1r.verifier.code.local import CaseRun

Outcome = tuple[VerdictStatus, str, str]  # status, stage, reason

_COMPILE_ERRORS = ("SyntaxError", "IndentationError", "TabError")
_STOPPED = {  # by the sandbox -> the outcome without the test's number
    "deadline": ("undecided", "deadline", "no end before the deadline, and CPU time left"),
    "time": ("wrong", "time", "stopped by the sandbox's time limit"),
    "output": ("wrong", "output", "wrote more than the limit"),
    "threads": ("wrong", "forbidden", "started too many threads"),
    "files": ("wrong", "forbidden", "filled its folder"),
}


class Runner(Protocol):
    """Runs one program on inputs: falcon_h1r.verifier.code.local in this machine's sandbox, .remote in another."""

    def begin(self, source: str, fn_name: str | None) -> None: ...

    def run(self, text: str) -> CaseRun: ...

    def end(self) -> None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...

    def process_ids(self) -> list[int]: ...


def chosen_cases(tests: CodeTests, max_tests: int | None, seed: int) -> list[int]:
    """Indices of the tests that are run: all, or `max_tests` drawn from (seed, the tests' content).

    The same for every response to a problem, in every process.
    """
    everything = range(len(tests.cases))
    if max_tests is None or len(everything) <= max_tests:
        return list(everything)
    return sorted(random.Random(f"{seed}:{tests.content_hash}").sample(everything, max_tests))


def judge(source: str, tests: CodeTests, indices: list[int], runner: Runner, cpu_seconds: float) -> Outcome:
    """Correct where all these tests pass; else what became of the first that does not.

    Raises:
        RunnerLost: where there is no sandbox to run in.
    """
    runner.begin(source, tests.fn_name)
    for index in indices:
        case = tests.cases[index]
        run = runner.run(case.input if isinstance(case, StdinCase) else json.dumps(case.arguments))
        if failure := _failure(run, case, tests, cpu_seconds):
            runner.end()
            status, stage, reason = failure
            return status, stage, f"test {index + 1} of {len(tests.cases)}: {reason}"
    runner.end()
    return "correct", "test", f"{len(indices)} of {len(tests.cases)} tests, all passed"


def _failure(run: CaseRun, case: StdinCase | CallCase, tests: CodeTests, cpu_seconds: float) -> Outcome | None:
    """What is wrong with one run; None where nothing is."""
    if run.cpu_seconds is not None and run.cpu_seconds > cpu_seconds:
        return "wrong", "time", f"more than {cpu_seconds:g} s of CPU time"
    if run.stopped:
        return _STOPPED[run.stopped]  # type: ignore[return-value]
    if run.exit < 0:
        return _killed(-run.exit)
    if run.exit > 0:
        return "wrong", _stage_of(run.error), run.error or f"exit status {run.exit}"
    if isinstance(case, CallCase):
        difference = difference_of_results(run.output, case)
    else:
        text = run.output.decode(errors="replace")
        difference = difference_of_texts(text, case.output, tests.float_tolerance)
    return ("wrong", "test", difference) if difference else None


def _killed(number: int) -> Outcome:
    if number == signal.SIGKILL:  # not by the supervisor, and with CPU time left
        return "undecided", "memory", "killed by the kernel, for want of memory most likely"
    if number == signal.SIGSYS:
        return "wrong", "forbidden", "a system call of another architecture"
    return "wrong", "runtime", f"ended by signal {number}"


def _stage_of(error: str) -> str:
    name = error.split(":")[0].split(".")[-1]
    if name in _COMPILE_ERRORS:
        return "compile"
    if name == "MemoryError":
        return "memory"
    return "forbidden" if name == "PermissionError" else "runtime"
