"""What kind of answer a tree is, by its notation."""

from __future__ import annotations

import functools
import itertools
import re

from falcon_h1r.verifier.tree.node import Node, free_symbols
from falcon_h1r.verifier.tree.rewrite import expand_signs, is_equation, is_name, without_label

_ROOTS = frozenset(("x", "z", "r", "lambda"))  # letters of the roots of one equation: x_1, x_2


def all_differ(labels: list[str]) -> bool:
    """Whether each item has a name of its own, so that order matters; x_1 and x_2 are roots in any order."""
    return len(labels) > 1 and all(labels) and len({label.partition("_")[0] for label in labels}) == len(labels)


def labels_order(labels: list[str], others: list[str]) -> bool:
    """Whether both sides name their items by the same distinct names, and these are more than the roots x_1, x_2."""
    if len(labels) < 2 or not all(labels) or len(set(labels)) != len(labels) or sorted(labels) != sorted(others):
        return False
    letters = {label.partition("_")[0] for label in labels}
    return len(letters) > 1 or not letters <= _ROOTS


def same_function_label(a: Node, b: Node) -> bool:
    """Whether two labels may name one function: f(x) and y, or f(x) and g(x), but not f(x) and x."""
    if a.args[0].op != "sym" or b.args[0].op != "sym":
        return False
    names = [a.args[0].name, b.args[0].name]
    if all(re.fullmatch(r"[A-Za-z]+_[a-z]", name) for name in names):  # a_n and a_m are one sequence
        return names[0][:-1] == names[1][:-1]
    arguments = [name.partition("(")[2].rstrip(")") for name in names]
    if all(arguments) and any("|" in argument for argument in arguments):
        return names[0] == names[1]  # P(A|B) is not P(B|A)
    return any(arguments) and names[0] not in arguments and names[1] not in arguments


def num_variables(node: Node) -> int:
    """How many variables a tree has."""
    return len(free_symbols(node))


def value_symbols(node: Node) -> frozenset[str]:
    """Variables of an answer's values, without what only labels them."""
    items = node.args if node.op in ("list", "set") else (node,)
    return frozenset().union(*(free_symbols(without_label(item)) for item in items))


def with_conditions(node: Node) -> tuple[Node, tuple[Node, ...]]:
    """(value, conditions) of "ln x^2, x > 0": one value, then inequalities in its own variables alone."""
    if node.op != "list" or len(node.args) < 2 or node.name == "or":
        return node, ()
    value, *conditions = node.args
    if is_set(value) or value.op in ("list", "set", "text") or not all(_is_inequality(c) for c in conditions):
        return node, ()
    names = free_symbols(value)
    if not all(free_symbols(c) <= names for c in conditions):
        return node, ()
    return value, tuple(conditions)


def _is_inequality(node: Node) -> bool:
    return node.op == "chain" and not set(node.name.split()) & {"=", "in", "notin"}


def is_set(node: Node) -> bool:
    """Whether the notation says "a set of reals" rather than a list or a point."""
    if node.op in ("union", "inter", "minus", "builder"):
        return True
    if node.op == "tuple":
        return len(node.args) == 2 and node.name != "()"
    if node.op == "sym":
        return node.name == "set:R"
    if node.op == "chain":
        return not is_equation(node)
    if node.op == "list":  # conditions, or pieces of a union
        return any(a.op == "chain" and not is_equation(a) for a in node.args)
    return node.op == "add" and any(is_set(a) or a.op == "set" for a in node.args)


def as_set(node: Node) -> Node:
    """A list of values against a set is a set; a label before an interval goes."""
    if node.op == "list" and node.args and all(a.op == "tuple" and len(a.args) == 2 for a in node.args):
        return functools.reduce(lambda a, b: Node("union", (a, b)), node.args)
    if node.op == "list" and not is_set(node) and not any(a.op == "chain" for a in node.args):
        return Node("set", tuple(itertools.chain.from_iterable(expand_signs(a) for a in node.args)))
    if node.op == "chain" and node.name == "in" and is_name(node.args[0]):
        return node.args[1]
    if node.op == "chain" and set(node.name.split()) <= {"<", "<=", ">", ">="}:  # the range of y/x or f(x) is a set
        varying = [position for position, side in enumerate(node.args) if free_symbols(side)]
        if len(varying) == 1 and num_variables(node) > 1:
            sides = list(node.args)
            sides[varying[0]] = Node("sym", name="range")
            return Node("chain", tuple(sides), name=node.name)
    return node
