"""What a family of synthetic problems is: terms, the question stating them, the exact answer, the working."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar, Generic, TypeVar

from falcon_h1r.data.problems_working import Value, Working
from falcon_h1r.types import Difficulty, InputError

Terms = TypeVar("Terms")
Spaces = Mapping[Difficulty, int]

LONGEST_QUESTION = 200  # characters; what is longer was not written here


class Family(ABC, Generic[Terms]):
    """One kind of problem. `parse` undoes `question`, so that a problem read from a file can be worked again.

    `answer` is exact; tests hold it, what `work` leads to, and sympy against each other.
    """

    name: ClassVar[str]
    spaces: ClassVar[Spaces]  # about how many distinct questions each difficulty has

    @abstractmethod
    def sample(self, rng: random.Random, difficulty: Difficulty) -> Terms:
        """Draw the terms of one problem whose difficulty is known by construction."""

    @abstractmethod
    def question(self, terms: Terms) -> str:
        """State the problem, briefly."""

    @abstractmethod
    def parse(self, question: str) -> Terms:
        """Read the terms back from the question; InputError if it is none of the family's."""

    @abstractmethod
    def answer(self, terms: Terms) -> Fraction:
        """The gold, computed exactly."""

    @abstractmethod
    def work(self, terms: Terms, working: Working) -> Value:
        """Solve step by step, writing into `working`; the value is what the written steps lead to."""


def match_question(pattern: str, question: str) -> tuple[str, ...]:
    """The groups of a pattern that must describe the whole question."""
    match = re.fullmatch(pattern, question) if len(question) <= LONGEST_QUESTION else None
    if match is None:
        raise InputError(f"not a question of this synthetic family: {question[:80]!r}")
    return match.groups()
