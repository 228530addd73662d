"""A second opinion on the answers: sympy reads the question itself, knowing nothing of its terms."""

from __future__ import annotations

import ast
import re
from typing import Any

from falcon_h1r.types import InputError

_TRANSLATION = (
    (r"\\frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)"),
    (r"\\times ?", "*"),
    (r"\\bmod", "%"),
    (r"\\gcd", "gcd"),
    (r"(\d)x", r"\1*x"),
)


def agrees_with_sympy(question: str, answer: str) -> bool:
    """Whether sympy computes, or solves, what the question asks and gets the answer.

    Raises:
        InputError: if the question is none of the synthetic ones.
    """
    import sympy

    if found := re.fullmatch(r"Compute (.+)\.", question):
        results = [_build(found[1], sympy)]
    elif found := re.fullmatch(r"Solve (.+)=(.+) for x\.", question):
        difference = _build(found[1], sympy) - _build(found[2], sympy)
        slope, intercept = sympy.Poly(difference, sympy.Symbol("x")).all_coeffs()  # a ValueError unless it is linear
        results = [-intercept / slope]
    else:
        raise InputError(f"not a synthetic question: {question[:80]!r}")
    return bool(results == [_build(answer, sympy)])


def _build(latex: str, sympy: Any) -> Any:
    """A sympy expression from the little LaTeX that the questions use. The text is parsed, never executed."""
    text = latex
    for pattern, replacement in _TRANSLATION:
        text = re.sub(pattern, replacement, text)
    try:
        return _build_node(ast.parse(text, mode="eval").body, sympy)
    except (SyntaxError, KeyError):
        raise InputError(f"not the notation of a synthetic problem: {latex[:80]!r}") from None


def _build_node(node: ast.expr, sympy: Any) -> Any:
    if isinstance(node, ast.BinOp):
        left, right = _build_node(node.left, sympy), _build_node(node.right, sympy)
        operators = {
            ast.Add: sympy.Add,
            ast.Sub: lambda a, b: a - b,
            ast.Mult: sympy.Mul,
            ast.Div: lambda a, b: a / b,
            ast.Mod: sympy.Mod,
        }
        return operators[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_build_node(node.operand, sympy)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return sympy.Integer(node.value)
    if isinstance(node, ast.Name) and node.id == "x":
        return sympy.Symbol("x")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "gcd":
        return sympy.gcd(*(_build_node(argument, sympy) for argument in node.args))
    raise KeyError(type(node).__name__)
