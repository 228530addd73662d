"""Whether two values are the same: exact arithmetic, canonical keys, then algebra where it is allowed."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from falcon_h1r.verifier.tree.node import (
    MAX_EXACT_WORK,
    BudgetExceeded,
    Node,
    NotNumeric,
    Undefined,
    contains,
    free_symbols,
    number,
)
from falcon_h1r.verifier.tree.rewrite import substituted, with_decimal_logarithms
from falcon_h1r.verifier.values.decimals import within_digits
from falcon_h1r.verifier.values.exact import ExactEvaluator
from falcon_h1r.verifier.values.realset import infinite_end

if TYPE_CHECKING:  # numeric imports mpmath, which only algebra needs
    from falcon_h1r.verifier.values.numeric import Meter

_MAX_LEAF_COMPARISONS = 2_000
_STAGES = ("number", "structure", "algebra")
_NO_SCALARS = ("tuple", "set", "chain", "matrix", "union", "inter", "minus", "builder", "mod")


_INTEGRATED = frozenset(("x", "t", "y", "u", "theta"))
_INDEX_NAMES = frozenset("nmk")
_OVER_INTEGERS = ("even", "odd", "floor", "ceil", "factorial", "factorial2", "binom")


def index_names(*trees: Node) -> bool:
    """Whether all variables are n, m or k under functions of whole numbers: by convention they are integers."""
    names = frozenset().union(*(free_symbols(tree) for tree in trees))
    if not names or not names <= _INDEX_NAMES:
        return False
    written = (node.name.split() for tree in trees for node in tree.walk())
    return any(name in _OVER_INTEGERS for names in written for name in names)


def arbitrary_constants(a: Node, b: Node) -> frozenset[str]:
    """Constants of integration that both sums end in; a letter in a row of letters, a + b + c, is none."""
    if a.op != "add" or b.op != "add":
        return frozenset()
    names = free_symbols(a) | free_symbols(b)
    if len(names) == 2 and names & _INTEGRATED:  # one variable and a constant
        return names & {"C", "c", "K"}
    return names & {"C"} if not names & {"A", "B", "D"} else frozenset()


class NeedsAlgebra(Exception):
    """Exact arithmetic and structure cannot settle this pair."""


class ScalarComparison:
    """Comparison of single values; lists, sets and relations are built on it."""

    def __init__(self, algebra: bool) -> None:
        self.algebra = algebra
        self.integers: frozenset[str] = frozenset()  # variables that stand for integers
        self.assumptions: tuple[Node, ...] = ()  # conditions on variables under which values are compared
        self.exact = ExactEvaluator()
        self.stage = "number"
        self.num_leaves = 0
        self._meter: Meter | None = None

    def reach(self, stage: str) -> None:
        """Note that this stage took part; the verdict is signed by the highest."""
        self.stage = max(self.stage, stage, key=_STAGES.index)

    def identical(self, a: Node, b: Node) -> bool:
        """Whether canonical keys agree; a division by zero has no key."""
        try:
            return a == b or self.exact.key(a) == self.exact.key(b)
        except Undefined:
            return False

    def real(self, node: Node) -> Any:
        """Exact value of an end of an interval."""
        if (end := infinite_end(node)) is not None:
            return end
        value = self.exact.value(node)
        if value is None:
            raise NotNumeric("no exact value")
        return value

    # ------------------------------------------------------------------ scalars
    def meter(self) -> Meter:
        """What counts the numeric work of this comparison."""
        if self._meter is None:
            from falcon_h1r.verifier.values.numeric import Meter

            self._meter = Meter()
        return self._meter

    def require_algebra(self) -> None:
        """Go on only where algebra is allowed; whatever follows is decided by it."""
        if not self.algebra:
            raise NeedsAlgebra
        self.reach("algebra")

    def scalar(self, prediction: Node, gold: Node) -> bool:
        """Two values or expressions; a percentage is its number and its hundredth part."""
        self.num_leaves += 1
        if self.num_leaves > _MAX_LEAF_COMPARISONS or self.exact.work > MAX_EXACT_WORK:
            raise BudgetExceeded("too many comparisons")
        if (prediction.op == "based") != (gold.op == "based"):  # 1011 for 1011_2: the base is often left out
            prediction, gold = (n.args[0] if n.op == "based" else n for n in (prediction, gold))
        degrees = [contains(n, "degree") for n in (prediction, gold)]
        if degrees[0] != degrees[1] and self.in_radians(prediction, gold):
            return True
        percent = [n.op == "percent" for n in (prediction, gold)]
        if "mod" in (prediction.op, gold.op):
            return self.residues(prediction, gold)
        prediction, gold = (n.args[0] if n.op == "percent" else n for n in (prediction, gold))
        if percent[0] == percent[1]:
            return self.values(prediction, gold)
        hundredth = Node("num", value=Fraction(1, 100))
        as_part = [Node("mul", (hundredth, n)) if p else n for n, p in zip((prediction, gold), percent, strict=True)]
        return self.values(prediction, gold) or self.values(as_part[0], as_part[1])

    def in_radians(self, a: Node, b: Node) -> bool:
        """60 degrees against pi/3: an angle on either side in its own unit, the other in terms of pi."""
        angle, other = (a, b) if a.op == "degree" else (b, a)
        if angle.op != "degree" or not any(n.op == "sym" and n.name == "pi" for n in other.walk()):
            return False
        half_turn = Node("div", (Node("sym", name="pi"), number(180)))
        return self.values(Node("mul", (angle.args[0], half_turn)), other)

    def residues(self, prediction: Node, gold: Node) -> bool:
        """Residues with their modulus; a gold without one is a number, and the prediction's may be dropped."""
        if gold.op == "mod" and prediction.op != "mod":
            return self.residue_class(prediction, gold) or self.remainder(gold, prediction)
        if gold.op != "mod" and free_symbols(gold) & self.integers:
            return self.residue_class(gold, prediction)
        if gold.op != "mod":  # a remainder: 17 mod 5 is 2
            return self.remainder(prediction, gold) or self.scalar(prediction.args[0], gold)
        if prediction.op != "mod" or not self.values(prediction.args[1], gold.args[1]):
            return False
        a, b, modulus = (self.exact.value(n) for n in (prediction.args[0], *gold.args))
        if a is None or b is None or not modulus:
            return self.values(prediction.args[0], gold.args[0])
        return ((a - b) / modulus).denominator == 1

    def remainder(self, operation: Node, value: Node) -> bool:
        """17 mod 5 against 2: an operation, because 17 is no residue of 5."""
        dividend, modulus, result = (self.exact.value(n) for n in (*operation.args, value))
        if dividend is None or result is None or not modulus:
            return False
        return not 0 <= dividend < modulus and result == dividend % modulus

    def residue_class(self, linear: Node, residue: Node) -> bool:
        """3k + 1 with an integer k against 1 mod 3."""
        names = free_symbols(linear)
        if len(names) != 1 or not names <= self.integers:
            return False
        points = [substituted(linear, {name: number(k) for name in names}) for k in (0, 1, 2, 5)]
        start, one, two, five = (self.exact.value(n) for n in points)
        value, modulus = (self.exact.value(n) for n in residue.args)
        if start is None or one is None or value is None or not modulus or abs(one - start) != abs(modulus):
            return False
        return two == 2 * one - start and five == 5 * one - 4 * start and ((start - value) / modulus).denominator == 1

    def values(self, prediction: Node, gold: Node) -> bool:
        """Two scalars: exact values, then keys, then many-digit values."""
        try:
            a, b = self.exact.value(prediction), self.exact.value(gold)
        except Undefined:
            return False
        if a is not None and b is not None:
            return a == b or within_digits(a, prediction, b, gold)
        if self.identical(prediction, gold):
            return True
        cases = "piecewise" in (prediction.op, gold.op)  # which hold conditions
        if not cases and contains(Node("list", (prediction, gold)), *_NO_SCALARS, "text"):
            return False
        self.require_algebra()
        from falcon_h1r.verifier.values.algebra import (
            close_constants,
            same_expression,
            same_up_to_constant,
            same_where_positive,
        )

        meter, given = self.meter(), (self.integers, self.assumptions)
        if same_expression(prediction, gold, meter, *given):
            return True
        if close_constants(prediction, gold, meter):
            return True
        constants = arbitrary_constants(prediction, gold)
        if any(same_up_to_constant(prediction, gold, name, meter) for name in constants):
            return True
        if same_where_positive(prediction, gold, meter):
            return True
        if index_names(prediction, gold):
            names = free_symbols(prediction) | free_symbols(gold)
            counting = tuple(Node("chain", (Node("sym", name=name), number(1)), name=">=") for name in sorted(names))
            if same_expression(prediction, gold, meter, names, (*self.assumptions, *counting)):
                return True
        if any(n.op == "func" and n.name == "log" and len(n.args) == 1 for t in (prediction, gold) for n in t.walk()):
            decimal = [with_decimal_logarithms(n) for n in (prediction, gold)]
            return same_expression(decimal[0], decimal[1], meter, *given)
        return False
