"""The syntax tree of an answer, and the budgets that keep its evaluation small.

Everything the verifier computes is computed from these nodes; model text never reaches an evaluator as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

# Sizes, not seconds: a loaded machine gives the same verdicts as an idle one.
MAX_ANSWER_CHARS = 8_000  # longer answers are compared as strings only
MAX_TOKENS = 1_500
MAX_DEPTH = 60  # three levels to a bracket: twenty brackets in each other
MAX_DIGITS = 2_000  # of one literal; Python itself refuses int() beyond 4300
MAX_BITS = 60_000  # of an exact integer: 2004! has 19,000
MAX_EXACT_WORK = 40_000_000  # limb products of all exact operations of one answer
MAX_NUMERIC_WORK = 3_000  # weighted nodes of one numeric evaluation
MAX_TOTAL_NUMERIC_WORK = 60_000  # of all evaluations of one comparison
MAX_ITEMS = 200  # of one list, and of what plus-minus signs expand to


class NotationError(ValueError):
    """The text is not an answer in a notation that we read."""


class BudgetExceeded(Exception):
    """Deciding would cost more than the verifier is willing to spend."""


class Undefined(ArithmeticError):
    """The expression has no value: division by zero, a pole, infinity minus infinity."""


class NotNumeric(Exception):
    """The expression cannot be evaluated to a number by us: a limit, an integral, a set inside a product."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `op` says which fields count:

    num (value, digits: significant digits if written as a decimal, else 0), sym (name), text (name),
    add, mul, div, pow, func (name), pm (name "pm" or "mp": a signed term), percent, degree, ratio,
    tuple (name: its two brackets), set, list, labels are chains: chain (name: relations joined by spaces),
    based (a numeral and, in name, its base), matrix (args are rows; name "det" for a determinant), row,
    union, inter, minus, builder, big (name "sum:k", "prod:k", "lim:x", "int:x"; args body, lower, upper).
    """

    op: str
    args: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    digits: int = 0

    def walk(self) -> Iterator[Node]:
        """This node and everything below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.args)


def number(value: int | Fraction) -> Node:
    """An exact number as a node."""
    return Node("num", value=Fraction(value))


def negative(node: Node) -> Node:
    """The node with its sign turned; a literal stays a literal, so that it keeps its digits."""
    if node.op == "num":
        return Node("num", value=-node.value, digits=node.digits)
    return Node("mul", (number(-1), node))


CONSTANTS = frozenset({"pi", "e", "i", "oo"})


def free_symbols(node: Node) -> frozenset[str]:
    """Names of the variables in the tree; an index bound by a sum, a limit or an integral is none."""
    names = {n.name for n in node.walk() if n.op == "sym" and n.name not in CONSTANTS and n.name[:4] != "set:"}
    bound = {n.name.partition(":")[2] for n in node.walk() if n.op == "big"}
    return frozenset(names - bound)


def contains(node: Node, *ops: str) -> bool:
    """Whether any node of the tree has one of these ops."""
    return any(n.op in ops for n in node.walk())
