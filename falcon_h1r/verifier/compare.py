"""Whether two parsed answers are the same answer.

Structure first, scalars at the leaves. Without algebra a scalar that exact arithmetic cannot settle raises
NeedsAlgebra, and the pair goes on to a run with algebra, normally in a worker process.
"""

from __future__ import annotations

from fractions import Fraction

from falcon_h1r.verifier.scalars import NeedsAlgebra, ScalarComparison
from falcon_h1r.verifier.tree.kinds import (
    all_differ,
    as_set,
    is_set,
    labels_order,
    num_variables,
    same_function_label,
    value_symbols,
    with_conditions,
)
from falcon_h1r.verifier.tree.node import Node, NotationError, NotNumeric, Undefined, free_symbols, negative, number
from falcon_h1r.verifier.tree.parameters import function_arguments, names_a_sequence, opened, renamed, renamings
from falcon_h1r.verifier.tree.relations import TURNED
from falcon_h1r.verifier.tree.rewrite import (
    as_matrix,
    evaluate_matrices,
    expand_signs,
    is_equation,
    items_of,
    label_of,
    named_coordinates,
    shape,
    substituted,
    with_coordinates,
    without_label,
)
from falcon_h1r.verifier.values.realset import SetBuilder, same_set

__all__ = ["UNREADABLE", "Comparison", "NeedsAlgebra"]

_OTHERWISE = ("otherwise", "else")
_UNKNOWNS = frozenset("xyz")  # what a condition is about, rather than a parameter of it
_PARAMETER_VALUES = (
    (Fraction(1, 3), Fraction(7, 2)), (Fraction(5, 2), Fraction(9, 2)), (Fraction(-7, 4), Fraction(3, 4)),
    (Fraction(7, 2), Fraction(1, 3)), (Fraction(4), Fraction(-2)),
)  # fmt: skip
_STRUCTURED = ("list", "set", "tuple", "matrix", "chain", "union", "inter", "minus", "builder", "ratio", "piecewise")


class Comparison(ScalarComparison):
    """One comparison of a prediction with a gold; `algebra` allows many-digit arithmetic and sympy."""

    # ------------------------------------------------------------------ whole answers
    def answers(self, prediction: Node, gold: Node) -> bool:
        """Whether two whole answers are the same, with what they declare about their variables."""
        prediction, free, domain = opened(prediction)
        gold, gold_free, gold_domain = opened(gold)
        prediction, conditions = with_conditions(with_coordinates(prediction))
        gold, gold_conditions = with_conditions(with_coordinates(gold))
        if conditions and gold_conditions and not self.same(_conjunction(conditions), _conjunction(gold_conditions)):
            return False
        if bool(conditions) != bool(gold_conditions) and free_symbols(_conjunction(conditions + gold_conditions)) & (
            free | gold_free
        ):
            return False  # a parameter with a value left out
        self.assumptions = (*conditions, *gold_conditions)
        whole = [
            names if kind in ("Z", "N") else frozenset() for names, kind in ((free, domain), (gold_free, gold_domain))
        ]
        self.integers = whole[0] | whole[1]
        if self.integers and not names_a_sequence(prediction) and not names_a_sequence(gold):
            if domain and gold_domain and domain != gold_domain:
                return False
            if "N" not in (domain, gold_domain) and self.families(prediction, gold):
                return True
        for names in renamings(value_symbols(prediction), value_symbols(gold), free, gold_free, prediction, gold):
            self.integers = self.integers | {names[name] for name in names if name in whole[0]}
            if self.same(renamed(prediction, names), gold):
                return True
        return self.same(prediction, gold)

    def same(self, prediction: Node, gold: Node) -> bool:
        """Whether the two answers are the same; raises BudgetExceeded where that would cost too much."""
        prediction, gold = evaluate_matrices(prediction), evaluate_matrices(gold)
        if "matrix" in (prediction.op, gold.op):
            prediction, gold = as_matrix(prediction), as_matrix(gold)
        if self.identical(prediction, gold):
            if gold.op in _STRUCTURED:
                self.reach("structure")
            return True
        prediction, gold = named_coordinates(prediction), named_coordinates(gold)
        if is_equation(gold) or is_equation(prediction):
            self.reach("structure")
            return self.equations(prediction, gold)
        if _interval_beside_values(prediction, gold) or _interval_beside_values(gold, prediction):
            self.reach("structure")
            return False
        prediction, gold = without_label(prediction), without_label(gold)
        if is_set(prediction) or is_set(gold):
            self.reach("structure")
            return self.sets(prediction, gold)
        return self.collections(prediction, gold)

    def families(self, prediction: Node, gold: Node) -> bool:
        """Families in one integer each, k\\pi and n\\pi, as the sets of their values."""
        families = [items_of(n)[0] for n in (prediction, gold)]
        if not all(len(free_symbols(item)) <= 1 and item.op not in _STRUCTURED for f in families for item in f):
            return False
        self.require_algebra()
        self.reach("structure")
        from falcon_h1r.verifier.values.algebra import same_families

        return same_families(families[0], families[1], self.meter())

    def equations(self, prediction: Node, gold: Node) -> bool:
        """Labels are dropped, formulas compared up to rearrangement; a formula is no answer to a value."""
        for one, other in ((prediction, gold), (gold, prediction)):
            if one.op == "list" and all(map(is_equation, one.args)) and is_equation(without_label(other)):
                return self.in_any_order(list(one.args), expand_signs(other))  # y = x, y = -x and x ± y = 0
        if not is_equation(gold):
            return self.same(without_label(prediction, any_side=True), gold)
        gold_label, label = label_of(gold), label_of(prediction)
        if not is_equation(prediction):
            value = without_label(gold)  # unchanged if the gold is a formula rather than a value with a name
            return not is_equation(value) and self.same(prediction, value)
        if label and gold_label and (label == gold_label or same_function_label(prediction, gold)):
            return self.same(_with_arguments_of(prediction, gold), without_label(gold))
        if gold_label and not free_symbols(without_label(gold)):
            return False  # the gold is solved, so the prediction has to be
        branches = [expand_signs(n) for n in (prediction, gold)]
        if max(map(len, branches)) > 1:
            return self.in_any_order(*branches)
        return self.relations(prediction, gold)

    def relations(self, a: Node, b: Node) -> bool:
        """Two formulas, or inequalities in several variables: their differences are proportional."""
        if len(a.args) != 2 or len(b.args) != 2:
            return self.identical(a, _turned(b))  # f(2) < f(1) < f(4) from its other end
        if any(n.op in ("set", "list", "tuple", "text") for n in (*a.args, *b.args)):
            return False
        first, second = (Node("add", (n.args[0], negative(n.args[1]))) for n in (a, b))
        if a.name != b.name:
            if TURNED.get(a.name) != b.name:
                return False
            first = negative(first)
        self.require_algebra()
        from falcon_h1r.verifier.values.algebra import proportional

        return proportional(first, second, positive=a.name not in ("=", "!="), meter=self.meter())

    # ------------------------------------------------------------------ lists, tuples, matrices
    def collections(self, prediction: Node, gold: Node) -> bool:
        """Lists and sets without order, tuples and vectors with it; a single value is a list of one."""
        if prediction.op == gold.op == "list" and any(
            is_equation(without_label(item)) for item in (*prediction.args, *gold.args)
        ):
            return self.in_any_order(list(prediction.args), list(gold.args))  # formulas, not names with values
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
        if {prediction.op, gold.op} == {"set", "tuple"} and "[]" in (prediction.name, gold.name):  # a list of Python
            items, gold_items = (
                list(n.args) if n.op == "tuple" else i for n, i in ((prediction, items), (gold, gold_items))
            )
        if "set" in (prediction.op, gold.op) or "or" in (prediction.name, gold.name):
            items, gold_items = self.distinct(items), self.distinct(gold_items)
        if len(items) != len(gold_items):
            return False
        if labels_order(labels, gold_labels):
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
            if len(a) != len(b):
                return False
            if prediction.name or gold.name:  # times; a.m. and p.m. may be left out on one side
                halves = {prediction.name[5:], gold.name[5:]} - {""}
                return len(halves) < 2 and [self.exact.key(x) for x in a] == [self.exact.key(x) for x in b]
            pairs = zip(a[1:], b[1:], strict=True)
            return all(self.scalar(Node("mul", (x, b[0])), Node("mul", (y, a[0]))) for x, y in pairs)
        if "ratio" in kinds:
            ratio, other = (prediction, gold) if prediction.op == "ratio" else (gold, prediction)
            return len(ratio.args) == 2 and other.op in ("div", "num") and self.scalar(Node("div", ratio.args), other)
        if kinds == {"piecewise"}:
            return self.pieces(prediction, gold)
        if "text" in kinds:
            return False  # equal texts have equal keys
        if kinds & {"chain", "builder", "union", "inter", "minus"}:
            return False
        return self.scalar(prediction, gold)

    def pieces(self, prediction: Node, gold: Node) -> bool:
        """Each value holds under the same condition; "otherwise" is whatever condition is left."""
        self.reach("structure")
        if len(prediction.args) != len(gold.args):
            return False
        left = list(gold.args)
        rest: list[Node] = []
        for row in prediction.args:
            value, condition = row.args
            partners = (r for r in left if self.same(condition, r.args[1]) and self.same(value, r.args[0]))
            partner = next(partners, None)
            if partner is None:
                rest.append(row)
            else:
                left.remove(partner)
        if not rest:
            return True
        otherwise = any(row.args[1].op == "text" and row.args[1].name in _OTHERWISE for row in (*rest, *left))
        return len(rest) == 1 and otherwise and self.same(rest[0].args[0], left[0].args[0])

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
        return len(a) == len(b) and all(self.same_item(x, y) for x, y in zip(a, b, strict=True))

    def same_item(self, a: Node, b: Node) -> bool:
        """Two items; inside a collection, a set of one is not its member."""
        return (a.op == "set") == (b.op == "set") and self.same(a, b)

    def in_any_order(self, a: list[Node], b: list[Node]) -> bool:
        """Each item of either has a partner in the other. Identical ones pair first: they cost nothing."""
        if len(a) != len(b):
            return False
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
            partner = next((r for r in rest if self.same_item(item, r)), None)
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
    def parametric_sets(self, pair: list[Node], parameters: list[str]) -> bool:
        """Sets whose ends depend on parameters: the same at several values of these."""
        from falcon_h1r.verifier.values.algebra import many_digit_sets

        num_same = 0
        for values in _PARAMETER_VALUES:
            setting = {name: number(value) for name, value in zip(parameters, values, strict=False)}
            builder = many_digit_sets(self.meter())
            try:
                sets = [builder.build(substituted(node, setting)) for node in pair]
            except NotNumeric:
                continue  # ends in the wrong order
            if not same_set(*sets):
                return False
            num_same += 1
        return num_same > 1 and len(parameters) <= len(_PARAMETER_VALUES[0])

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
        from falcon_h1r.verifier.values.algebra import many_digit_sets

        parameters = free_symbols(pair[0]) & free_symbols(pair[1]) - _UNKNOWNS
        if parameters and max(map(num_variables, pair)) > 1:
            return self.parametric_sets(pair, sorted(parameters))
        builder = many_digit_sets(self.meter())
        try:
            return same_set(builder.build(pair[0]), builder.build(pair[1]))
        except NotNumeric:
            return False


def _turned(chain: Node) -> Node:
    """a < b <= c as c >= b > a."""
    return Node("chain", chain.args[::-1], name=" ".join(TURNED.get(n, n) for n in reversed(chain.name.split())))


def _interval_beside_values(one: Node, other: Node) -> bool:
    r"""x \in (3, 7) against 3, 7: what a variable ranges over is no pair of values."""
    if one.op != "chain" or one.name != "in" or one.args[0].op != "sym" or not one.args[0].name.islower():
        return False
    return one.args[1].op == "tuple" and other.op == "list" and not is_set(other)


def _conjunction(conditions: tuple[Node, ...]) -> Node:
    """Conditions as one."""
    return conditions[0] if len(conditions) == 1 else Node("list", conditions, name="and")


def _with_arguments_of(prediction: Node, gold: Node) -> Node:
    """The value of a labelled function in the arguments of another: f(t) = t^2 in x."""
    arguments, gold_arguments = function_arguments(prediction.args[0]), function_arguments(gold.args[0])
    value = without_label(prediction)
    if arguments == gold_arguments or len(arguments) != len(gold_arguments):
        return value
    if not all(name.isalpha() for name in (*arguments, *gold_arguments)):
        return value
    return renamed(value, dict(zip(arguments, gold_arguments, strict=True)))


UNREADABLE = (NotationError, Undefined, NotNumeric)
