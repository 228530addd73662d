"""Families of plain arithmetic: addition, multiplication, expressions, fractions.

Operands of a commutative operation are written larger first, so that no mirrored twin of a training problem
can reach the evaluation split.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from math import gcd, lcm
from typing import ClassVar, NamedTuple

from falcon_h1r.data.problems_family import Family, Spaces, match_question
from falcon_h1r.data.problems_working import Value, Working
from falcon_h1r.types import Difficulty, InputError


class Sum(NamedTuple):
    a: int
    operator: str  # "+" or "-"
    b: int


class Addition(Family[Sum]):
    """`Compute 85+47.` and `Compute 85-47.` of two, three or four digits; worked in columns."""

    name = "addition"
    spaces: ClassVar[Spaces] = {"easy": 8_190, "medium": 927_000, "hard": 86_600_000}

    def sample(self, rng: random.Random, difficulty: Difficulty) -> Sum:
        low, high, smallest = {"easy": (10, 99, 10), "medium": (100, 999, 10), "hard": (1000, 9999, 100)}[difficulty]
        a, b = rng.randint(low, high), rng.randint(smallest, high)
        return Sum(max(a, b), rng.choice("+-"), min(a, b))

    def question(self, terms: Sum) -> str:
        return f"Compute {terms.a}{terms.operator}{terms.b}."

    def parse(self, question: str) -> Sum:
        a, operator, b = match_question(r"Compute (\d+)([+-])(\d+)\.", question)
        if int(a) < int(b):
            raise InputError(f"the larger number has to stand first: {question!r}")
        return Sum(int(a), operator, int(b))

    def answer(self, terms: Sum) -> Fraction:
        return Fraction(terms.a + terms.b if terms.operator == "+" else terms.a - terms.b)

    def work(self, terms: Sum, working: Working) -> Value:
        columns = working.add_columns if terms.operator == "+" else working.subtract_columns
        return columns(terms.a, terms.b), 1


class Product(NamedTuple):
    a: int
    b: int


class Multiplication(Family[Product]):
    r"""`Compute 46\times 7.`: two digits by one, three by one, two by two; worked in columns, row by row."""

    name = "multiplication"
    spaces: ClassVar[Spaces] = {"easy": 704, "medium": 7_192, "hard": 3_916}

    def sample(self, rng: random.Random, difficulty: Difficulty) -> Product:
        if difficulty == "easy":
            return Product(rng.randint(12, 99), rng.randint(2, 9))
        if difficulty == "medium":
            return Product(rng.randint(101, 999), rng.randint(2, 9))
        a, b = rng.randint(12, 99), rng.randint(12, 99)
        return Product(max(a, b), min(a, b))

    def question(self, terms: Product) -> str:
        return rf"Compute {terms.a}\times {terms.b}."

    def parse(self, question: str) -> Product:
        a, b = match_question(r"Compute (\d+)\\times (\d+)\.", question)
        return Product(int(a), int(b))

    def answer(self, terms: Product) -> Fraction:
        return Fraction(terms.a * terms.b)

    def work(self, terms: Product, working: Working) -> Value:
        tens, ones = divmod(terms.b, 10)
        if tens == 0:
            return working.multiply_columns(terms.a, ones), 1
        if ones == 0:
            return 10 * working.multiply_columns(terms.a, tens), 1
        row_of_ones = working.multiply_columns(terms.a, ones)
        row_of_tens = 10 * working.multiply_columns(terms.a, tens)
        return working.add(row_of_tens, row_of_ones), 1


TWO_STEPS = ("(a+b)*c", "(a-b)*c", "a*b+c", "a*b-c")
THREE_STEPS = (
    "(a+b)*c+d", "(a+b)*c-d", "(a-b)*c+d", "(a-b)*c-d", "a*b+c*d", "a*b-c*d",
    "(a+b)*(c+d)", "(a+b)*(c-d)", "a*b-(c+d)", "a*b+(c-d)",
)  # fmt: skip


class Expression(Family[str]):
    r"""`Compute (7+5)\times 4-9.`: two steps if easy, else three; its terms are the expression."""

    name = "expression"
    spaces: ClassVar[Spaces] = {"easy": 1_075, "medium": 12_600, "hard": 500_000}

    def sample(self, rng: random.Random, difficulty: Difficulty) -> str:
        while True:
            shape = rng.choice(TWO_STEPS if difficulty == "easy" else THREE_STEPS)
            numbers = {letter: rng.randint(2, 9) for letter in "abcd"}
            if difficulty == "hard":
                numbers["a"] = rng.randint(11, 40)
                if shape.endswith(("+d", "-d")):
                    numbers["d"] = rng.randint(11, 99)
            if _canonical_value(_parse_expression(shape), numbers) is not None:
                return "".join(str(numbers.get(symbol, symbol)) for symbol in shape)

    def question(self, terms: str) -> str:
        return "Compute " + re.sub(r"\*(\d)", r"\\times \1", terms).replace("*(", r"\times(") + "."

    def parse(self, question: str) -> str:
        (text,) = match_question(r"Compute ((?:[0-9()+-]|\\times ?)+)\.", question)
        return re.sub(r"\\times ?", "*", text)

    def answer(self, terms: str) -> Fraction:
        return Fraction(_evaluate(_parse_expression(terms), Working()))

    def work(self, terms: str, working: Working) -> Value:
        return _evaluate(_parse_expression(terms), working), 1


@lru_cache(maxsize=64)
def _parse_expression(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise InputError(f"not an expression: {expression[:80]!r}") from None


def _evaluate(node: ast.expr, working: Working) -> int:
    """Work an expression from the inside out, left to right; nothing is executed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, working), _evaluate(node.right, working)
        if isinstance(node.op, ast.Add):
            return working.add(left, right)
        if isinstance(node.op, ast.Sub):
            return working.subtract(left, right)
        if isinstance(node.op, ast.Mult):
            return working.multiply(left, right)
    raise InputError(f"an expression of the synthetic family has +, - and * only, not {ast.dump(node)[:60]}")


def _canonical_value(node: ast.expr, numbers: Mapping[str, int]) -> int | None:
    """A shape's value for the numbers of its letters.

    None unless every value is positive, the larger of two like operands that commute stands first, and no
    product has two factors of two digits.
    """
    if not isinstance(node, ast.BinOp):
        return numbers[node.id] if isinstance(node, ast.Name) else None
    left, right = _canonical_value(node.left, numbers), _canonical_value(node.right, numbers)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Sub):
        return left - right if left > right else None
    if left < right and isinstance(node.left, ast.BinOp) == isinstance(node.right, ast.BinOp):
        return None
    if isinstance(node.op, ast.Add):
        return left + right
    return left * right if min(left, right) < 10 else None


class FractionTerms(NamedTuple):
    p: int
    q: int
    operator: str  # "+", "-" or "*"
    r: int
    s: int


class FractionArithmetic(Family[FractionTerms]):
    r"""`Compute \frac{3}{4}+\frac{1}{6}.`: over the least common denominator, then reduced.

    Easy: one denominator divides the other; medium: neither does; hard: the first fraction is improper.
    """

    name = "fraction"
    spaces: ClassVar[Spaces] = {"easy": 930, "medium": 1_640, "hard": 18_930}

    def sample(self, rng: random.Random, difficulty: Difficulty) -> FractionTerms:
        return rng.choice(_list_fraction_terms(difficulty))

    def question(self, terms: FractionTerms) -> str:
        operator = r"\times" if terms.operator == "*" else terms.operator
        return rf"Compute \frac{{{terms.p}}}{{{terms.q}}}{operator}\frac{{{terms.r}}}{{{terms.s}}}."

    def parse(self, question: str) -> FractionTerms:
        fraction = r"\\frac\{(\d+)\}\{(\d+)\}"
        p, q, operator, r, s = match_question(rf"Compute {fraction}([+-]|\\times){fraction}\.", question)
        if int(q) == 0 or int(s) == 0:
            raise InputError(f"a denominator is zero: {question[:80]!r}")
        return FractionTerms(int(p), int(q), "*" if operator == r"\times" else operator, int(r), int(s))

    def answer(self, terms: FractionTerms) -> Fraction:
        left, right = Fraction(terms.p, terms.q), Fraction(terms.r, terms.s)
        return {"+": left + right, "-": left - right, "*": left * right}[terms.operator]

    def work(self, terms: FractionTerms, working: Working) -> Value:
        p, q, operator, r, s = terms
        if operator == "*":
            return working.quotient(working.multiply(p, r), working.multiply(q, s))
        common = lcm(q, s)
        denominator = q
        if common != q:
            denominator = working.multiply(q, common // q)
            p = working.multiply(p, common // q)
        if common != s:
            written = working.multiply(s, common // s)
            denominator = written if common == q else denominator
            r = working.multiply(r, common // s)
        numerator = working.add(p, r) if operator == "+" else working.subtract(p, r)
        return working.quotient(numerator, denominator)


@cache
def _list_fraction_terms(difficulty: Difficulty) -> list[FractionTerms]:
    """All there are of a difficulty, the larger operand first: few enough to list."""
    largest_numerator, largest_denominator = {"easy": (15, 16), "medium": (11, 12), "hard": (19, 12)}[difficulty]
    operands = [
        (p, q) for q in range(2, largest_denominator + 1) for p in range(1, largest_numerator + 1) if gcd(p, q) == 1
    ]
    found = []
    for (p, q), (r, s) in product(operands, operands):
        common, one_divides_the_other = lcm(q, s), lcm(q, s) in (q, s)
        if p * s <= r * q or (p > q) != (difficulty == "hard"):
            continue
        if difficulty != "hard" and one_divides_the_other != (difficulty == "easy"):
            continue
        operators = "+-" if difficulty == "easy" else "*" if common > 60 else "+-*"
        found += [FractionTerms(p, q, operator, r, s) for operator in operators]
    return found
