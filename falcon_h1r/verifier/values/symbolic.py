"""Trees to sympy objects, for what has no value term by term: limits, integrals, unbounded sums.

Only constructors of sympy are called, on nodes that we parsed; text never reaches it. These calls are not
bounded by a count of operations: outside a worker process they may take long, inside one the deadline ends
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy

from falcon_h1r.verifier.tree.node import BudgetExceeded, Node, NotNumeric, free_symbols
from falcon_h1r.verifier.values.exact import ExactEvaluator

_MAX_NODES = 120
_MAX_NESTED = 8  # functions in each other
_MAX_EXPONENT = 200  # of what is no number: sympy would expand it
_DIGITS = 40
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec,
    "csc": sympy.csc,
    "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh, "arcsin": sympy.asin, "arccos": sympy.acos,
    "arctan": sympy.atan, "arcsinh": sympy.asinh, "arccosh": sympy.acosh, "arctanh": sympy.atanh,
    "ln": sympy.log,
    "log": sympy.log, "abs": sympy.Abs, "factorial": sympy.factorial, "binom": sympy.binomial,
    "floor": sympy.floor,
    "ceil": sympy.ceiling, "root": sympy.real_root,
}  # fmt: skip
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}


def to_sympy(node: Node) -> Any:
    """The sympy expression of a tree; the tree's powers and factorials have been sized before."""
    if node.op == "num":
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if node.op == "sym":
        return _CONSTANTS.get(node.name) or sympy.Symbol(node.name)
    if node.op == "big":
        return _big_operator(node)
    args = [to_sympy(a) for a in node.args]
    if node.op == "add":
        return sympy.Add(*args)
    if node.op == "mul":
        return sympy.Mul(*args)
    if node.op == "div":
        return sympy.Mul(args[0], sympy.Pow(args[1], -1))
    if node.op == "pow":
        return sympy.Pow(args[0], args[1])
    if node.op == "func" and node.name in _FUNCTIONS:
        return _FUNCTIONS[node.name](*args)
    raise NotNumeric(f"sympy has no {node.op} {node.name}")


def _big_operator(node: Node) -> Any:
    kind, _, name = node.name.partition(":")
    variable = sympy.Symbol(name)
    body, lower, upper = (to_sympy(a) for a in node.args)
    if kind == "lim":
        return sympy.Limit(body, variable, lower)
    operator = {"sum": sympy.Sum, "prod": sympy.Product, "int": sympy.Integral}[kind]
    return operator(body, (variable, lower, upper))


def same_by_sympy(a: Node, b: Node) -> bool:
    """Whether sympy, after working out limits, sums and integrals, finds the difference to be zero."""
    if sum(1 for tree in (a, b) for _ in tree.walk()) > _MAX_NODES:
        raise BudgetExceeded("too large for sympy")
    for tree in (a, b):
        _check_sizes(tree, 0)
    sizes = ExactEvaluator()
    for tree in (a, b):
        sizes.key(tree)  # raises before sympy would compute a huge power, which it does when it is built
    try:
        return _vanishes((to_sympy(a) - to_sympy(b)).doit())
    except _SYMPY_COMPLAINTS as error:
        raise BudgetExceeded(f"sympy gave up: {type(error).__name__}") from error


def _check_sizes(node: Node, nested: int) -> None:
    """Refuse what sympy would work on for long: high powers of expressions, functions of functions of functions."""
    nested += node.op == "func"
    if nested > _MAX_NESTED:
        raise BudgetExceeded(f"more than {_MAX_NESTED} functions in each other")
    high = node.op == "pow" and node.args[1].op == "num" and abs(node.args[1].value) > _MAX_EXPONENT
    if high and free_symbols(node.args[0]):
        raise BudgetExceeded(f"an exponent over {_MAX_EXPONENT}")
    for arg in node.args:
        _check_sizes(arg, nested)


# What sympy raises on expressions that it does not master; none of it says anything about the answer.
_SYMPY_COMPLAINTS = (
    ValueError, TypeError, ArithmeticError, NotImplementedError, AttributeError, LookupError, RecursionError,
)  # fmt: skip


def _vanishes(difference: Any) -> bool:
    if difference == 0:
        return True
    if difference.has(sympy.Limit, sympy.Integral, sympy.nan, sympy.zoo):
        return False
    if difference.is_number and not difference.is_finite:
        return False
    if difference.is_Rational:
        return False
    if difference.is_number:
        # relative to the terms: a tiny number is not zero
        scale = max(abs(term.evalf(_DIGITS)) for term in sympy.Add.make_args(difference))
        return bool(abs(difference.evalf(_DIGITS)) < scale * sympy.Float(10) ** (8 - _DIGITS))
    return bool(sympy.simplify(difference) == 0)
