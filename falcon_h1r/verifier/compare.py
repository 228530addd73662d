"""Whether two parsed answers are the same answer.

Structure first, scalars at the leaves. Without algebra a scalar that exact arithmetic cannot settle raises
NeedsAlgebra, and the pair goes on to a run with algebra, normally in a worker process.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from falcon_h1r.verifier.decimals import within_digits
from falcon_h1r.verifier.exact import ExactEvaluator
from falcon_h1r.verifier.kinds import all_differ, as_set, is_set, num_variables, same_function_label
from falcon_h1r.verifier.realset import INFINITY, SetBuilder, same_set
from falcon_h1r.verifier.rewrite import (
    evaluate_matrices,
    is_equation,
    items_of,
    label_of,
    shape,
    with_decimal_logarithms,
    without_label,
)
from falcon_h1r.verifier.tree import (
    MAX_EXACT_WORK,
    BudgetExceeded,
    Node,
    NotationError,
    NotNumeric,
    Undefined,
    contains,
    free_symbols,
    negative,
    number,
)

if TYPE_CHECKING:  # numeric imports mpmath, which only algebra needs
    from falcon_h1r.verifier.numeric import Meter

_MAX_LEAF_COMPARISONS = 2_000
_STAGES = ("number", "structure", "algebra")
_STRUCTURED = ("list", "set", "tuple", "matrix", "chain", "union", "inter", "minus", "builder", "ratio")
_NO_SCALARS = ("tuple", "set", "chain", "matrix", "union", "inter", "minus", "builder")


class NeedsAlgebra(Exception):
    """Exact arithmetic and structure cannot settle this pair."""


class Comparison:
    """One comparison of a prediction with a gold; `algebra` allows many-digit arithmetic and sympy."""

    def __init__(self, algebra: bool) -> None:
        self.algebra = algebra
        self.exact = ExactEvaluator()
        self.stage = "number"
        self.num_leaves = 0
        self._meter: Meter | None = None

    # ------------------------------------------------------------------ whole answers
    def same(self, prediction: Node, gold: Node) -> bool:
        """Whether the two answers are the same; raises BudgetExceeded where that would cost too much."""
        prediction, gold = evaluate_matrices(prediction), evaluate_matrices(gold)
        if self.identical(prediction, gold):
            if gold.op in _STRUCTURED:
                self.reach("structure")
            return True
        if is_equation(gold) or is_equation(prediction):
            self.reach("structure")
            return self.equations(prediction, gold)
        prediction, gold = without_label(prediction), without_label(gold)
        if is_set(prediction) or is_set(gold):
            self.reach("structure")
            return self.sets(prediction, gold)
        return self.collections(prediction, gold)

    def reach(self, stage: str) -> None:
        """Note that this stage took part; the verdict is signed by the highest."""
        self.stage = max(self.stage, stage, key=_STAGES.index)

    def identical(self, a: Node, b: Node) -> bool:
        """Whether canonical keys agree; a division by zero has no key."""
        try:
            return a == b or self.exact.key(a) == self.exact.key(b)
        except Undefined:
            return False

    def equations(self, prediction: Node, gold: Node) -> bool:
        """Labels are dropped, formulas compared up to rearrangement; a formula is no answer to a value."""
        if not is_equation(gold):
            return self.same(without_label(prediction, any_side=True), gold)
        gold_label, label = label_of(gold), label_of(prediction)
        if not is_equation(prediction):
            value = without_label(gold)  # unchanged if the gold is a formula rather than a value with a name
            return not is_equation(value) and self.same(prediction, value)
        if label and gold_label and (label == gold_label or same_function_label(prediction, gold)):
            return self.same(without_label(prediction), without_label(gold))
        if gold_label and not free_symbols(without_label(gold)):
            return False  # the gold is solved, so the prediction has to be
        return self.relations(prediction, gold)

    def relations(self, a: Node, b: Node) -> bool:
        """Two formulas, or inequalities in several variables: their differences are proportional."""
        if len(a.args) != 2 or len(b.args) != 2:
            return False
        if any(n.op in ("set", "list", "tuple", "text") for n in (*a.args, *b.args)):
            return False
        first, second = (Node("add", (n.args[0], negative(n.args[1]))) for n in (a, b))
        if a.name != b.name:
            turned = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
            if turned.get(a.name) != b.name:
                return False
            first = negative(first)
        self.require_algebra()
        from falcon_h1r.verifier.algebra import proportional

        return proportional(first, second, positive=a.name != "=", meter=self.meter())

    # ------------------------------------------------------------------ lists, tuples, matrices
    def collections(self, prediction: Node, gold: Node) -> bool:
        """Lists and sets without order, tuples and vectors with it; a single value is a list of one."""
        items, labels = items_of(prediction)
        gold_items, gold_labels = items_of(gold)
        if len(items) == len(gold_items) == 1 and prediction.op == gold.op == "list":
            return self.same(items[0], gold_items[0])
        if not {prediction.op, gold.op} & {"list", "set"} and len(items) == len(gold_items) == 1:
            return self.single(items[0], gold_items[0])
        self.reach("structure")
        for one, many in ((gold, items), (prediction, gold_items)):
            other = prediction if one is gold else gold
            if one.op == "tuple" and other.op == "list" and not any(item.op == "tuple" for item in many):
                return self.in_order(list(one.args), many)
        if "set" in (prediction.op, gold.op):
            items, gold_items = self.distinct(items), self.distinct(gold_items)
        if len(items) != len(gold_items):
            return False
        if all_differ(labels) and all_differ(gold_labels) and sorted(labels) == sorted(gold_labels):
            by_label = dict(zip(labels, items, strict=True))
            return all(self.same(by_label[name], item) for name, item in zip(gold_labels, gold_items, strict=True))
        if all_differ(labels) or all_differ(gold_labels):
            return self.in_order(items, gold_items)
        return self.in_any_order(items, gold_items)

    def single(self, prediction: Node, gold: Node) -> bool:
        """Two answers that are no lists: tuples, ratios, matrices, texts, scalars."""
        kinds = {prediction.op, gold.op}
        if kinds & {"tuple", "matrix"}:
            self.reach("structure")
            return self.vectors(prediction, gold)
        if kinds == {"ratio"}:
            a, b = prediction.args, gold.args
            if len(a) != len(b) or "clock" in (prediction.name, gold.name):
                return False  # equal times have equal keys
            pairs = zip(a[1:], b[1:], strict=True)
            return all(self.scalar(Node("mul", (x, b[0])), Node("mul", (y, a[0]))) for x, y in pairs)
        if "ratio" in kinds:
            ratio, other = (prediction, gold) if prediction.op == "ratio" else (gold, prediction)
            return len(ratio.args) == 2 and other.op in ("div", "num") and self.scalar(Node("div", ratio.args), other)
        if "text" in kinds:
            return False  # equal texts have equal keys
        if kinds & {"chain", "builder", "union", "inter", "minus"}:
            return False
        return self.scalar(prediction, gold)

    def vectors(self, prediction: Node, gold: Node) -> bool:
        """Tuples and matrices by entries in order; brackets of a pair count, it may be an interval."""
        if prediction.op == gold.op == "matrix":
            pairs = zip(prediction.args, gold.args, strict=False)
            return shape(prediction) == shape(gold) and all(self.in_order(list(a.args), list(b.args)) for a, b in pairs)
        if prediction.op == gold.op == "tuple":
            if len(gold.args) == 2 and prediction.name != gold.name:
                return False  # an open end is not a closed one
            return self.in_order(list(prediction.args), list(gold.args))
        vector, matrix = (prediction, gold) if gold.op == "matrix" else (gold, prediction)
        if vector.op != "tuple" or matrix.op != "matrix" or 1 not in shape(matrix):
            return False
        return self.in_order(list(vector.args), [cell for row in matrix.args for cell in row.args])

    def in_order(self, a: list[Node], b: list[Node]) -> bool:
        """Whether two sequences have the same items, one by one."""
        return len(a) == len(b) and all(self.same(x, y) for x, y in zip(a, b, strict=True))

    def in_any_order(self, a: list[Node], b: list[Node]) -> bool:
        """Each item has a partner. Identical ones pair first: they cost nothing."""
        by_key: dict[str, list[Node]] = {}
        for item in b:
            by_key.setdefault(self.exact.key(item), []).append(item)
        left = []
        for item in a:
            partners = by_key.get(self.exact.key(item))
            if partners:
                partners.pop()
            else:
                left.append(item)
        rest = [item for items in by_key.values() for item in items]
        for item in left:
            partner = next((r for r in rest if self.same(item, r)), None)
            if partner is None:
                return False
            rest.remove(partner)
        return True

    def distinct(self, items: list[Node]) -> list[Node]:
        """The items of a set, each once."""
        kept: dict[str, Node] = {}
        for item in items:
            kept.setdefault(self.exact.key(item), item)
        return list(kept.values())

    # ------------------------------------------------------------------ sets of reals
    def sets(self, prediction: Node, gold: Node) -> bool:
        """Intervals, unions, inequalities. Where they are no sets of reals, structure decides."""
        if prediction.op == gold.op == "chain" and num_variables(prediction) > 1 and num_variables(gold) > 1:
            return self.relations(prediction, gold)
        pair = [as_set(n) for n in (prediction, gold)]
        try:
            builder = SetBuilder(self.real, 0, None)
            return same_set(builder.build(pair[0]), builder.build(pair[1]))
        except NotNumeric:
            pass
        if prediction.op == gold.op == "tuple":
            return self.vectors(prediction, gold)
        self.require_algebra()
        from falcon_h1r.verifier.algebra import many_digit_sets

        builder = many_digit_sets(self.meter())
        try:
            return same_set(builder.build(pair[0]), builder.build(pair[1]))
        except NotNumeric:
            return False

    def real(self, node: Node) -> Any:
        """Exact value of an end of an interval."""
        if node.op == "sym" and node.name == "oo":
            return INFINITY
        if node.op == "mul" and node.args == (number(-1), Node("sym", name="oo")):
            return -INFINITY
        value = self.exact.value(node)
        if value is None:
            raise NotNumeric("no exact value")
        return value

    # ------------------------------------------------------------------ scalars
    def meter(self) -> Meter:
        """What counts the numeric work of this comparison."""
        if self._meter is None:
            from falcon_h1r.verifier.numeric import Meter

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
        percent = [n.op == "percent" for n in (prediction, gold)]
        prediction, gold = (n.args[0] if n.op == "percent" else n for n in (prediction, gold))
        if percent[0] == percent[1]:
            return self.values(prediction, gold)
        hundredth = Node("num", value=Fraction(1, 100))
        as_part = [Node("mul", (hundredth, n)) if p else n for n, p in zip((prediction, gold), percent, strict=True)]
        return self.values(prediction, gold) or self.values(as_part[0], as_part[1])

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
        if contains(Node("list", (prediction, gold)), *_NO_SCALARS, "text"):
            return False
        self.require_algebra()
        from falcon_h1r.verifier.algebra import close_constants, same_expression

        meter = self.meter()

        if same_expression(prediction, gold, meter) or close_constants(prediction, gold, within_digits, meter):
            return True
        if any(n.op == "func" and n.name == "log" and len(n.args) == 1 for t in (prediction, gold) for n in t.walk()):
            return same_expression(with_decimal_logarithms(prediction), with_decimal_logarithms(gold), meter)
        return False


UNREADABLE = (NotationError, Undefined, NotNumeric)
