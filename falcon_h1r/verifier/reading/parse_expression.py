"""Recursive descent over tokens: sums, products, powers and big operators. Operands are in parse_operand.py,
lists and relations in parse_answer.py.

LaTeX and infix are one grammar: an implicit product binds like an explicit one, `a/b c` is `(a/b)c`, a
function without parentheses takes the product that follows, up to the next function or operator.
"""

from __future__ import annotations

from falcon_h1r.verifier.reading.parse_numeral import literal
from falcon_h1r.verifier.reading.parse_operand import DECORATIONS, OperandParser, transposed
from falcon_h1r.verifier.reading.units import UNITS
from falcon_h1r.verifier.tree.node import BudgetExceeded, Node, NotationError, free_symbols, negative
from falcon_h1r.verifier.tree.rewrite import substituted

_OPENERS = (
    "( [ { \\{ \\frac \\sqrt \\binom \\lfloor \\lceil \\angle \\triangle \\boxed \\mathbb \\mathcal "
    "\\emptyset \\lim \\sum \\prod \\int \\langle \\dots"
)
_STARTS_OPERAND = DECORATIONS | frozenset(_OPENERS.split())
# Signs behind or before one operand nest the tree, each by one level.
_MAX_POSTFIX = 20
_MAX_SIGNS = 6
# words that say something else than what was counted
_NOT_UNITS = frozenset(
    "am pm Am Pm AM PM to mod plus minus times over divided squared cubed factorial half dozen wrong not less more "
    "even odd prime only halves thirds quarters fourths fifths sixths sevenths eighths ninths tenths hundredths "
    "thousandths lakh lakhs crore crores score wins loses at otherwise if when where as but January February March "
    "April May June July August September October November December".split()
)


class ExpressionParser(OperandParser):
    """Sums and products of operands."""

    def expression(self) -> Node:
        """term ((+ | - | ± | ∓) term)*"""
        self.enter()
        terms = [self.signed_term()]
        while self.token.kind == "op" and self.token.text in ("+", "-", "\\pm", "\\mp"):
            terms.append(self.signed_term())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def signed_term(self) -> Node:
        """A term with its signs: minus signs cancel, plus-minus signs stay."""
        minus = False
        choices: list[str] = []
        while self.token.kind == "op" and self.token.text in ("+", "-", "\\pm", "\\mp"):
            sign = self.advance().text
            if sign == "-":
                minus = not minus
            elif sign != "+":
                choices.append(sign[1:])
        if len(choices) > _MAX_SIGNS:
            raise BudgetExceeded(f"more than {_MAX_SIGNS} signs")
        term = self.term()
        term = negative(term) if minus else term
        for choice in choices:
            term = Node("pm", (term,), name=choice)
        return term

    def starts_factor(self) -> bool:
        """Whether the next token opens an operand: then a product is implied."""
        token = self.token
        if self.open_integrals and token.text == "d" and self.peek().kind == "name":
            return False
        if token.text == "(" and self.peek().text == "mod":
            return False
        if token.kind in ("num", "name", "func", "begin"):
            return True
        return token.kind == "op" and (token.text in _STARTS_OPERAND or (token.text == "|" and not self.open_bars))

    def term(self) -> Node:
        """factor ((* | / | nothing) factor)*, then a unit, which is dropped."""
        factors, divisors = [self.factor()], list[Node]()
        while True:
            if self.accept("*", "\\cdot", "\\times", "\\ast"):
                factors.append(self.signed_factor())
            elif self.token.text == "/" and self.peek().kind == "word":
                self.advance()
            elif self.accept("/", "\\div"):
                divisors.append(self.signed_factor())
            elif self.token.kind == "word" and self.token.text not in _NOT_UNITS and factors[0].op != "text":
                if self.token.text not in UNITS and any(_is_no_count(factor) for factor in factors):
                    raise NotationError("words behind something else than a number")
                self.skip_unit()
                if self.starts_factor():
                    raise NotationError("a value behind a unit")
            elif self.starts_factor():
                self.check_juxtaposition(divisors[-1] if divisors else factors[-1])
                if self.tight_division and divisors and divisors[-1].op == "sym":
                    divisors.append(self.factor())  # h/kT
                else:
                    factors.append(self.factor())
            else:
                break
        product = _product(factors)
        return product if not divisors else Node("div", (product, _product(divisors)))

    def check_juxtaposition(self, last: Node) -> None:
        """Two numbers, or a word and a value, side by side are no product."""
        if last.op == "num" and self.token.kind == "num" and self.tokens[self.position - 1].kind == "num":
            raise NotationError("two numbers side by side")
        if last.op == "text":
            raise NotationError("a word before a value")

    def skip_unit(self) -> None:
        """Step over the words of a unit, their powers, and what joins them: kg m^2 / s^{-3}, J \\cdot s."""
        while True:
            ahead = [self.peek(k).text for k in range(5)]
            if self.token.kind == "word" and self.token.text not in _NOT_UNITS:
                self.advance()
            elif ahead[0] == "^" and self.peek().kind == "num":
                self.position += 2
            elif ahead[:2] == ["^", "-"] and self.peek(2).kind == "num":
                self.position += 3
            elif ahead[:2] == ["^", "{"] and ahead[3] == "}":
                self.position += 4
            elif ahead[:3] == ["^", "{", "-"] and ahead[4] == "}":
                self.position += 5
            elif ahead[0] in ("\\cdot", "*", "/") and self.peek().kind == "word":
                self.advance()
            elif ahead[:2] == ["/", "("] and self.peek(2).kind == "word":  # J/(kg K)
                self.position += 2
                while self.token.kind == "word":
                    self.advance()
                self.expect(")")
            else:
                return

    def signed_factor(self) -> Node:
        """A factor that may carry a sign: 2 * -3."""
        if self.accept("-"):
            return negative(self.signed_factor_once())
        self.accept("+")
        return self.factor()

    def signed_factor_once(self) -> Node:
        """The factor after one minus sign, counted as a level of nesting."""
        self.enter()
        factor = self.signed_factor()
        self.depth -= 1
        return factor

    # ------------------------------------------------------------------ powers
    def factor(self) -> Node:
        """operand followed by !, ^, %, degrees, primes"""
        base = self.operand()
        num_signs = 0
        while self.token.kind == "op":
            num_signs += 1
            if num_signs > _MAX_POSTFIX:
                raise BudgetExceeded(f"more than {_MAX_POSTFIX} powers and postfix signs in a row")
            if base.op == "num" and self.token.text == "_":
                base = self.based(base)
            elif self.accept("!"):
                base = Node("func", (base,), name="factorial2" if self.accept("!") else "factorial")
            elif self.token.text == "^":
                self.advance()
                if self.accept("\\prime", "\\ast", "\\star"):
                    continue
                power = self.exponent()
                transpose = base.op == "matrix" and power.op == "sym" and power.name in ("T", "top")
                base = transposed(base) if transpose else Node("pow", (base, power))
            elif self.accept("%"):
                base = Node("percent", (base,))
            elif self.accept("°"):
                if self.token.text in ("C", "F") and self.token.kind in ("name", "word"):
                    self.advance()
                base = Node("degree", (base,))
            elif self.token.text == "'" and base.op == "sym":
                self.advance()
                base = Node("sym", name=base.name + "'")
            else:
                break
        return base

    def exponent(self) -> Node:
        """What a caret raises to: a group, or a signed number, name or command; towers lean right."""
        self.enter()
        if self.accept("-"):
            power = negative(self.exponent())
        elif self.accept("+"):
            power = self.exponent()
        elif self.token.text == "{":
            self.advance()
            power = self.expression()
            self.expect("}")
        else:
            beside = self.token.kind == "num" and self.peek().text == "\\frac"  # x^2\frac12 is no power of 2 1/2
            power = literal(self.advance().text) if beside else self.operand()
            if self.accept("^"):
                power = Node("pow", (power, self.exponent()))
            elif self.accept("!"):
                power = Node("func", (power,), name="factorial")
        self.depth -= 1
        return power

    # ------------------------------------------------------------------ limits, sums, products, integrals
    def big_operator(self, kind: str) -> Node:
        """A limit, sum, product or definite integral, after its sign."""
        lower = upper = Node("sym", name="oo")
        variable = ""
        for _ in range(2):
            if self.accept("_"):
                variable, lower = self.lower_limit(kind)
            elif self.accept("^"):
                upper = self.exponent()
        if kind != "int":
            bound = f"#{self.depth}"  # whatever it is called
            body = substituted(self.term(), {variable: Node("sym", name=bound)})
            return Node("big", (body, lower, upper), name=f"{kind}:{bound}")
        self.open_integrals += 1
        body = self.expression()
        self.open_integrals -= 1
        if self.token.text != "d" or self.peek().kind != "name":
            raise NotationError("an integral without its variable")
        self.advance()
        return Node("big", (body, lower, upper), name=f"int:{self.advance().text}")

    def lower_limit(self, kind: str) -> tuple[str, Node]:
        """The bound variable and where it starts or goes; an integral names its variable at the end."""
        braced = self.accept("{")
        variable = ""
        if kind != "int":
            variable = self.advance().text
            if not self.accept("\\to", "->", "="):
                raise NotationError(f"{kind} without a variable")
        lower = self.expression() if braced else self.operand()
        if kind == "lim" and self.accept("^"):
            raise NotationError("a one-sided limit")
        if braced:
            self.expect("}")
        return variable, lower


def _is_no_count(node: Node) -> bool:
    """Whether a factor is something that a word behind it would say more of: a variable, an interval."""
    return node.op in ("tuple", "set", "list", "matrix") or bool(free_symbols(node))


def _product(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
