"""A family of programs: one problem with a parameter, right programs for it and subtly wrong ones."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from falcon_h1r.verifier.code import CallCase, CodeTests, StdinCase


@dataclass(frozen=True)
class Family:
    """`$K` in a program stands for the parameter, which takes each of `values`."""

    name: str
    values: tuple[int, ...]
    reference: Callable[..., Any]  # (K, input text) -> output text; with fn_name (K, *arguments) -> result
    inputs: Callable[[int, random.Random], list[Any]]  # texts; with fn_name lists of arguments
    correct: tuple[str, ...]
    wrong: tuple[str, ...]
    fn_name: str | None = None

    def tests(self, value: int) -> CodeTests:
        """The problem's tests for one parameter; the reference, which we trust, gives the expected outputs."""
        given = self.inputs(value, random.Random(f"{self.name}:{value}"))
        if self.fn_name is None:
            return CodeTests(tuple(StdinCase(text, str(self.reference(value, text)) + "\n") for text in given))
        calls = (CallCase(arguments, self.reference(value, *arguments)) for arguments in given)
        return CodeTests(tuple(calls), self.fn_name)

    def programs(self, right: bool) -> Iterator[tuple[str, str, CodeTests]]:
        """(name, source, tests) of every right program, or of every wrong one."""
        for value in self.values:
            tests = self.tests(value)
            for number, source in enumerate(self.correct if right else self.wrong, start=1):
                text = textwrap.dedent(source).strip().replace("$K", str(value)) + "\n"
                yield f"{self.name}[{value}] {'right' if right else 'wrong'} {number}", text, tests


def lines(*parts: Any) -> str:
    """A test's input: one line for each part, a list's items with spaces between."""
    return "\n".join(" ".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts) + "\n"
