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
    """The tree has no number or no set of reals that we can work out: a limit, an integral, a set in a product."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `op` says what it is, and which fields count beside `args`:

    num        value; digits: significant digits of a decimal as written, 0 of any other number
    sym        name; "set:R" and its like are sets of numbers
    text       name: the words
    add, mul, div, pow, percent, degree
    func       name
    pm         a term with a sign in front; name "pm" or "mp"
    based      a numeral; name: its base
    mod        residue, modulus
    big        body, lower, upper; name "sum:k", "prod:k", "lim:x" or "int:x", behind the colon the bound variable
    ratio      name "clock", "clockam" or "clockpm" of a time of day
    list       name: what joins the items, ",", "and" or "or"
    set
    tuple      name: its two brackets
    matrix     rows; name "det" of a determinant
    piecewise  rows of a value and its condition
    row        of a matrix or of cases
    chain      sides; name: the relations between them, joined by spaces. A label is a chain too: x = 5
    union, inter, minus
    builder    a condition; name: the variable
    given      an answer with the names that it declares; name: their domain, a colon, the names
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
