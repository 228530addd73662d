"""One key per answer, for majority voting: answers that are equal by value share it."""

from __future__ import annotations

from falcon_h1r.verifier.compare import UNREADABLE
from falcon_h1r.verifier.equivalence import readings
from falcon_h1r.verifier.extract import extract_boxed
from falcon_h1r.verifier.reading.notation import clean, compact
from falcon_h1r.verifier.tree.node import MAX_ANSWER_CHARS, BudgetExceeded, Node, Undefined, free_symbols
from falcon_h1r.verifier.tree.parameters import opened
from falcon_h1r.verifier.tree.rewrite import evaluate_matrices, items_of, with_coordinates, without_label
from falcon_h1r.verifier.values.exact import ExactEvaluator

_KEY_DIGITS = 15
_NUM_KEY_POINTS = 2
_COLLECTIONS = ("list", "set", "tuple", "matrix", "row", "ratio", "union", "inter", "chain")


def canonical_answer(prediction_text: str, after_think: bool = False) -> str | None:
    r"""The canonical key of the boxed answer: "1/2" for \frac{2}{4}, 0.5 and \frac12; None without an answer.

    Unlike `verify`, keys are an equivalence relation: 10% has its own, although it matches 10 and 0.1. Units
    and labels are dropped, lists and sets sorted, irrational constants keyed by fifteen digits, expressions
    in variables by their values at two fixed points. What does not parse is keyed by its normalised string.
    """
    answer = extract_boxed(prediction_text, after_think)
    if answer is None or not answer.strip():
        return None
    if len(answer) > MAX_ANSWER_CHARS:
        return answer.strip()
    try:
        trees = readings(answer)
        if trees:
            return tree_key(evaluate_matrices(trees[0]))
    except (BudgetExceeded, *UNREADABLE):
        pass  # too large or without a value: the string is the key
    return compact(clean(answer))


def tree_key(node: Node) -> str:
    """The key of a tree: structure around the keys of its scalars."""
    node = with_coordinates(without_label(opened(node)[0], any_side=True))
    if node.op in ("list", "set"):
        keys = [tree_key(item) for item in items_of(node, any_side=True)[0]]
        return "{" + ", ".join(sorted(set(keys) if node.op == "set" else keys)) + "}"
    if node.op == "tuple":
        return node.name[0] + ", ".join(tree_key(a) for a in node.args) + node.name[1]
    if node.op == "percent":
        return tree_key(node.args[0]) + "%"
    if node.op in _COLLECTIONS:
        return f"{node.op}[{node.name}]({', '.join(tree_key(a) for a in node.args)})"
    expanded = items_of(node)[0]
    if len(expanded) > 1:
        return tree_key(Node("list", tuple(expanded)))
    return _scalar_key(node)


def _scalar_key(node: Node) -> str:
    exact = ExactEvaluator()
    if exact.value(node) is not None or node.op in ("sym", "text"):
        return exact.key(node)
    from falcon_h1r.verifier.values.numeric import LOW_DIGITS, Meter, NumericEvaluator, context
    from falcon_h1r.verifier.values.probe import points

    names = free_symbols(node)
    mp = context(LOW_DIGITS)
    values = []
    meter = Meter()
    for point in points(names):
        try:
            value = NumericEvaluator(LOW_DIGITS, point, meter)(node)
        except Undefined:
            continue
        if (value and abs(value) > mp.mpf(10) ** -20) or not names:
            values.append(mp.nstr(value, _KEY_DIGITS))
        if len(values) == _NUM_KEY_POINTS:
            break
    if not values:
        return exact.key(node)
    return f"{' '.join(sorted(names))}~{' '.join(values)}" if names else f"~{values[0]}"
