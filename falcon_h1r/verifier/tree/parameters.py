"""Names that an answer is free to choose: integers k, constants of integration, arguments of functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from falcon_h1r.verifier.tree.node import Node, free_symbols
from falcon_h1r.verifier.tree.rewrite import is_equation, substituted, without_label

_MAX_RENAMED = 3
_CONSTANTS = frozenset({"C", "c", "K", "k", "C_0", "C_1", "C_2", "C_3", "c_0", "c_1", "c_2", "c_3", *"ABD"})
_VARIABLES = frozenset((*"xyztuvwsrn", "theta", "phi"))
_CAPITALS = frozenset("ABD")
_FAMILY_LETTERS = _CONSTANTS - {"D"} | {"a", "b", "m", "alpha", "beta", "lambda"}
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
    arguments = [a for a in function_arguments(node.args[0]) if a.isalpha() and "(" in node.args[0].name]
    return free_symbols(node.args[1]) - set(arguments) if arguments else frozenset()


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The tree with variables renamed."""
    return substituted(node, {old: Node("sym", name=new) for old, new in names.items()})


def _are_constants(own: list[str], others: list[str], prediction: Node, gold: Node) -> bool:
    """Whether these are arbitrary constants by their letters and by where they stand: + C, or in front of a term."""
    if not {*own, *others} <= _CONSTANTS:
        return False
    if {*own, *others} & _CAPITALS:  # A and B only in the place of C_1 and C_2
        indexed = [all("_" in name for name in names) for names in (own, others)]
        if len(own) < 2 or indexed[0] == indexed[1]:
            return False
    return all(_stands_as_constant(name, tree) for names, tree in ((own, prediction), (others, gold)) for name in names)


def _stands_as_constant(name: str, answer: Node) -> bool:
    """Whether a name stands as an arbitrary constant does: small letters once and added, beside one variable; C and
    letters with an index anywhere but in a function; other capitals as a factor of a term.
    """
    value = without_label(answer)
    terms = value.args if value.op == "add" else (value,)
    constant = Node("sym", name=name)
    others = free_symbols(value) - _CONSTANTS
    if any(constant in f.walk() for f in value.walk() if f.op == "func"):
        return False
    if name == "C" or "_" in name:
        return bool(others)
    if sum(node == constant for node in value.walk()) != 1:
        return False
    if constant in terms:
        return len(others) == 1 and others <= _VARIABLES
    return not name.islower() and any(term.op == "mul" and constant in term.args for term in terms) and len(terms) > 1


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
    bare = {*_bare(prediction), *_bare(gold)}
    constants = not {*own, *others} & bare and _are_constants(own, others, prediction, gold)
    lines = {*own, *others} <= _LINE_PARAMETERS and all(without_label(n).op in _POINTS for n in (prediction, gold))
    families = (
        {*own, *others} <= _FAMILY_LETTERS
        and set(own) <= function_parameters(prediction)
        and set(others) <= function_parameters(gold)
    )
    if not (declared or constants or families or lines):
        return
    for order in itertools.permutations(others):
        yield dict(zip(own, order, strict=True))
