"""Names that an answer is free to choose: integers k, constants of integration, arguments of functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from falcon_h1r.verifier.tree.node import Node, free_symbols
from falcon_h1r.verifier.tree.rewrite import is_equation, substituted, without_label

_MAX_RENAMED = 3
_CONSTANTS = frozenset({"C", "c", "K", "k", "C_0", "C_1", "C_2", "C_3", "c_0", "c_1", "c_2", "c_3", *"ABD"})
_CAPITALS = frozenset("ABD")
_LINE_PARAMETERS = frozenset(("t", "s", "k", "lambda", "mu"))  # of the points of a line: (3t, 4t)
_POINTS = ("tuple", "list")


def opened(node: Node) -> tuple[Node, frozenset[str], str]:
    """(answer, declared parameters, their domain: Z, N, C for any other, "" for none)."""
    if node.op != "given":
        return node, frozenset(), ""
    domain, _, names = node.name.partition(":")
    return node.args[0], frozenset(names.split()), domain


def names_a_sequence(node: Node) -> bool:
    """Whether an answer's label has an argument or an index, a_n or f(n): then its value is a function of that."""
    return is_equation(node) and node.args[0].op == "sym" and any(c in node.args[0].name for c in "_(")


def function_arguments(label: Node) -> list[str]:
    """["x", "y"] of f(x, y), ["n"] of a_n; [] of any other label."""
    if label.op == "sym" and re.fullmatch(r"[A-Za-z]+_[a-z]", label.name):
        return [label.name[-1]]
    return label.name.partition("(")[2].rstrip(")").split(",") if label.op == "sym" and "(" in label.name else []


def function_parameters(node: Node) -> frozenset[str]:
    """Names in f(x) = ... that are not its arguments: the family's free constants."""
    if not is_equation(node) or len(node.args) != 2:
        return frozenset()
    arguments = [a for a in function_arguments(node.args[0]) if a.isalpha()]
    return free_symbols(node.args[1]) - set(arguments) if arguments else frozenset()


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The tree with variables renamed."""
    return substituted(node, {old: Node("sym", name=new) for old, new in names.items()})


def _are_constants(names: set[str], shared: frozenset[str]) -> bool:
    """Whether these are usual letters for constants of integration beside these other variables.

    A constant stands beside a variable in small type; a, b or A, B beside it say that it continues an alphabet.
    """
    if not names <= _CONSTANTS or not any(name.islower() for name in shared):
        return False
    lower_case = {name for name in names if name in ("c", "k")}
    return not (lower_case and shared & {"a", "b", "m", "E"}) and not (names & _CAPITALS and shared & {*"ABCD"})


def _bare(node: Node) -> set[str]:
    """Names that are answers by themselves: points, options."""
    items = node.args if node.op in ("list", "set", "tuple") else (node,)
    return {item.name for item in items if item.op == "sym"}


def renamings(
    names: frozenset[str],
    gold_names: frozenset[str],
    free: frozenset[str],
    gold_free: frozenset[str],
    prediction: Node,
    gold: Node,
) -> Iterator[Mapping[str, str]]:
    """Ways to give the prediction's own parameters the gold's names; none where a name is not free to choose.

    A name is free when either answer declares it, when it is a parameter of a family of functions in both, or when
    both sides write a usual letter for an arbitrary constant.
    """
    own, others = sorted(names - gold_names), sorted(gold_names - names)
    shared = sorted(name for name in names & gold_names if "_" in name and name in _CONSTANTS)
    if not own and not others and 1 < len(shared) <= _MAX_RENAMED:  # C_1 and C_2 may change places
        for order in itertools.permutations(shared):
            yield dict(zip(shared, order, strict=True))
        return
    if len(own) != len(others) or not 0 < len(own) <= _MAX_RENAMED:
        return
    declared = set(own) <= free or set(others) <= gold_free
    constants = _are_constants({*own, *others}, names & gold_names) and not {*own, *others} & {
        *_bare(prediction),
        *_bare(gold),
    }
    lines = {*own, *others} <= _LINE_PARAMETERS and all(without_label(n).op in _POINTS for n in (prediction, gold))
    families = set(own) <= function_parameters(prediction) and set(others) <= function_parameters(gold)
    if not (declared or constants or families or lines):
        return
    for order in itertools.permutations(others):
        yield dict(zip(own, order, strict=True))
