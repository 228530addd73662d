"""The written arithmetic of the synthetic teachers: equations a tiny model can learn digit by digit.

A family solves its problem through a `Working`, which computes *and* writes each step. What a step says is
what the next one uses: a slip of a digit is carried through to the answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import gcd

PLACES = {0: "ones", 1: "tens", 2: "hundreds", 3: "thousands"}

Value = tuple[int, int]  # numerator, denominator > 0, as the working left them: a slip may leave them unreduced


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the working: `equation` is `expression=result`; `label` says what is being done."""

    label: str
    equation: str


@dataclass
class Working:
    """Writes steps down; `detailed` also the columns of long sums and products; errs at `slip_at`."""

    detailed: bool = False
    slip_at: int | None = None  # index among the computed steps
    slip_rng: random.Random | None = None
    steps: list[Step] = field(default_factory=list)
    num_computed: int = 0

    def write(self, label: str, expression: str, result: int) -> int:
        """Write `expression=result`, one digit wrong where the slip is due; return what was written."""
        if self.num_computed == self.slip_at:
            assert self.slip_rng is not None
            result = slip_digit(result, self.slip_rng)
        self.num_computed += 1
        self.steps.append(Step(label, f"{expression}={result}"))
        return result

    def total(self, label: str, expression: str, result: int) -> int:
        """Write a result that earlier columns have fixed: nothing is computed, so nothing can slip."""
        self.steps.append(Step(label, f"{expression}={result}"))
        return result

    def add(self, a: int, b: int) -> int:
        """a+b in one step; in columns first where detailed."""
        if b < 0:
            return self.subtract(a, -b)
        if self.detailed and min(a, b) >= 10:
            return self.total("sum", f"{a}+{b}", self.add_columns(max(a, b), min(a, b)))
        return self.write("add", f"{a}+{b}", a + b)

    def subtract(self, a: int, b: int) -> int:
        """a-b in one step; in columns first where detailed."""
        if b < 0:
            return self.add(a, -b)
        if self.detailed and a >= b >= 10:
            return self.total("difference", f"{a}-{b}", self.subtract_columns(a, b))
        return self.write("subtract", f"{a}-{b}", a - b)

    def multiply(self, a: int, b: int) -> int:
        """a*b in one step; in columns first where detailed and one factor is a digit."""
        large, small = max(a, b), min(a, b)
        if self.detailed and large >= 10 and 2 <= small <= 9:
            return self.total("product", f"{a}*{b}", self.multiply_columns(large, small))
        return self.write("multiply", f"{a}*{signed(b)}", a * b)

    def add_columns(self, a: int, b: int) -> int:
        """a+b, a >= b >= 0, from the ones on: 85+47 is `5+7=12,8+4+1=13`; a leading 1 is carried."""
        total, carry = 0, 0
        for place in range(len(str(a))):
            digits = [digit(a, place), digit(b, place)] + ([carry] if carry else [])
            column = self.write(PLACES.get(place, f"10^{place}"), "+".join(map(str, digits)), sum(digits))
            last = place == len(str(a)) - 1
            total += (column if last else column % 10) * 10**place
            carry = column // 10
        return total

    def subtract_columns(self, a: int, b: int) -> int:
        """a-b, a >= b >= 0, from the ones on: 83-47 is `13-7=6,8-4-1=3`. A leading 1 was borrowed."""
        total, borrow = 0, 0
        for place in range(len(str(a))):
            above, below = digit(a, place), digit(b, place)
            borrowed_before = borrow
            borrow = int(above < below + borrowed_before)
            expression = f"{above + 10 * borrow}-{below}" + ("-1" if borrowed_before else "")
            column = self.write(
                PLACES.get(place, f"10^{place}"), expression, above + 10 * borrow - below - borrowed_before
            )
            total += column * 10**place
        return total

    def multiply_columns(self, a: int, factor: int) -> int:
        """a*factor, factor one digit, from the ones on: 46*7 is `6*7=42,4*7+4=32`."""
        total, carry = 0, 0
        for place in range(len(str(a))):
            expression = f"{digit(a, place)}*{factor}" + (f"+{carry}" if carry else "")
            column = self.write(PLACES.get(place, f"10^{place}"), expression, digit(a, place) * factor + carry)
            last = place == len(str(a)) - 1
            total += (column if last else column % 10) * 10**place
            carry = column // 10
        return total

    def remainder(self, a: int, modulus: int) -> int:
        """a mod modulus by long division: 200 mod 7 is `200-140=60,60-56=4`, each quotient a single digit."""
        power = 1
        while a >= 10 * power * modulus:
            power *= 10
        while a >= modulus:
            while a < power * modulus:
                power //= 10
            a = self.write("take away", f"{a}-{a // (power * modulus) * power * modulus}", a % (power * modulus))
        return a

    def quotient(self, numerator: int, denominator: int) -> Value:
        """numerator/denominator as an integer where it is one, otherwise in lowest terms."""
        if denominator == 1:
            return numerator, 1
        if numerator % denominator == 0:
            return self.write("divide", f"{numerator}/{denominator}", numerator // denominator), 1
        common = gcd(numerator, denominator)
        if common == 1:
            return numerator, denominator
        return (
            self.write("reduce", f"{numerator}/{common}", numerator // common),
            self.write("reduce", f"{denominator}/{common}", denominator // common),
        )


def digit(number: int, place: int) -> int:
    """The digit of a non-negative number at 10**place."""
    return number // 10**place % 10


def signed(number: int) -> str:
    """A number as a right operand: negative ones in parentheses."""
    return f"({number})" if number < 0 else str(number)


def slip_digit(number: int, rng: random.Random) -> int:
    """The number with one digit replaced by another; as many digits, the same sign, never zero."""
    digits = list(str(abs(number)))
    place = rng.randrange(len(digits))
    choices = [d for d in "0123456789" if d != digits[place] and (place > 0 or d != "0")]
    digits[place] = rng.choice(choices)
    return (-1 if number < 0 else 1) * int("".join(digits))


def format_value(value: Value) -> str:
    """A value as the gold is written: `7`, `-7`, `\\frac{3}{4}`, `-\\frac{3}{4}`."""
    numerator, denominator = value
    if denominator == 1:
        return str(numerator)
    return ("-" if numerator < 0 else "") + rf"\frac{{{abs(numerator)}}}{{{denominator}}}"
