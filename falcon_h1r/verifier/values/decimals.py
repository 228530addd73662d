"""How many digits a decimal claims, and when a value agrees with all of them."""

from __future__ import annotations

import math
from fractions import Fraction

from falcon_h1r.verifier.tree.node import Node

MIN_GOLD_DIGITS = 7  # a decimal gold of so many significant digits accepts the exact value
MIN_PREDICTION_DIGITS = 10  # a decimal prediction needs more: exact golds want exactness
_MAX_DOUBLE_DIGITS = 14  # golds printed from doubles are wrong in their last digits


def decimal_digits(node: Node) -> int:
    """Significant digits that a decimal literal claims, also times a power of ten; 0 for exact notation."""
    if node.op == "num":
        return node.digits
    if node.op == "mul" and len(node.args) == 2:
        first, second = node.args
        if first.op == "num" and first.value == -1 and not first.digits:
            return decimal_digits(second)
        if second.op == "pow" and second.args[0].op == "num" and second.args[0].value == 10:
            return decimal_digits(first)
    return 0


def within_digits(a: Fraction, prediction: Node, b: Fraction, gold: Node) -> bool:
    """Whether a value rounds to a long decimal: an exact value, or a decimal of more digits."""
    digits, gold_digits = decimal_digits(prediction), decimal_digits(gold)
    if gold_digits >= MIN_GOLD_DIGITS and (digits == 0 or digits > gold_digits):
        return abs(a - b) <= _last_place(b, min(gold_digits, _MAX_DOUBLE_DIGITS)) / 2
    if digits >= MIN_PREDICTION_DIGITS and gold_digits == 0:
        return abs(a - b) <= _last_place(a, digits) / 2
    return False


def _last_place(value: Fraction, digits: int) -> Fraction:
    """The unit of the last of so many significant digits; none at all beyond the range of doubles."""
    size = abs(value)
    if not Fraction(1, 10**300) < size < 10**300:
        return Fraction(0)
    power = math.floor(math.log10(float(size)))
    return Fraction(10) ** (power - digits + 1)
