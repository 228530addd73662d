"""Polynomials and rational functions in one variable, for where conditions change: coefficients and real roots."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from falcon_h1r.verifier.tree.node import BudgetExceeded, Node, NotNumeric, free_symbols

MAX_DEGREE = 12
_TINY = 1e-25  # a many-digit coefficient below it is rounding
Polynomial = list[Any]  # coefficients, constant first, no trailing zeros: Fractions, or many-digit numbers beside them


def _trim(p: Polynomial) -> Polynomial:
    while p and (p[-1] == 0 if isinstance(p[-1], Fraction) else abs(p[-1]) < _TINY):
        p = p[:-1]
    if len(p) > MAX_DEGREE + 1:
        raise BudgetExceeded(f"a polynomial of degree over {MAX_DEGREE}")
    return p


def _product(a: Any, b: Any) -> Any:
    """A product of coefficients; mpmath does not know Fractions."""
    if isinstance(a, Fraction) and not isinstance(b, Fraction):
        a, b = b, a
    return a * b.numerator / b.denominator if isinstance(b, Fraction) and not isinstance(a, Fraction) else a * b


def _sum(a: Any, b: Any) -> Any:
    if isinstance(a, Fraction) and not isinstance(b, Fraction):
        a, b = b, a
    if isinstance(b, Fraction) and not isinstance(a, Fraction):
        return (a * b.denominator + b.numerator) / b.denominator
    return a + b


def _times(p: Polynomial, q: Polynomial) -> Polynomial:
    product = [Fraction(0)] * max(len(p) + len(q) - 1, 0)
    for (i, a), (j, b) in itertools.product(enumerate(p), enumerate(q)):
        product[i + j] = _sum(product[i + j], _product(a, b))
    return _trim(product)


def _plus(p: Polynomial, q: Polynomial) -> Polynomial:
    return _trim([_sum(a, b) for a, b in itertools.zip_longest(p, q, fillvalue=Fraction(0))])


def rational_function(node: Node, variable: str, real: Callable[[Node], Any]) -> tuple[Polynomial, Polynomial]:
    """Numerator and denominator of a tree in one variable; NotNumeric for what is no rational function.

    `real` gives the value of a constant part that is not rational.
    """
    one = [Fraction(1)]
    if node.op == "num":
        return _trim([node.value]), one
    if node.op == "sym" and node.name == variable:
        return [Fraction(0), Fraction(1)], one
    if node.op in ("add", "mul", "div"):
        parts = [rational_function(a, variable, real) for a in node.args]
        top, bottom = parts[0]
        for other_top, other_bottom in parts[1:]:
            if node.op == "add":
                top = _plus(_times(top, other_bottom), _times(other_top, bottom))
                bottom = _times(bottom, other_bottom)
            elif node.op == "mul":
                top, bottom = _times(top, other_top), _times(bottom, other_bottom)
            else:
                top, bottom = _times(top, other_bottom), _times(bottom, other_top)
        return top, bottom
    if node.op == "pow" and node.args[1].op == "num" and node.args[1].value.denominator == 1:
        exponent = node.args[1].value.numerator
        if abs(exponent) > MAX_DEGREE:
            raise BudgetExceeded(f"a power over {MAX_DEGREE} in a condition")
        top, bottom = rational_function(node.args[0], variable, real)
        if exponent < 0:
            top, bottom, exponent = bottom, top, -exponent
        powers = one, one
        for _ in range(exponent):
            powers = _times(powers[0], top), _times(powers[1], bottom)
        return powers
    if variable not in free_symbols(node):
        return _trim([real(node)]), one
    raise NotNumeric("not a rational function")


def _divided(p: Polynomial, q: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder."""
    quotient = [Fraction(0)] * max(len(p) - len(q) + 1, 0)
    rest = list(p)
    while len(rest) >= len(q):
        factor, shift = rest[-1] / q[-1], len(rest) - len(q)
        quotient[shift] = factor
        rest = _trim([c - factor * (q[i - shift] if i >= shift else 0) for i, c in enumerate(rest)][:-1])
    return quotient, rest


def real_roots(p: Polynomial) -> list[Any]:
    """The real roots, each once, to many digits. Repeated factors are divided out first: they spoil
    convergence.
    """
    if len(p) < 2:
        return []
    from falcon_h1r.verifier.values.numeric import LOW_DIGITS, context

    mp = context(LOW_DIGITS)
    squarefree = p
    if all(isinstance(c, Fraction) for c in p):
        divisor, rest = p, _trim([i * c for i, c in enumerate(p)][1:])
        while rest:
            divisor, rest = rest, _divided(divisor, rest)[1]
        squarefree = _divided(p, divisor)[0]
    coefficients = [mp.mpf(c.numerator) / c.denominator if isinstance(c, Fraction) else c for c in reversed(squarefree)]
    try:
        roots = mp.polyroots(coefficients, maxsteps=200, extraprec=200)
    except mp.NoConvergence as error:
        raise BudgetExceeded("roots that do not converge") from error
    return [mp.re(r) for r in roots if abs(mp.im(r)) <= mp.mpf(10) ** -20 * max(1, abs(r))]
