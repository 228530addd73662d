"""Families that need a rule and not only a table: linear equations, residues, greatest common divisors."""

from __future__ import annotations

import random
from fractions import Fraction
from math import gcd
from typing import ClassVar, NamedTuple

from falcon_h1r.data.problems_family import Family, Spaces, match_question
from falcon_h1r.data.problems_working import Value, Working
from falcon_h1r.types import Difficulty, InputError


class Linear(NamedTuple):
    """a x + b = c x + d; c is 0 where x stands on one side only."""

    a: int
    b: int
    c: int
    d: int


class LinearEquation(Family[Linear]):
    r"""`Solve 3x+5=26 for x.`; medium: larger numbers, signs; hard: x on both sides, or a fraction."""

    name = "linear_equation"
    spaces: ClassVar[Spaces] = {"easy": 3_840, "medium": 40_100, "hard": 205_000}

    def sample(self, rng: random.Random, difficulty: Difficulty) -> Linear:
        sign = rng.choice((-1, 1))
        if difficulty == "easy":
            a, b, x = rng.randint(2, 9), sign * rng.randint(1, 20), rng.randint(1, 12)
            return Linear(a, b, 0, a * x + b)
        if difficulty == "medium":
            while True:
                a, b, x = (
                    rng.randint(2, 12),
                    sign * rng.randint(1, 50),
                    rng.choice((-1, 1, 1)) * rng.randint(1, 20),
                )
                if a > 9 or abs(b) > 20 or not 1 <= x <= 12:
                    return Linear(a, b, 0, a * x + b)
        if rng.random() < 0.7:
            c, b, x = (
                rng.randint(2, 9),
                sign * rng.randint(1, 40),
                rng.choice((-1, 1, 1)) * rng.randint(1, 15),
            )
            a = c + rng.randint(2, 9)
            return Linear(a, b, c, (a - c) * x + b)
        while True:
            a, b, d = rng.randint(3, 12), sign * rng.randint(1, 40), rng.randint(-40, 60)
            if d != b and (d - b) % a:
                return Linear(a, b, 0, d)

    def question(self, terms: Linear) -> str:
        a, b, c, d = terms
        right = f"{c}x{d:+d}" if c and d else f"{c}x" if c else f"{d}"
        return f"Solve {a}x{b:+d}={right} for x."

    def parse(self, question: str) -> Linear:
        pattern = r"Solve (\d+)x([+-]\d+)=(?:(\d+)x)?([+-]?\d+)? for x\."
        a, b, c, d = match_question(pattern, question)
        terms = Linear(int(a), int(b), int(c or 0), int(d or 0))
        if terms.a <= terms.c:
            raise InputError(f"the larger coefficient of x has to stand on the left: {question[:80]!r}")
        return terms

    def answer(self, terms: Linear) -> Fraction:
        return Fraction(terms.d - terms.b, terms.a - terms.c)

    def work(self, terms: Linear, working: Working) -> Value:
        coefficient = working.subtract(terms.a, terms.c) if terms.c else terms.a
        constant = working.subtract(terms.d, terms.b)
        return working.quotient(constant, coefficient)


class Residue(NamedTuple):
    """(a b + c) mod m."""

    a: int
    b: int
    c: int
    m: int


class Modular(Family[Residue]):
    r"""`Compute (17\times 4+9) \bmod 7.`; multiples of the modulus are taken away as in long division."""

    name = "modular"
    spaces: ClassVar[Spaces] = {"easy": 2_268, "medium": 30_400, "hard": 699_000}

    def sample(self, rng: random.Random, difficulty: Difficulty) -> Residue:
        if difficulty == "easy":
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            return Residue(max(a, b), min(a, b), rng.randint(1, 9), rng.randint(3, 9))
        if difficulty == "medium":
            return Residue(rng.randint(11, 29), rng.randint(2, 9), rng.randint(1, 20), rng.randint(3, 12))
        return Residue(rng.randint(21, 99), rng.randint(3, 9), rng.randint(10, 99), rng.randint(6, 19))

    def question(self, terms: Residue) -> str:
        return rf"Compute ({terms.a}\times {terms.b}+{terms.c}) \bmod {terms.m}."

    def parse(self, question: str) -> Residue:
        a, b, c, m = match_question(r"Compute \((\d+)\\times (\d+)\+(\d+)\) \\bmod ([1-9]\d*)\.", question)
        return Residue(int(a), int(b), int(c), int(m))

    def answer(self, terms: Residue) -> Fraction:
        return Fraction((terms.a * terms.b + terms.c) % terms.m)

    def work(self, terms: Residue, working: Working) -> Value:
        total = working.add(working.multiply(terms.a, terms.b), terms.c)
        return working.remainder(total, terms.m), 1


class Pair(NamedTuple):
    a: int
    b: int


class GreatestCommonDivisor(Family[Pair]):
    r"""`Compute \gcd(84,36).` by Euclid: `84-72=12,36-36=0`, down to 0 or 1; hard ones take more."""

    name = "gcd"
    spaces: ClassVar[Spaces] = {"easy": 655, "medium": 3_880, "hard": 27_000}

    def sample(self, rng: random.Random, difficulty: Difficulty) -> Pair:
        low, high, least_divisions, most_divisions = {
            "easy": (4, 80, 1, 2),
            "medium": (81, 200, 2, 3),
            "hard": (201, 500, 3, 4),
        }[difficulty]
        while True:
            a, b = sorted((rng.randint(2, high), rng.randint(2, high)), reverse=True)
            pair = Pair(a, b)
            mostly_shared = gcd(a, b) > 1 or rng.random() < 0.15
            if (
                low <= a <= 8 * b
                and a != b
                and mostly_shared
                and (least_divisions <= _num_divisions(pair) <= most_divisions)
            ):
                return pair

    def question(self, terms: Pair) -> str:
        return rf"Compute \gcd({terms.a},{terms.b})."

    def parse(self, question: str) -> Pair:
        a, b = match_question(r"Compute \\gcd\((\d+),([1-9]\d*)\)\.", question)
        return Pair(int(a), int(b))

    def answer(self, terms: Pair) -> Fraction:
        return Fraction(gcd(terms.a, terms.b))

    def work(self, terms: Pair, working: Working) -> Value:
        larger, smaller = terms
        while smaller > 1:
            remainder = working.remainder(larger, smaller)
            larger, smaller = max(smaller, remainder), min(smaller, remainder)
        return smaller or larger, 1


def _num_divisions(pair: Pair) -> int:
    """How many divisions with remainder Euclid's algorithm takes."""
    a, b = pair
    count = 0
    while b:
        a, b, count = b, a % b, count + 1
    return count
