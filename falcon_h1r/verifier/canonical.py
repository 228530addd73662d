"""One key per answer, for majority voting: answers that are equal by value share it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from falcon_h1r.verifier.equivalence import readings
from falcon_h1r.verifier.extract import extract_answer
from falcon_h1r.verifier.reading.notation import clean_parts, string_forms
from falcon_h1r.verifier.reading.options import option_letter
from falcon_h1r.verifier.tree.kinds import as_set, is_set, num_variables
from falcon_h1r.verifier.tree.node import MAX_ANSWER_CHARS, Node, NotNumeric, Undefined, free_symbols, negative
from falcon_h1r.verifier.tree.parameters import opened, renamed
from falcon_h1r.verifier.tree.relations import TURNED
from falcon_h1r.verifier.tree.rewrite import (
    as_matrix,
    evaluate_matrices,
    is_equation,
    items_of,
    label_of,
    named_coordinates,
    with_coordinates,
    without_label,
)
from falcon_h1r.verifier.values.exact import ExactEvaluator, size_bits

_KEY_DIGITS = 15
_NUM_KEY_POINTS = 3
_MAX_DENOMINATOR = 10_000  # of a number that is recognised as a fraction
_COORDINATES = frozenset("xyz")
_INFINITIES = {Node("sym", name="oo"): "oo", negative(Node("sym", name="oo")): "-oo"}
_COLLECTIONS = ("matrix", "row", "union", "inter", "chain", "piecewise", "mod")


def canonical_answer(prediction_text: str, after_think: bool = False, fallbacks: Sequence[str] = ()) -> str | None:
    r"""The canonical key of the answer, boxed or found by a fall-back: "1/2" for \frac{2}{4}, 0.5 and \frac12; None
    without one.

    Unlike `verify`, keys are an equivalence relation: 10% has its own, although it matches 10 and 0.1. Units
    and labels are dropped, lists and sets sorted, irrational constants keyed by fifteen digits, expressions
    in variables by their values at fixed points, sets of reals by where membership changes, formulas by their
    difference up to a factor. What a remark says is kept. What does not parse is keyed by its normalised string.
    """
    answer = extract_answer(prediction_text, after_think, fallbacks)
    if answer is None or not answer.strip():
        return None
    if len(answer) > MAX_ANSWER_CHARS:
        return answer.strip()
    key = string_forms(answer)[1]
    if letter := option_letter(key):
        return letter
    try:
        trees = readings(answer)
        remark = clean_parts(answer)[1]
        return _answer_key(trees[0]) + (remark.text if remark.domain != "Z" else "") if trees else key
    except Exception:  # too large, without a value, or a fault of ours: the string is the key, and voting goes on
        return key


def _answer_key(tree: Node) -> str:
    """The key of a whole answer; declared parameters have no names of their own."""
    node, parameters, _ = opened(tree)
    names = {name: f"§{index}" for index, name in enumerate(sorted(parameters))}
    return tree_key(evaluate_matrices(with_coordinates(renamed(node, names))))


def tree_key(node: Node) -> str:
    """The key of a tree: structure around the keys of its scalars."""
    if is_equation(node) and node.args[0].name in _COORDINATES and free_symbols(node.args[-1]) & _COORDINATES:
        return _equation_key(node)  # y = 2x + 3 is a line, not a value with a name
    node = as_matrix(named_coordinates(without_label(node)))
    if is_equation(node):
        return _equation_key(node)
    if node in _INFINITIES:
        return _INFINITIES[node]
    if node.op == "chain" and len(node.args) == 2 and node.name in TURNED and num_variables(node) > 1:
        return _equation_key(node)  # x + y <= 4 is no interval
    if is_set(node) and (key := _set_key(as_set(node))) is not None:
        return key
    if node.op in ("list", "set"):
        return _list_key(node)
    if node.op == "tuple":
        return node.name[0] + ", ".join(tree_key(a) for a in node.args) + node.name[1]
    if node.op == "matrix" and all(len(row.args) == 1 for row in node.args):  # a column is a vector
        return "(" + ", ".join(tree_key(row.args[0]) for row in node.args) + ")"
    if node.op == "percent":
        return tree_key(node.args[0]) + "%"
    if node.op == "ratio" and not node.name:
        return _ratio_key(node)
    if node.op in _COLLECTIONS:
        return f"{node.op}[{node.name}]({', '.join(tree_key(a) for a in node.args)})"
    expanded = items_of(node)[0]
    if len(expanded) > 1:
        return tree_key(Node("list", tuple(expanded)))
    return _scalar_key(node)


def _list_key(node: Node) -> str:
    """Items in order of their keys; items with names of their own in the order of the names, as a tuple."""
    labels = [label_of(item) for item in node.args]
    if node.op == "list" and len(labels) > 1 and all(labels) and len({name[:1] for name in labels}) == len(labels):
        named = sorted(zip(labels, node.args, strict=True), key=lambda pair: pair[0])
        return "(" + ", ".join(tree_key(item) for _, item in named) + ")"
    keys = [tree_key(item) for item in items_of(node)[0]]
    return "{" + ", ".join(sorted(set(keys) if node.op == "set" else keys)) + "}"


# ---------------------------------------------------------------------- scalars
def _scalar_key(node: Node) -> str:
    exact = ExactEvaluator()
    if exact.value(node) is not None or node.op in ("sym", "text"):
        return exact.key(node)
    names = free_symbols(node)
    values = _values(node, names)
    if not values:
        return exact.key(node)
    if not names:
        return _number_key(values[0])
    keys = [_number_key(value) for value in values]
    if len(set(keys)) == 1:
        return keys[0]  # x + 1 - x
    return f"{' '.join(sorted(names))}~{' '.join(keys)}"


def _values(node: Node, names: frozenset[str]) -> list[Any]:
    """Values at the first points that have one, and beyond the breaks of functions in pieces."""
    from falcon_h1r.verifier.values.numeric import LOW_DIGITS, Meter, NumericEvaluator
    from falcon_h1r.verifier.values.probe import breaking_points, points

    meter = Meter()
    values: list[Any] = []
    for found, wanted in ((points(names), _NUM_KEY_POINTS), (breaking_points(names, node)[:2], 2)):
        seen = 0
        for point in found:
            if seen == wanted:
                break
            try:
                values.append(NumericEvaluator(LOW_DIGITS, point, meter)(node))
                seen += 1
            except Undefined:
                continue
    return values


def _number_key(value: Any) -> str:
    """A many-digit number by fifteen digits; one that is a fraction with a small denominator as that."""
    from falcon_h1r.verifier.values.numeric import LOW_DIGITS, context

    mp = context(LOW_DIGITS)
    tiny = mp.mpf(10) ** -22 * max(1, abs(value))
    parts = []
    for part in (mp.re(value), mp.im(value)):
        if abs(part) <= tiny:
            parts.append("0")
            continue
        near = _near_fraction(mp, part)
        parts.append(f"~{mp.nstr(part, _KEY_DIGITS)}" if near is None else str(near))
    return parts[0] if parts[1] == "0" else f"{parts[0]}+{parts[1]}i"


def _near_fraction(mp: Any, value: Any) -> Fraction | None:
    if abs(value) > 10**12:
        return None
    from falcon_h1r.verifier.values.algebra import as_fraction

    exact = as_fraction(value)
    near = exact.limit_denominator(_MAX_DENOMINATOR)
    return near if abs(exact - near) <= Fraction(1, 10**22) * max(Fraction(1), abs(near)) else None


def _ratio_key(node: Node) -> str:
    exact = ExactEvaluator()
    values = [value for value in map(exact.value, node.args) if value is not None and size_bits(value) < 4_000]
    if len(values) < len(node.args) or not values[0]:
        return f"ratio({', '.join(tree_key(a) for a in node.args)})"
    return f"ratio({', '.join(str(value / values[0]) for value in values)})"


# ---------------------------------------------------------------------- formulas and sets
def _equation_key(node: Node) -> str:
    """A formula by the values of its difference at fixed points, relative to the first that is not zero; an inequality
    turns with the sign of that.
    """
    sides: Sequence[Node] = node.args
    difference = Node("add", (sides[0], negative(sides[-1])))
    names = free_symbols(difference)
    values = [value for value in _values(difference, names) if abs(value) > 0]
    if len(sides) != 2 or len(values) < _NUM_KEY_POINTS:
        return ExactEvaluator().key(node)
    relation = node.name if node.name == "=" or values[0].real > 0 else TURNED[node.name]
    return f"{' '.join(sorted(names))}{relation}{' '.join(_number_key(value / values[0]) for value in values[1:])}"


def _set_key(node: Node) -> str | None:
    """A set of reals by its changes and what is in it at and between them; None for what is none."""
    from falcon_h1r.verifier.values.algebra import many_digit_sets
    from falcon_h1r.verifier.values.numeric import Meter

    try:
        members = many_digit_sets(Meter()).build(node)
    except (NotNumeric, Undefined):
        return None
    changes = sorted(members.changes)
    distinct = [c for k, c in enumerate(changes) if k == 0 or c - changes[k - 1] > 1e-18 * max(1, abs(c))]
    if not distinct:
        return f"set[{members.contains(0)}]"
    between = [distinct[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(distinct)), distinct[-1] + 1]
    inside = "".join("01"[members.contains(x)] for x in between)
    at = ["01"[members.contains(c)] for c in distinct]
    changing = [k for k in range(len(distinct)) if not inside[k] == at[k] == inside[k + 1]]
    ends = [_number_key(distinct[k]) for k in changing]
    pattern = inside[0] + "".join(at[k] + inside[k + 1] for k in changing)
    if pattern in _INTERVALS:  # written like a pair, which an open interval could be as well
        low = "-oo" if pattern[0] == "1" else ends[0]
        high = "oo" if pattern[-1] == "1" else ends[-1]
        return _INTERVALS[pattern][0] + f"{low}, {high}" + _INTERVALS[pattern][1]
    return f"set[{pattern}]({', '.join(ends)})"


# by membership before, at and behind each change
_INTERVALS = {
    "00100": "()", "01110": "[]", "01100": "[)", "00110": "(]", "100": "()", "110": "(]", "001": "()", "011": "[)",
}  # fmt: skip
