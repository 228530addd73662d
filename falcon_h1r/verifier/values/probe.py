"""Whether two trees are one function, by their values at fixed points.

30 digits refute, 80 confirm: a true zero shrinks with the precision, a tiny difference does not. No tolerance
is absolute, so 1/2004! is not 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from falcon_h1r.verifier.tree.node import Node, NotNumeric, Undefined, contains, free_symbols
from falcon_h1r.verifier.values.numeric import HIGH_DIGITS, LOW_DIGITS, Meter, NumericEvaluator, context

# Ranges of the points: small and larger positive values, both signs; then integers for factorials and (-1)^n; then
# ranges mixed over the variables, for what has a value only where one of them is larger than another.
_RANGES = ((0.2, 1.4), (1.0, 4.0), (-3.0, 3.0), (-1.5, 1.5), (4.0, 12.0))
_NUM_INTEGER_POINTS = 3
_NUM_MIXED_POINTS = 6
_NUM_POSITIVE_POINTS = 20
_ENOUGH_POINTS = len(_RANGES) + _NUM_INTEGER_POINTS
_MAX_BREAKS = 6  # constants around which cases are looked at
_WHOLE_VALUES = (*range(1, 13), 15, 16, 20, 25, 27, 30, 32, 36, 64, 100)
_WHOLE_WORK = 2_000  # nodes of both trees at all whole points
_MANY_DIGITS = (HIGH_DIGITS, 160, 320, 640, 1_280, 2_560, 5_120)
_SLOW = ("gamma", "zeta", "factorial", "factorial2", "binom")  # between integers: minutes for thousands of digits
_MAX_SLOW_DIGITS = 320
_MAX_LONG_NODES = 100  # of both trees, for thousands of digits
_CONFIRMED_POINTS = 3  # by many digits, against near identities


def _fraction_of(name: str, index: int) -> float:
    digest = hashlib.sha256(f"{name}|{index}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _from_any_range(name: str, index: int) -> float:
    low, high = _RANGES[int(len(_RANGES) * _fraction_of(name, index))]
    return low + (high - low) * _fraction_of(name, index + 1000)


def points(names: frozenset[str], integers: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Fixed values of the variables: they depend on the names alone, so verdicts repeat; whole ones for `integers`."""
    if not names:
        return [{}]
    real = [{n: lo + (hi - lo) * _fraction_of(n, i) for n in names} for i, (lo, hi) in enumerate(_RANGES)]
    whole = [{n: 2 + math.floor(20 * _fraction_of(n, 100 + i)) for n in names} for i in range(_NUM_INTEGER_POINTS)]
    mixed = [{n: _from_any_range(n, 300 + index) for n in names} for index in range(_NUM_MIXED_POINTS)]
    found = real + whole + (mixed if len(names) > 1 else [])
    if integers:
        for index, point in enumerate(found):
            point.update({n: math.floor(30 * _fraction_of(n, 200 + index)) - 9 for n in names & integers})
    return found


def _is_root(node: Node) -> bool:
    return node.op == "pow" and node.args[1].op == "num" and node.args[1].value.denominator == 2


_BREAKING = ("abs", "max", "min", "sgn", "floor", "ceil")


def breaking_points(names: frozenset[str], *trees: Node) -> list[dict[str, Any]]:
    """Points beyond and between the constants of functions in pieces: |x - 30| changes its form at 30.

    No points where there is no such function.
    """
    nodes = [node for tree in trees for node in tree.walk()]
    if not any(node.op == "piecewise" or node.name in _BREAKING or _is_root(node) for node in nodes):
        return []
    constants = sorted({abs(node.value) for node in nodes if node.op == "num" and abs(node.value) < 10**6})
    reach = float(constants[-1]) if constants else 1.0
    values = [3 * reach + 1.7, -3 * reach - 2.3]
    if any(node.op == "piecewise" for node in nodes):
        values += [
            sign * float(c) + step for c in constants[:_MAX_BREAKS] for sign in (1, -1) for step in (-0.5, 0, 0.5)
        ]
    return [dict.fromkeys(names, value) for value in values]


def _steps(node: Node) -> bool:
    """Whether whole values of a variable matter: it is rounded, or the exponent of a negative number."""
    if node.op == "func" and node.name in ("floor", "ceil"):
        return bool(free_symbols(node))
    return node.op == "pow" and node.args[0].op == "num" and node.args[0].value < 0 and bool(free_symbols(node.args[1]))


def whole_points(names: frozenset[str], *trees: Node) -> list[dict[str, Any]]:
    """Whole values where only these tell two functions apart: n/3 rounded up and n/3 rounded down plus one differ at
    multiples of 3, (-1)^n and 1 at odd numbers. None where no variable is rounded or counts signs.
    """
    nodes = [node for tree in trees for node in tree.walk()]
    if not names or not any(map(_steps, nodes)):
        return []
    number = _WHOLE_WORK // len(nodes)
    if any(node.op == "big" for node in nodes):
        number = min(number, 8)
    equal = [dict.fromkeys(names, value) for value in _WHOLE_VALUES]
    if len(names) == 1:
        return equal[:number]
    mixed = [{n: 1 + math.floor(8 * _fraction_of(n, 700 + index)) for n in names} for index in range(16)]
    return [*equal[:6], *mixed][:number]


def positive_points(names: frozenset[str]) -> list[dict[str, Any]]:
    """Points at which every variable is positive, as lengths and most quantities of physics are: of sizes from 0.1 to
    30, in every order.
    """
    return [{n: 0.1 * 300 ** _fraction_of(n, 500 + index) for n in names} for index in range(_NUM_POSITIVE_POINTS)]


def same_value(a: Node, b: Node, point: Mapping[str, Any], real_only: bool, meter: Meter, confirm: bool) -> bool | None:
    """Whether both trees have one value at the point; None when the point tells nothing (no value, or not
    real). With `confirm`, many digits are asked even if the few agree to the last.
    """
    try:
        low = [NumericEvaluator(LOW_DIGITS, point, meter)(node) for node in (a, b)]
    except Undefined:
        return None
    mp = context(LOW_DIGITS)
    scale = max(abs(v) for v in low)
    if real_only and any(abs(mp.im(v)) > abs(v) * mp.mpf(10) ** -20 for v in low):
        return None
    gap = abs(low[0] - low[1])
    if gap > scale * mp.mpf(10) ** -10 and scale > mp.mpf(10) ** -15:
        return False
    if not confirm and gap <= scale * mp.mpf(10) ** -25:
        return True
    digits = _digits_for(scale, meter, a, b)
    high = [NumericEvaluator(digits, point, meter)(node) for node in (a, b)]
    fine_gap, fine_scale = abs(high[0] - high[1]), max(abs(v) for v in high)
    tiny = context(digits).mpf(10)
    # The second clause is for values that are zero themselves: sin(pi) is 1e-31, then 1e-81.
    vanishing = gap > 0 and fine_gap <= gap * tiny ** -(digits - LOW_DIGITS - 15)
    return bool(fine_gap <= fine_scale * tiny ** -(digits - 20) or vanishing)


def _digits_for(scale: Any, meter: Meter, *trees: Node) -> int:
    """Digits that show a difference of 1 between values of this size: 2^1000 + x is not 2^1000. As few as ever where
    so many would take too long.
    """
    size = scale and context(LOW_DIGITS).mag(scale) * 0.30103
    digits = next((digits for digits in _MANY_DIGITS if size <= digits - 40), HIGH_DIGITS)
    if digits <= _MAX_SLOW_DIGITS:
        return digits
    nodes = [node for tree in trees for node in tree.walk()]
    if len(nodes) > _MAX_LONG_NODES or any(map(_is_slow, nodes)):
        return HIGH_DIGITS
    meter.spend(len(nodes) * digits // HIGH_DIGITS)
    return digits


def _is_slow(node: Node) -> bool:
    if node.op == "func" and node.name in _SLOW:
        return any(arg.op != "num" or arg.digits > 0 for arg in node.args)
    return node.op == "big"


def _holds(assumption: Node, point: Mapping[str, Any], meter: Meter) -> bool:
    """Whether an inequality holds at a point; one that has no value there does not."""
    try:
        return NumericEvaluator(LOW_DIGITS, point, meter).holds(assumption)
    except (Undefined, NotNumeric):
        return False


def same_function(
    a: Node,
    b: Node,
    meter: Meter,
    integers: frozenset[str] = frozenset(),
    assumptions: tuple[Node, ...] = (),
) -> bool | None:
    """Whether two trees agree wherever both have real values, and somewhere they must have; None: no point
    tells.

    Complex values count when the imaginary unit is written, and where no point is real (roots of negatives).
    """
    names = free_symbols(a) | free_symbols(b)
    if any(n.op == "func" and n.name == "factorial2" for tree in (a, b) for n in tree.walk()):
        integers = names  # between integers it has no agreed value
    # names in the limits of a sum or a product count its terms
    sums = [node for tree in (a, b) for node in tree.walk() if node.op == "big" and node.name[:3] in ("sum", "pro")]
    counts = frozenset().union(*(free_symbols(limit) for node in sums for limit in node.args[1:]))
    integers = integers | counts
    writes_i = any(n.op == "sym" and n.name == "i" for tree in (a, b) for n in tree.walk())
    for real_only in (False,) if writes_i or not names else (True, False):
        answers: list[bool] = []
        pieces = [{n: round(v) if n in integers else v for n, v in p.items()} for p in breaking_points(names, a, b)]
        whole = whole_points(names, a, b)
        found = [(point, real_only) for point in [*pieces, *points(names, integers)]]
        for point, real in [*found, *((point, False) for point in whole)]:  # at 3, (-1)^{n/2} is not real and counts
            if any(point[name] < 1 for name in counts & names):
                continue
            if not all(_holds(assumption, point, meter) for assumption in assumptions):
                continue
            if len(answers) >= _ENOUGH_POINTS + len(pieces) and not whole:
                break
            answer = same_value(a, b, point, real, meter, confirm=len(answers) < _CONFIRMED_POINTS)
            if answer is False:
                return False
            if answer:
                answers.append(answer)
        if len(answers) >= (2 if names else 1):
            return True
    return None


def holds_big_operator(*nodes: Node) -> bool:
    """Whether a limit, an integral, a sum or a product is in a tree: where points tell nothing, sympy may."""
    return any(contains(node, "big") for node in nodes)
