"""Exact values in integers and fractions, and canonical keys of trees. Every size is estimated before it is
computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from falcon_h1r.verifier.tree.node import MAX_BITS, MAX_EXACT_WORK, BudgetExceeded, Node, Undefined

_MAX_FACTORIAL = 4_000
_MAX_ROOT = 64
_LIMB_BITS = 30


def size_bits(value: Fraction) -> int:
    """Bits of the longer of numerator and denominator."""
    return max(value.numerator.bit_length(), value.denominator.bit_length(), 1)


class ExactEvaluator:
    """Exact value and canonical key of a tree, bottom up, within one budget of limb products."""

    def __init__(self) -> None:
        self.work = 0

    def spend(self, *values: Fraction) -> None:
        """Account for one operation on these operands; a product and a gcd are quadratic in limbs."""
        bits = sum(size_bits(v) for v in values)
        if bits > 2 * MAX_BITS:
            raise BudgetExceeded(f"integers of more than {MAX_BITS} bits")
        self.work += (bits // _LIMB_BITS + 1) ** 2
        if self.work > MAX_EXACT_WORK:
            raise BudgetExceeded("exact arithmetic beyond its budget")

    def value(self, node: Node) -> Fraction | None:
        """The rational value of the tree; None where it has none that exact rules find."""
        return self.reduce(node)[0]

    def key(self, node: Node) -> str:
        """One string for trees that differ only by order, brackets, and exact arithmetic on parts."""
        value, key = self.reduce(node)
        return key if value is None else _text(value)

    def reduce(self, node: Node) -> tuple[Fraction | None, str]:
        """(value, "") of a rational tree or (None, key) of another."""
        if node.op == "num":
            return node.value, ""
        if node.op == "sym":
            return None, node.name
        if node.op == "text":
            return None, f"'{node.name}'"
        if node.op in ("add", "mul", "div", "pow"):
            return self.arithmetic(node)
        if node.op == "degree":
            return self.reduce(node.args[0])
        if node.op == "func":
            reduced = [self.reduce(arg) for arg in node.args]  # once: nested functions would double it at each level
            exact = [value for value, _ in reduced if value is not None]
            result = self.function(node.name, exact) if len(exact) == len(reduced) else None
            return (result, "") if result is not None else (None, f"{node.name}({', '.join(map(_show, reduced))})")
        if node.op == "chain":
            return None, self.chain(node)
        if node.op in ("set", "list", "union", "inter"):
            keys = sorted({self.key(a) for a in node.args} if node.op == "set" else [self.key(a) for a in node.args])
            return None, ("{%s}" if node.op == "set" else "%s") % ", ".join(keys) + (
                "" if node.op in ("set", "list") else node.op
            )
        if node.op == "tuple":
            return None, node.name[0] + ", ".join(self.key(a) for a in node.args) + node.name[1]
        return None, self.compound(f"{node.op}:{node.name}" if node.name else node.op, node.args)

    def compound(self, name: str, args: tuple[Node, ...]) -> str:
        """A key made of a name and the keys of arguments."""
        return f"{name}({', '.join(self.key(a) for a in args)})"

    def chain(self, node: Node) -> str:
        """Relations, all read from small to large; sides of an equation in one order."""
        names, sides = node.name.split(), [self.key(a) for a in node.args]
        if all(name in (">", ">=") for name in names):
            names, sides = [name.replace(">", "<") for name in reversed(names)], sides[::-1]
        parts = [sides[0]]
        for name, side in zip(names, sides[1:], strict=True):
            parts += [name, side]
        return " ".join(parts)

    # ------------------------------------------------------------------ arithmetic
    def arithmetic(self, node: Node) -> tuple[Fraction | None, str]:
        """Sums, products, quotients and powers: rational parts folded, the others sorted."""
        if node.op == "pow":
            base, exponent = self.reduce(node.args[0]), self.reduce(node.args[1])
            value = self.power(base[0], exponent[0])
            if value is not None:
                return value, ""
            return None, f"({_show(base)})^({_show(exponent)})"
        terms: list[str] = []
        total = Fraction(0 if node.op == "add" else 1)
        for position, arg in enumerate(self.flatten(node)):
            value, key = self.reduce(arg)
            inverse = node.op == "div" and position == 1
            if value is None:
                terms.append(f"({key})^(-1)" if inverse else f"({key})")
            elif node.op == "add":
                self.spend(total, value)
                total += value
            else:
                if inverse and value == 0:
                    raise Undefined("division by zero")
                self.spend(total, value)
                total = total / value if inverse else total * value
        if not terms:
            return total, ""
        if total != (0 if node.op == "add" else 1):
            terms.append(_text(total))
        if len(terms) == 1 and terms[0].endswith(")") and not terms[0].endswith("^(-1)"):
            return None, terms[0][1:-1]
        product_of_sets = node.op == "mul" and sum(arg.op in ("tuple", "set") for arg in node.args) > 1  # has an order
        return None, ("+" if node.op == "add" else "*").join(terms if product_of_sets else sorted(terms))

    def flatten(self, node: Node) -> list[Node]:
        """Operands of nested sums or products on one level."""
        if node.op == "div":
            return list(node.args)
        flat: list[Node] = []
        stack = list(reversed(node.args))
        while stack:
            arg = stack.pop()
            if arg.op == node.op:
                stack.extend(reversed(arg.args))
            else:
                flat.append(arg)
        return flat

    def power(self, base: Fraction | None, exponent: Fraction | None) -> Fraction | None:
        """base ** exponent where it is rational: integer exponents and perfect roots."""
        if base is None or exponent is None:
            return None
        if base == 0:
            if exponent < 0:
                raise Undefined("zero to a negative power")
            return Fraction(1 if exponent == 0 else 0)
        if exponent.denominator != 1:
            if exponent.denominator > _MAX_ROOT or base < 0:
                return None
            root = exact_root(base, exponent.denominator)
            return None if root is None else self.power(root, Fraction(exponent.numerator))
        if abs(base) == 1:
            return base if exponent.numerator % 2 else Fraction(1)
        if abs(exponent.numerator) * size_bits(base) > 2 * MAX_BITS:
            raise BudgetExceeded("a power beyond its budget of bits")
        result = base**exponent.numerator
        self.spend(result)
        return result

    # ------------------------------------------------------------------ functions
    def function(self, name: str, args: list[Fraction]) -> Fraction | None:
        """Exact values of the functions that have them on rationals."""
        if name in _ROUNDING and len(args) == 1:
            return _ROUNDING[name](args[0])
        if name in ("max", "min") and args:
            return max(args) if name == "max" else min(args)
        if name in ("factorial", "factorial2"):
            return self.factorial(args[0], step=1 if name == "factorial" else 2)
        if name == "root" and len(args) == 2 and args[1].denominator == 1 and 1 <= args[1] <= _MAX_ROOT:
            degree = args[1].numerator
            if args[0] < 0 and degree % 2 == 0:
                return None
            root = exact_root(abs(args[0]), degree)
            return None if root is None else root * (-1 if args[0] < 0 else 1)
        if name == "log" and len(args) == 2:
            return _exact_log(args[0], args[1])
        if any(a.denominator != 1 for a in args):
            return None
        integers = [a.numerator for a in args]
        if name == "binom" and len(integers) == 2:
            return self.binomial(*integers)
        if name in ("gcd", "lcm") and integers:
            self.spend(*args)
            return Fraction(math.gcd(*integers) if name == "gcd" else math.lcm(*integers))
        return None

    def factorial(self, n: Fraction, step: int) -> Fraction | None:
        """n!, or n!! with a step of 2, of a natural number of bounded size."""
        if n.denominator != 1 or n < 0:
            return None
        if n > _MAX_FACTORIAL:
            raise BudgetExceeded("a factorial beyond its budget")
        result = Fraction(math.prod(range(n.numerator, 0, -step)))
        self.spend(result)
        return result

    def binomial(self, n: int, k: int) -> Fraction | None:
        """n over k of bounded size."""
        if n < 0 or k < 0:
            return None
        if min(k, n - k) * max(n.bit_length(), 1) > MAX_BITS:
            raise BudgetExceeded("a binomial beyond its budget of bits")
        result = Fraction(math.comb(n, k))
        self.spend(result)
        return result


_ROUNDING: dict[str, Callable[[Fraction], Fraction]] = {
    "abs": abs,
    "floor": lambda v: Fraction(math.floor(v)),
    "ceil": lambda v: Fraction(math.ceil(v)),
    "sgn": lambda v: Fraction((v > 0) - (v < 0)),
}


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The degree-th root of a non-negative rational when it is rational."""
    top, bottom = _integer_root(value.numerator, degree), _integer_root(value.denominator, degree)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _integer_root(n: int, degree: int) -> int | None:
    if n < 2:
        return n
    if degree == 2:
        root = math.isqrt(n)
    else:  # Newton from above, so that it decreases to the floor
        root = 1 << (n.bit_length() // degree + 1)
        while (better := ((degree - 1) * root + n // root ** (degree - 1)) // degree) < root:
            root = better
    return root if root**degree == n else None


def _exact_log(value: Fraction, base: Fraction) -> Fraction | None:
    """log of value to base where that is an integer between -64 and 64."""
    if value <= 0 or base <= 0 or base == 1:
        raise Undefined("a logarithm outside its domain")
    for exponent in range(0, 64):
        if size_bits(base) * exponent > 2_000:
            break
        if base**exponent == value or base**-exponent == value:
            return Fraction(exponent if base**exponent == value else -exponent)
    return None


def _text(value: Fraction) -> str:
    """A fraction as text; hexadecimal beyond what Python prints in decimal at a reasonable cost."""
    if size_bits(value) < 4_000:
        return str(value)
    return f"{value.numerator:#x}/{value.denominator:#x}"


def _show(pair: tuple[Fraction | None, str]) -> str:
    return pair[1] if pair[0] is None else _text(pair[0])
