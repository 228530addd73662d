"""Sets of real numbers: intervals, unions, differences, and solutions of inequalities in one variable.

A set is a membership test and the points where membership may change. Two sets are equal when they agree at
all those points and between them, which needs no algebra of sets at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from falcon_h1r.verifier.tree.node import (
    BudgetExceeded,
    Node,
    NotNumeric,
    Undefined,
    free_symbols,
    negative,
    number,
)
from falcon_h1r.verifier.tree.relations import SIGNS, TURNED
from falcon_h1r.verifier.values.polynomial import MAX_DEGREE, rational_function, real_roots

_MAX_ABSOLUTES = 3
_WHOLE = ("set:Z", "set:N", "set:Z+")
_MAX_POINTS = 200
INFINITY = float("inf")
_INFINITY_SIGN = Node("sym", name="oo")
_MINUS_INFINITY = negative(_INFINITY_SIGN)


def infinite_end(node: Node) -> float | None:
    """What an end of an interval is where it is infinite; None where it is finite."""
    return INFINITY if node == _INFINITY_SIGN else -INFINITY if node == _MINUS_INFINITY else None


@dataclass(frozen=True, slots=True)
class RealSet:
    """`changes`: where membership may change; between neighbours of them it is constant."""

    changes: tuple[Any, ...]
    contains: Callable[[Any], bool]

    def samples(self, other: RealSet | None = None) -> list[Any]:
        """All changes, a point between neighbours, and one beyond either end."""
        found = sorted(self.changes + (other.changes if other else ()))
        if len(found) > _MAX_POINTS:
            raise BudgetExceeded("a set of too many pieces")
        if not found:
            return [0]
        between = [(a + b) / 2 for a, b in itertools.pairwise(found)]
        return [found[0] - 1, *found, *between, found[-1] + 1]


def same_set(a: RealSet, b: RealSet) -> bool:
    """Whether two sets have the same members."""
    return all(a.contains(x) == b.contains(x) for x in a.samples(b))


class SetBuilder:
    """Builds sets from trees.

    `real` gives the value of a constant (a Fraction, a float infinity, or a many-digit number); `slack` is
    below which relative difference two values count as one (0 for exact values); `evaluate` gives the value
    of a tree at a point, and is None where only exact values are wanted.
    """

    def __init__(
        self, real: Callable[[Node], Any], slack: Any, evaluate: Callable[[Node, str, Any], Any] | None
    ) -> None:
        self.real = real
        self.slack = slack
        self.evaluate = evaluate

    def same(self, x: Any, y: Any) -> bool:
        """Whether two values count as one."""
        if x in (INFINITY, -INFINITY) or y in (INFINITY, -INFINITY):
            return bool(x == y)
        return bool(abs(x - y) <= self.slack * max(abs(x), abs(y), 1))

    def build(self, node: Node) -> RealSet:
        """The set a tree stands for; raises NotNumeric when it is not a set of reals."""
        op, args = node.op, node.args
        if op == "sym" and node.name == "set:R":
            return RealSet((), lambda x: True)
        if op == "tuple" and len(args) == 2:
            return self.interval(self.real(args[0]), self.real(args[1]), node.name[0] == "[", node.name[1] == "]")
        if op == "set":
            return self.finite([self.real(a) for a in args])
        if op == "inter" and args[0].op == "sym" and args[0].name in _WHOLE:
            return self.whole_numbers(self.build(args[1]), natural=args[0].name != "set:Z")
        if op in ("union", "inter", "minus"):
            return _combine(op, self.build(args[0]), self.build(args[1]))
        if op == "add" and len(args) == 2 and args[1].op == "mul" and args[1].args[0] == number(-1):
            return _combine("minus", self.build(args[0]), self.build(args[1].args[1]))
        if op == "builder":
            return self.build(args[0])
        if op == "chain":
            return self.chain(node)
        if op == "list" and args:
            return self.conditions(node)
        raise NotNumeric("not a set of reals")

    def interval(self, low: Any, high: Any, low_in: bool, high_in: bool) -> RealSet:
        """All between two ends, each of them in or out."""

        if low > high:
            raise NotNumeric("the ends of an interval in the wrong order")

        def member(x: Any) -> bool:
            if self.same(x, low) or self.same(x, high):
                return (self.same(x, low) and low_in) or (self.same(x, high) and high_in)
            return bool(low < x < high)

        return RealSet(tuple(v for v in (low, high) if v not in (INFINITY, -INFINITY)), member)

    def finite(self, values: list[Any]) -> RealSet:
        """Some single points."""
        return RealSet(tuple(values), lambda x: any(self.same(x, v) for v in values))

    def whole_numbers(self, members: RealSet, natural: bool) -> RealSet:
        """The whole numbers of a bounded set; N starts at 1."""
        changes = sorted(members.changes)
        if natural:
            changes = [0, *(c for c in changes if c > 0)]
        if not changes or members.contains(changes[-1] + 1) or (not natural and members.contains(changes[0] - 1)):
            raise NotNumeric("whole numbers without end")
        if changes[-1] - changes[0] > _MAX_POINTS:
            raise BudgetExceeded("a set of too many pieces")
        whole = range(math.floor(changes[0]) + int(natural), math.ceil(changes[-1]) + 1)
        return self.finite([k for k in whole if members.contains(k)])

    def conditions(self, node: Node) -> RealSet:
        """Conditions joined by "or" are a union; by "and" or commas an intersection, or a union if that is
        empty.
        """
        whole = [a for a in node.args if a.op == "chain" and a.name == "in" and a.args[1].name in _WHOLE]
        if whole and len(whole) < len(node.args):
            rest = tuple(a for a in node.args if a not in whole)
            members = self.conditions(Node("list", rest, name=node.name))
            return self.whole_numbers(members, natural=any(a.args[1].name != "set:Z" for a in whole))
        first, rest = node.args[0], node.args[1:]
        values = not any(a.op == "chain" or free_symbols(a) for a in rest)
        if rest and first.op == "chain" and first.name == "!=" and values:  # x ≠ 1, 2
            others = (Node("chain", (first.args[0], a), name="!=") for a in rest)
            return self.conditions(Node("list", (first, *others), name="and"))
        parts = [self.build(a) for a in node.args]
        if len({frozenset(free_symbols(a)) for a in node.args}) != 1:
            raise NotNumeric("conditions on several variables")
        both = parts[0]
        either = parts[0]
        for part in parts[1:]:
            both, either = _combine("inter", both, part), _combine("union", either, part)
        if node.name == "or" or not any(both.contains(x) for x in both.samples()):
            return either
        return both

    # ------------------------------------------------------------------ conditions on one variable
    def chain(self, node: Node) -> RealSet:
        """a < x <= b, x in S, f(x) > g(x), x = a: the intersection of its links."""
        names = node.name.split()
        result: RealSet | None = None
        for left, name, right in zip(node.args, names, node.args[1:], strict=False):
            link = self.link(left, name, right)
            result = link if result is None else _combine("inter", result, link)
        assert result is not None
        return result

    def link(self, left: Node, name: str, right: Node) -> RealSet:
        """Where one relation holds."""
        if name in ("in", "notin"):
            members = self.build(right)
            return members if name == "in" else _combine("minus", RealSet((), lambda x: True), members)
        variables = free_symbols(left) | free_symbols(right)
        if len(variables) != 1:
            raise NotNumeric("a condition on several variables")
        variable = next(iter(variables))
        if right.op == "pm" and name in ("=", "!="):  # x = ±1 is either, x ≠ ±1 neither
            links = [self.link(left, name, side) for side in (right.args[0], negative(right.args[0]))]
            return _combine("union" if name == "=" else "inter", *links)
        if right.op == "sym" and not free_symbols(left):
            left, name, right = right, TURNED[name], left
        if left.op == "sym" and left.name == variable and not free_symbols(right):
            return self.half_line(name, self.real(right))
        return self.solution(Node("add", (left, negative(right))), name, variable)

    def half_line(self, name: str, bound: Any) -> RealSet:
        """Where the variable itself stands in a relation to a bound."""
        if name == "=":
            return self.finite([bound])
        if name == "!=":
            return RealSet((bound,), lambda x: not self.same(x, bound))
        if name.startswith("<"):
            return self.interval(-INFINITY, bound, False, name == "<=")
        return self.interval(bound, INFINITY, name == ">=", False)

    def solution(self, difference: Node, name: str, variable: str) -> RealSet:
        """Where `difference name 0` holds: it can change only at zeros and poles of its pieces."""
        if self.evaluate is None:
            raise NotNumeric("a condition to solve")
        evaluate = self.evaluate
        changes: list[Any] = []
        for case in _without_absolutes(difference):
            top, bottom = rational_function(case, variable, self.real)
            changes += real_roots(top) + real_roots(bottom)

        def member(x: Any) -> bool:
            try:
                value = evaluate(difference, variable, x)
            except Undefined:
                return False
            # Roots are known to many digits only; a value this close to zero is zero.
            if abs(value) <= self.slack * max(abs(x), 1) ** MAX_DEGREE * 10**6:
                return 0 in SIGNS[name]
            return (1 if value > 0 else -1) in SIGNS[name]

        return RealSet(tuple(changes), member)


def _combine(op: str, a: RealSet, b: RealSet) -> RealSet:
    tests: dict[str, Callable[[Any], bool]] = {
        "union": lambda x: a.contains(x) or b.contains(x),
        "inter": lambda x: a.contains(x) and b.contains(x),
        "minus": lambda x: a.contains(x) and not b.contains(x),
    }
    return RealSet(a.changes + b.changes, tests[op])


def _without_absolutes(node: Node) -> list[Node]:
    """The tree with every |u| replaced by u and by -u: the zeros of these contain the zeros of the tree."""
    cases = [node]
    for _ in range(_MAX_ABSOLUTES + 1):
        inner = next((n for n in cases[0].walk() if n.op == "func" and n.name == "abs"), None)
        if inner is None:
            return cases
        cases = [_replace(case, sign) for case in cases for sign in (1, -1)]
    raise BudgetExceeded("too many absolute values")


def _replace(node: Node, sign: int) -> Node:
    """The first |u| met, from the root down, replaced by sign * u."""
    if node.op == "func" and node.name == "abs":
        return node.args[0] if sign > 0 else negative(node.args[0])
    for position, arg in enumerate(node.args):
        if any(n.op == "func" and n.name == "abs" for n in arg.walk()):
            args = (*node.args[:position], _replace(arg, sign), *node.args[position + 1 :])
            return Node(node.op, args, node.name, node.value, node.digits)
    return node
