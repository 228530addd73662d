"""Values of trees in many-digit arithmetic (mpmath).

Arguments of powers, factorials and trigonometric functions are bounded before mpmath sees them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from typing import Any

import mpmath

from falcon_h1r.verifier.tree.node import (
    MAX_NUMERIC_WORK,
    MAX_TOTAL_NUMERIC_WORK,
    BudgetExceeded,
    Node,
    NotNumeric,
    Undefined,
)
from falcon_h1r.verifier.tree.relations import SIGNS

LOW_DIGITS, HIGH_DIGITS = 30, 80
_MAX_EXPONENT_BITS = 60  # of the binary exponent of any value: larger towers are beyond the budget
_MAX_TRIG = 10**30
_MAX_SUM_TERMS = 1_000
_MAX_SERIES_TERMS = 200
_MAX_GAMMA = 1_000
_WEIGHTS = {"factorial": 20, "factorial2": 20, "binom": 40, "root": 4, "log": 6}
_local = threading.local()


def context(digits: int) -> Any:
    """mpmath's arithmetic at a precision, one per thread: its global context belongs to everybody."""
    contexts: dict[int, Any] = _local.__dict__.setdefault("contexts", {})
    if digits not in contexts:
        contexts[digits] = mpmath.MPContext()
        contexts[digits].dps = digits
    return contexts[digits]


class Meter:
    """Counts the numeric work of one comparison, however many evaluations it takes."""

    def __init__(self) -> None:
        self.work = 0

    def spend(self, amount: int) -> None:
        """Account for work; raises BudgetExceeded when there has been too much."""
        self.work += amount
        if self.work > MAX_TOTAL_NUMERIC_WORK:
            raise BudgetExceeded("numeric evaluations beyond their budget")


class NumericEvaluator:
    """Evaluates trees at one point. Raises Undefined, NotNumeric or BudgetExceeded, never hangs."""

    def __init__(self, digits: int, point: Mapping[str, Any], meter: Meter) -> None:
        self.mp = context(digits)
        self.meter = meter
        self.point = dict(point)
        self.work = 0
        self.in_angle = False

    def __call__(self, node: Node) -> Any:
        value = self.evaluate(node)
        if not self.mp.isfinite(value):
            raise Undefined("no finite value")
        return value

    def spend(self, amount: int) -> None:
        self.work += amount
        self.meter.spend(amount)
        if self.work > MAX_NUMERIC_WORK:
            raise BudgetExceeded("numeric evaluation beyond its budget")

    def bounded(self, value: Any) -> Any:
        """The value, unless its exponent has grown out of hand."""
        magnitude = self.mp.mag(value) if value else 0
        if not isinstance(magnitude, int) or magnitude.bit_length() > _MAX_EXPONENT_BITS:
            raise BudgetExceeded("a value out of range")
        return value

    def evaluate(self, node: Node) -> Any:
        """The value of a tree, not yet checked to be finite."""
        self.spend(1)
        op, args = node.op, node.args
        if op == "num":
            return self.mp.mpf(node.value.numerator) / node.value.denominator
        if op == "sym":
            return self.symbol(node.name)
        if op == "add":
            return self.mp.fsum([self.evaluate(a) for a in args])
        if op == "mul":
            return self.bounded(self.mp.fprod([self.evaluate(a) for a in args]))
        if op == "div":
            top, bottom = self.evaluate(args[0]), self.evaluate(args[1])
            if bottom == 0:
                raise Undefined("division by zero")
            return self.bounded(top / bottom)
        if op == "pow":
            return self.power(self.evaluate(args[0]), self.evaluate(args[1]))
        if op == "func":
            return self.function(node)
        if op == "percent":
            return self.evaluate(args[0]) / 100
        if op == "degree":
            return self.evaluate(args[0]) * (self.mp.pi / 180 if self.in_angle else 1)
        if op == "big":
            return self.sum_or_product(node)
        if op == "piecewise":
            return self.evaluate(self.case(node))
        raise NotNumeric(op)

    def case(self, node: Node) -> Node:
        """The value of the first case whose condition holds at the point."""
        for value, condition in (row.args for row in node.args):
            if self.holds(condition):
                return value
        raise Undefined("no case holds")

    def holds(self, condition: Node) -> bool:
        """Whether a condition holds at the point: relations, "n even", "otherwise"."""
        if condition.op == "list":
            return all(self.holds(part) for part in condition.args)
        if condition.op == "text":
            name, _, parity = condition.name.partition(" ")
            if condition.name in ("otherwise", "else"):
                return True
            if parity in ("even", "odd") and name in self.point and self.mp.isint(self.point[name]):
                return bool(int(self.point[name]) % 2 == (parity == "odd"))
            raise NotNumeric("a condition in words")
        names = condition.name.split()
        if condition.op != "chain" or not set(names) <= set(SIGNS):
            raise NotNumeric("no condition")
        sides = [self.evaluate(side) for side in condition.args]
        if any(self.mp.im(side) != 0 for side in sides):
            return False
        signs = [int(self.mp.sign(left - right)) for left, right in itertools.pairwise(map(self.mp.re, sides))]
        return all(sign in SIGNS[name] for sign, name in zip(signs, names, strict=True))

    def symbol(self, name: str) -> Any:
        """The value of a constant, or of a variable at the point."""
        if name in self.point:
            return self.mp.mpmathify(self.point[name])
        if name in ("pi", "e"):
            return +(self.mp.pi if name == "pi" else self.mp.e)
        if name == "i":
            return self.mp.mpc(0, 1)
        if name == "oo":
            raise Undefined("infinity")
        raise NotNumeric(name)

    def power(self, base: Any, exponent: Any) -> Any:
        """base ** exponent, principal value; the size of the result is estimated first."""
        self.spend(3)
        if base == 0:
            if self.mp.re(exponent) <= 0 and exponent != 0:
                raise Undefined("zero to a negative power")
            return self.mp.mpf(1 if exponent == 0 else 0)
        if exponent and self.mp.mag(exponent) + self.mp.mag(abs(self.mp.mag(base)) + 1) > _MAX_EXPONENT_BITS:
            raise BudgetExceeded("a power out of range")
        return self.bounded(self.mp.power(base, exponent))

    # ------------------------------------------------------------------ functions
    def function(self, node: Node) -> Any:
        """The value of a function; degrees count as angles inside trigonometric ones."""
        self.spend(_WEIGHTS.get(node.name, 4))
        trigonometric = node.name in _TRIGONOMETRIC
        outer, self.in_angle = self.in_angle, self.in_angle or trigonometric
        args = [self.evaluate(a) for a in node.args]
        self.in_angle = outer
        if node.name in ("gamma", "zeta") and any(abs(a) > _MAX_GAMMA for a in args):
            raise BudgetExceeded(f"{node.name} of a large argument")
        if any(abs(a) > _MAX_TRIG for a in args) and (trigonometric or node.name in _GROWING):
            raise BudgetExceeded(f"{node.name} of a huge argument")
        name = _MPMATH_NAMES.get(node.name, node.name)
        if node.name in _ONE_ARGUMENT and len(args) == 1:
            return self.guarded(name, args)
        if node.name == "log":
            return self.logarithm(args)
        if node.name in ("factorial", "factorial2", "binom"):
            if any(abs(a) > 10**12 for a in args):
                raise BudgetExceeded(f"{node.name} of a huge argument")
            return self.guarded(name, args)
        if node.name == "root" and len(args) == 2:
            return self.real_root(*args)
        if node.name in ("max", "min") and all(self.mp.im(a) == 0 for a in args):
            real = [self.mp.re(a) for a in args]  # complex numbers have no order, not even those on the real line
            return max(real) if node.name == "max" else min(real)
        raise NotNumeric(node.name)

    def guarded(self, name: str, args: list[Any]) -> Any:
        """A function of mpmath, its own complaints about poles and domains read as "no value"."""
        if name in ("floor", "ceil", "sign") and self.mp.im(args[0]) != 0:
            raise Undefined(f"{name} of a complex number")
        if name in ("floor", "ceil") and abs(args[0] - self.mp.nint(args[0])) <= abs(args[0]) * self.mp.eps * 2**20:
            return self.mp.nint(args[0])  # log_2 8 is 3, whatever its last digits
        try:
            return self.bounded(getattr(self.mp, name)(*args))
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise Undefined(str(error)) from error
        except TypeError as error:  # the wrong number of arguments
            raise NotNumeric(name) from error

    def logarithm(self, args: list[Any]) -> Any:
        """Natural, or to the base that stands second."""
        if any(a == 0 for a in args) or len(args) > 2 or (len(args) == 2 and args[1] == 1):
            raise Undefined("a logarithm outside its domain")
        return self.mp.ln(args[0]) / (self.mp.ln(args[1]) if len(args) == 2 else 1)

    def real_root(self, value: Any, degree: Any) -> Any:
        """The real root of odd degree of a negative number, as the radical sign means it."""
        if degree == 0:
            raise Undefined("a root of degree 0")
        odd = self.mp.isint(degree) and int(degree) % 2 == 1 if abs(degree) < 10**6 else False
        if odd and self.mp.im(value) == 0 and self.mp.re(value) < 0:
            return -self.power(-value, 1 / degree)
        return self.power(value, 1 / degree)

    def series(self, body: Node, lower: Any, index: str) -> Any:
        """An unbounded sum in variables at a point where it converges fast; no value elsewhere."""
        if not self.mp.isint(lower):
            raise NotNumeric("a limit that is no integer")
        total, small = self.mp.mpf(0), 0
        for term in range(int(lower), int(lower) + _MAX_SERIES_TERMS):
            value = self.at(index, term, body)
            total += value
            small = small + 1 if abs(value) <= abs(total) * self.mp.eps else 0
            if small == 4:
                return total
        raise Undefined("a series that converges slowly, or not")

    def at(self, index: str, term: int, body: Node) -> Any:
        """The body of a sum at one value of its index, which hides a variable of that name."""
        outer = self.point.get(index)
        self.point[index] = term
        value = self.evaluate(body)
        del self.point[index]
        if outer is not None:
            self.point[index] = outer
        return value

    def sum_or_product(self, node: Node) -> Any:
        """A sum or product between integers, term by term; an unbounded sum in variables as a series."""
        kind, _, index = node.name.partition(":")
        if kind == "sum" and node.args[2].name == "oo" and self.point:
            return self.series(node.args[0], self.evaluate(node.args[1]), index)
        if kind not in ("sum", "prod") or any(limit.name == "oo" for limit in node.args[1:]):
            raise NotNumeric(kind)
        lower, upper = self.evaluate(node.args[1]), self.evaluate(node.args[2])
        if not (self.mp.isint(lower) and self.mp.isint(upper)):
            raise NotNumeric("limits that are not integers")
        if upper - lower > _MAX_SUM_TERMS:
            raise BudgetExceeded("a sum of too many terms")
        total = self.mp.mpf(0 if kind == "sum" else 1)
        for term in range(int(lower), int(upper) + 1):
            value = self.at(index, term, node.args[0])
            total = total + value if kind == "sum" else self.bounded(total * value)
        return total


_TRIGONOMETRIC = frozenset("sin cos tan cot sec csc".split())
_GROWING = frozenset("sinh cosh tanh coth sech csch floor ceil".split())
_MPMATH_NAMES = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "arccoth": "acoth", "arcsech": "asech", "arccsch": "acsch", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "abs": "fabs", "binom": "binomial", "factorial2": "fac2",
    "gamma": "gamma", "zeta": "zeta", "sgn": "sign", "Re": "re", "Im": "im",
}  # fmt: skip
_ONE_ARGUMENT = _TRIGONOMETRIC | _GROWING | {*_MPMATH_NAMES, "ln"} - {"binom", "factorial2"}
