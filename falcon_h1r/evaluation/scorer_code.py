"""Programs: right where all tests of the problem pass in the sandbox. Nobody votes, as no two programs are equal.

Tests are those that `falcon_h1r.verifier.code` reads (standard input and output, or calls), or HumanEval's: the
beginning of a function, a `check(candidate)` written in Python, and the function's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from falcon_h1r.config import CodeVerifierConfig
from falcon_h1r.evaluation.tasks import Judged
from falcon_h1r.types import Problem, Verdict, content_hash
from falcon_h1r.verifier.code import CodeTests, CodeVerifier, StdinCase, extract_program

HUMANEVAL_FIELDS = ("prompt", "test", "entry_point")
# A program's own output must not be taken for that of the check, which comes last, after whatever it does at its end.
_HARNESS = """
import io, sys
written, sys.stdout = sys.stdout, io.StringIO()
names = {{"__name__": "solution"}}
exec(compile({source!r}, "solution", "exec"), names)
exec(compile({check!r}, "check", "exec"), names)
names["check"](names[{entry_point!r}])
written.write({passed!r})
"""


class CodeScorer:
    """Runs the last fenced program of what follows `</think>`; `verifier.code.max_tests` does not hold here.

    Raises:
        InputError: where this machine cannot confine a program and no other sandbox is named.
    """

    def __init__(self, config: CodeVerifierConfig) -> None:
        self._verifier = CodeVerifier.from_config(replace(config, max_tests=None), seed=0)

    def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        programs = [extract_program(response, after_think=True) for response in responses]
        futures = [self._submit(program, problem) for program, problem in zip(programs, problems, strict=True)]
        return [Judged(future.result(), program, None) for program, future in zip(programs, futures, strict=True)]

    def close(self) -> None:
        self._verifier.close()

    def _submit(self, program: str | None, problem: Problem) -> Future[Verdict]:
        tests: Any = problem.tests
        if program is not None and (row := humaneval_row(problem.tests)) is not None:
            program, tests = humaneval_program(program, row)
        return self._verifier.submit(_fenced(program), tests)


def humaneval_row(tests: str | None) -> dict[str, str] | None:
    """A problem's tests as HumanEval has them; None where they are others."""
    try:
        row = json.loads(tests or "")
    except (ValueError, RecursionError):
        return None
    if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in HUMANEVAL_FIELDS):
        return {name: row[name] for name in HUMANEVAL_FIELDS}
    return None


def humaneval_program(program: str, row: dict[str, str]) -> tuple[str, CodeTests]:
    """A program that runs the check against a response's program, and tests that see whether it came to its end.

    The prompt's own beginning stands before the program: it holds imports, and functions that some problems call.
    """
    passed = f"passed {content_hash(row['test'])}"
    source = _HARNESS.format(
        source=f"{row['prompt'].rstrip()}\n    pass\n\n{program}\n",
        check=row["test"],
        entry_point=row["entry_point"],
        passed=passed,
    )
    return source, CodeTests((StdinCase("", passed),))


def _fenced(program: str | None) -> str:
    """A program in a fence that it cannot close; without one, an empty response."""
    fence = "`" * 3
    while program is not None and fence in program:
        fence += "`"
    return "" if program is None else f"{fence}python\n{program}\n{fence}"
