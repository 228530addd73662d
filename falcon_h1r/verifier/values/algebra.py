"""What needs many-digit arithmetic or sympy. Imports mpmath, and sympy only when a limit asks."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath

from falcon_h1r.verifier.tree.node import BudgetExceeded, Node, NotNumeric, Undefined, contains, free_symbols, number
from falcon_h1r.verifier.values.decimals import within_digits
from falcon_h1r.verifier.values.numeric import LOW_DIGITS, Meter, NumericEvaluator, context
from falcon_h1r.verifier.values.probe import holds_big_operator, points, positive_points, same_function, same_value
from falcon_h1r.verifier.values.realset import SetBuilder, infinite_end

_MIN_POINTS = 3
_MAX_DECIMAL_BITS = 2_000
_SIGNED = ("abs", "floor", "ceil")
_COORDINATES = frozenset("xyz")
_INTEGERS = range(-12, 13)
_MIN_VALUES = 4  # in the window: fewer prove nothing


def same_expression(
    a: Node,
    b: Node,
    meter: Meter,
    integers: frozenset[str] = frozenset(),
    assumptions: tuple[Node, ...] = (),
) -> bool:
    """Whether two expressions are equal: by values at points, by sympy where there are none.

    Args:
        integers: variables that take whole values only.
        assumptions: inequalities that hold at the points.
    """
    if unbounded(a) and unbounded(b):  # in one order of terms, perhaps with shifted indices
        cuts = ((truncated(a, n), truncated(b, n)) for n in (3, 5, 8))
        try:
            if all(same_function(x, y, meter, integers, assumptions) for x, y in cuts):
                return True
        except NotNumeric:
            pass
    try:
        answer = same_function(a, b, meter, integers, assumptions)
        if answer is None and unbounded(a, b):
            raise NotNumeric("no point at which a series converges")
    except NotNumeric:
        if not holds_big_operator(a, b):
            return False
        if unbounded(a, b) and free_symbols(a) | free_symbols(b):
            raise BudgetExceeded("an unbounded sum in variables") from None
        from falcon_h1r.verifier.values.symbolic import same_by_sympy

        return same_by_sympy(a, b)
    return bool(answer)


def unbounded(*nodes: Node) -> bool:
    """Whether an unbounded sum is in a tree."""
    return any(n.op == "big" and n.name.startswith("sum") and n.args[2].name == "oo" for t in nodes for n in t.walk())


def truncated(node: Node, terms: int) -> Node:
    """The tree with every unbounded sum cut after so many terms."""
    if node.op == "big" and node.name.startswith("sum") and node.args[2].name == "oo":
        body, lower = (truncated(a, terms) for a in node.args[:2])
        return Node("big", (body, lower, Node("add", (lower, number(terms - 1)))), node.name)
    return Node(node.op, tuple(truncated(a, terms) for a in node.args), node.name, node.value, node.digits)


def same_where_positive(a: Node, b: Node, meter: Meter) -> bool:
    """Whether two formulas in several variables agree wherever all of these are positive.

    R\\sqrt{2gh/(R^2+k)} and \\sqrt{2gh/(1+k/R^2)}: quantities of geometry and physics. With one variable, or where a
    sign is spoken of by bars, signs matter, and where something is rounded, whole values do.
    """
    names = free_symbols(a) | free_symbols(b)
    if (
        len(names) < 2
        or contains(Node("list", (a, b)), "big")
        or any(n.name in _SIGNED for t in (a, b) for n in t.walk())
    ):
        return False
    try:
        answers = [same_value(a, b, p, True, meter, confirm=k < 2) for k, p in enumerate(positive_points(names))]
    except NotNumeric:
        return False
    return False not in answers and answers.count(True) >= _MIN_POINTS


def same_families(a: list[Node], b: list[Node], meter: Meter) -> bool:
    r"""Whether two lists of expressions in one integer take the same values over all integers.

    \pi/4 + k\pi, k \in \mathbb{Z}, is 5\pi/4 - n\pi; \pm\pi/3 + 2k\pi is no single progression. Compared is a
    window that all values of both lists reach into: the integers from -12 to 12 have to cover it.
    """
    mp = context(LOW_DIGITS)
    found = []
    offsets: list[Any] = []
    window = mp.inf
    for items in (a, b):
        values: list[Any] = []
        for item in items:
            names = free_symbols(item)
            try:
                row = [NumericEvaluator(LOW_DIGITS, {n: k for n in names}, meter)(item) for k in _INTEGERS]
            except (Undefined, NotNumeric):
                return False
            if any(mp.im(v) != 0 for v in row):
                return False
            offsets.append(abs(row[len(_INTEGERS) // 2]))
            if names:
                window = min(window, max(row), -min(row))
            values += row
        found.append(values)
    if window <= 0 or window == mp.inf or max(offsets) >= window * mp.mpf("0.9"):
        return False
    seen = [sorted(v for v in values if abs(v) < window * mp.mpf("0.9")) for values in found]
    merged = [[v for i, v in enumerate(row) if i == 0 or v - row[i - 1] > window * mp.mpf(10) ** -15] for row in seen]
    if len(merged[0]) != len(merged[1]) or len(merged[0]) < _MIN_VALUES:
        return False
    return all(abs(u - v) <= window * mp.mpf(10) ** -15 for u, v in zip(*merged, strict=True))


def same_up_to_constant(a: Node, b: Node, name: str, meter: Meter) -> bool:
    """Whether two trees, both with the constant `name` added, differ by a constant: two antiderivatives."""
    mp = context(LOW_DIGITS)
    gaps = []
    for point in points((free_symbols(a) | free_symbols(b)) - {name}):
        values = []
        try:
            for tree in (a, b):
                low, high = (NumericEvaluator(LOW_DIGITS, {**point, name: c}, meter)(tree) for c in (0, 3))
                if abs(high - low - 3) > mp.mpf(10) ** -20 * max(1, abs(low)):
                    return False
                values.append(low)
        except Undefined:
            continue
        except NotNumeric:
            return False
        if all(mp.im(v) == 0 for v in values):
            gaps.append((values[0] - values[1], max(abs(v) for v in values)))
    return len(gaps) >= _MIN_POINTS and all(
        abs(gap - gaps[0][0]) <= mp.mpf(10) ** -15 * max(1, scale, gaps[0][1]) for gap, scale in gaps
    )


def proportional(f: Node, g: Node, positive: bool, meter: Meter) -> bool:
    """Whether f = c g for a constant c other than 0: then f = 0 and g = 0 say the same."""
    names = free_symbols(f) | free_symbols(g)
    if not names or free_symbols(f) != free_symbols(g):
        return False
    coordinates = names & _COORDINATES
    if coordinates and names - coordinates and not positive:  # the factor may depend on parameters: a^2 b^2
        settings = points(names - coordinates)[:_MIN_POINTS]
        return all(_proportional_at(f, g, coordinates, setting, False, meter) for setting in settings)
    return _proportional_at(f, g, names, {}, positive, meter)


def _proportional_at(
    f: Node, g: Node, names: frozenset[str], setting: Mapping[str, Any], positive: bool, meter: Meter
) -> bool:
    """Whether f/g is one constant over these variables, the others as set."""
    anchor: tuple[Any, Any] | None = None
    agreeing = 0
    mp = context(LOW_DIGITS)
    for point in points(names):
        try:
            u, v = (NumericEvaluator(LOW_DIGITS, {**setting, **point}, meter)(node) for node in (f, g))
        except Undefined:
            continue
        except NotNumeric:
            return False
        if (u == 0) != (v == 0):
            return False
        if u == 0:
            continue
        if anchor is None:
            anchor = (u, v)
            if positive and (mp.im(u / v) != 0 or mp.re(u / v) < 0):
                return False
        elif abs(u * anchor[1] - v * anchor[0]) > abs(u * anchor[1]) * mp.mpf(10) ** -20:
            return False
        agreeing += 1
    return agreeing >= _MIN_POINTS


def close_constants(prediction: Node, gold: Node, meter: Meter) -> bool:
    """Whether one is a long decimal of the other; only real constants have decimals."""
    if free_symbols(prediction) or free_symbols(gold):
        return False
    try:
        a, b = (NumericEvaluator(LOW_DIGITS, {}, meter)(node) for node in (prediction, gold))
    except (Undefined, NotNumeric):
        return False
    mp = context(LOW_DIGITS)
    if mp.im(a) != 0 or mp.im(b) != 0 or max(abs(mp.mag(v)) for v in (a, b) if v) > _MAX_DECIMAL_BITS:
        return False
    return within_digits(as_fraction(mp.re(a)), prediction, as_fraction(mp.re(b)), gold)


def as_fraction(value: Any) -> Fraction:
    """A many-digit number as the fraction that it is."""
    return Fraction(*mpmath.libmp.to_rational(value._mpf_))


def many_digit_sets(meter: Meter) -> SetBuilder:
    """A builder of sets whose ends are many-digit numbers."""
    mp = context(LOW_DIGITS)

    def real(node: Node) -> Any:
        if (end := infinite_end(node)) is not None:
            return end
        try:
            value = NumericEvaluator(LOW_DIGITS, {}, meter)(node)
        except Undefined as error:
            raise NotNumeric("no value") from error
        if mp.im(value) != 0:
            raise NotNumeric("not real")
        return mp.re(value)

    def evaluate(node: Node, variable: str, x: Any) -> Any:
        value = NumericEvaluator(LOW_DIGITS, {variable: x}, meter)(node)
        if mp.im(value) != 0:
            raise Undefined("not real")
        return mp.re(value)

    return SetBuilder(real, mp.mpf(10) ** -18, evaluate)
