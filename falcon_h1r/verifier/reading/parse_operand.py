"""Recursive descent over tokens: operands, which are names, functions, fractions, commands and matrices."""

from __future__ import annotations

from fractions import Fraction

from falcon_h1r.verifier.reading.parse_numeral import NumeralParser, literal
from falcon_h1r.verifier.reading.tokens import UNIT_VECTORS, Token
from falcon_h1r.verifier.tree.node import Node, NotationError, free_symbols, negative, number

_MATRICES = {"pmatrix": "", "bmatrix": "", "matrix": "", "array": "", "smallmatrix": "", "vmatrix": "det"}
_CASES = ("cases", "dcases", "rcases", "aligned", "align", "gathered", "split")
_DRAWN = "overline vec hat bar tilde dot ddot underline overrightarrow widehat"
DECORATIONS = frozenset(f"\\{name}" for name in _DRAWN.split())
_WITH_INVERSE = frozenset("sin cos tan cot sec csc sinh cosh tanh coth sech csch".split())  # \sin^{-1} is \arcsin
_BIG = {"\\lim": "lim", "\\sum": "sum", "\\prod": "prod", "\\int": "int"}
_FUNCTION_NAMES = ("f", "g", "h")
_HALF = Node("num", value=Fraction(1, 2))


class OperandParser(NumeralParser):
    """Operands of expressions; what is above them and around them is left to the classes built on this."""

    def bracketed(self) -> Node:
        """A bracket of any kind with what it holds."""
        raise NotImplementedError

    def expression(self) -> Node:
        """A sum of products."""
        raise NotImplementedError

    def factor(self) -> Node:
        """An operand with its powers and postfix signs."""
        raise NotImplementedError

    def exponent(self) -> Node:
        """What a caret raises to."""
        raise NotImplementedError

    def starts_factor(self) -> bool:
        """Whether the next token opens an operand."""
        raise NotImplementedError

    def cases(self) -> Node:
        """Rows between braces that are no matrix."""
        raise NotImplementedError

    def big_operator(self, kind: str) -> Node:
        """A limit, sum, product or integral."""
        raise NotImplementedError

    # ------------------------------------------------------------------ operands
    def operand(self) -> Node:
        """One value: what the next token starts."""
        self.enter()
        token = self.token
        if token.kind == "num":
            node = self.numeral()
        elif token.kind == "name":
            self.advance()
            node = self.subscripted(token.text + (self.number_argument() if token.text in _FUNCTION_NAMES else ""))
            if token.text in ("Gamma", "zeta") and self.token.text == "(":
                node = Node("func", self.arguments(token.text), name=token.text.lower())
        elif token.kind == "word":
            words: list[str] = []
            while self.token.kind == "word" or (words and self.token.kind == "name"):
                words.append(self.advance().text.lower())
            node = Node("text", name=" ".join(words))
        elif token.kind == "func":
            self.advance()
            node = self.function(token.text)
        elif token.kind == "begin":
            node = self.cases() if token.text in _CASES else self.matrix()
        elif token.kind == "op":
            node = self.command(token.text)
        else:
            raise NotationError(f"expected a value, found {token.text[:20]!r}")
        self.depth -= 1
        return node

    def number_argument(self) -> str:
        """The "(2)" of f(2), which is a value with a name and no product; "" where something else follows."""
        length = 4 if self.peek().text == "-" else 3
        inside = [self.peek(k) for k in range(length)]
        if [inside[0].text, inside[-2].kind, inside[-1].text] != ["(", "num", ")"]:
            return ""
        self.position += length
        return "".join(token.text for token in inside)

    def stacked(self, top: Node) -> Node:
        r"""{a \over b} and {a \choose b}, from the command on."""
        if self.advance().text == "\\over":
            return Node("div", (top, self.expression()))
        return Node("func", (top, self.expression()), name="binom")

    def fraction_part(self) -> Node:
        r"""An argument of \frac: a group, or one digit, name or command, as TeX reads it."""
        if self.accept("{"):
            part = self.expression()
            if self.token.text in ("\\choose", "\\over"):
                part = self.stacked(part)
            self.expect("}")
            return part
        if self.token.kind == "num" and self.token.text.isdigit():
            digits = self.token.text
            if len(digits) == 1:
                self.advance()
            else:  # the rest of the digits stays: \frac12 is one half
                self.tokens[self.position] = Token("num", digits[1:])
            return literal(digits[0])
        return self.operand()

    def subscripted(self, name: str) -> Node:
        """A name with its index, if one follows."""
        return Node("sym", name=name + self.subscript())

    def command(self, op: str) -> Node:
        """An operand that starts with an operator token: a bracket, a bar, a LaTeX command."""
        if op in ("(", "[", "{", "\\{", "\\langle"):
            return self.bracketed()
        self.advance()
        if op == "|":
            self.open_bars += 1
            inner = self.expression()
            self.open_bars -= 1
            self.expect("|")
            return Node("func", (inner,), name="abs")
        if op == "\\frac":
            return Node("div", (self.fraction_part(), self.fraction_part()))
        if op == "\\binom":
            return Node("func", (self.fraction_part(), self.fraction_part()), name="binom")
        if op == "\\sqrt":
            return self.function("sqrt")
        if op in ("\\lfloor", "\\lceil"):
            inner = self.expression()
            self.expect("\\rfloor" if op == "\\lfloor" else "\\rceil")
            return Node("func", (inner,), name=op[2:])
        if op in ("\\angle", "\\triangle"):
            name = op[1:]
            while self.token.kind == "name":
                name += self.advance().text
            return Node("sym", name=name)
        if op in ("\\mathbb", "\\mathcal"):
            return self.subscripted("set:" + self.raw_group())
        if op in DECORATIONS:
            return self.subscripted(_drawn(op[1:], self.raw_group()))
        if op == "\\dots":
            return Node("sym", name="dots")
        if op == "\\boxed":
            return self.fraction_part()
        if op == "\\emptyset":
            return Node("set")
        if op in _BIG:
            return self.big_operator(_BIG[op])
        raise NotationError(f"expected a value, found {op[:20]!r}")

    # ------------------------------------------------------------------ functions
    def function(self, name: str) -> Node:
        """A function with its power, base or index, and its argument."""
        index: Node | None = None
        power: Node | None = None
        if name == "sqrt" and self.token.text == "[":
            self.advance()
            index = self.expression()
            self.expect("]")
        for _ in range(2):
            if self.token.text == "^" and name != "sqrt":
                self.advance()
                power = self.exponent()
            elif self.token.text == "_":
                self.advance()
                index = self.fraction_part()  # \log_23 is the logarithm of 3
        arguments = self.arguments(name)
        if index is not None:
            arguments = (*arguments, index)
        inverse = power is not None and power.op == "num" and power.value == -1
        if inverse and name in _WITH_INVERSE:
            return Node("func", arguments, name="arc" + name)
        node = _apply(name, arguments)
        return node if power is None else Node("pow", (node, power))

    def arguments(self, name: str) -> tuple[Node, ...]:
        """The arguments of a function: a bracket, or the product that follows."""
        if self.token.text in ("(", "[", "{", "\\{"):
            bare = self.token.text != "(" or name == "sqrt"
            group = self.bracketed()
            if group.op in ("tuple", "set") and name in ("max", "min", "gcd", "lcm", "log", "binom", "diag"):
                return group.args
            if bare or name != "sqrt":
                return (group,)
        if name == "sqrt":
            return (self.operand(),)
        negated = self.accept("-")
        argument = self.factor()
        while self.starts_factor() and self.token.kind != "func" and self.token.text not in ("(", "[", "\\{", "|"):
            complete = bool(free_symbols(argument))  # \sin t e^t is no sine of a product
            if complete and (
                self.token.text in ("\\frac", "\\sqrt") or (self.token.text == "e" and self.peek().text == "^")
            ):
                break
            argument = Node("mul", (argument, self.factor()))
        return (negative(argument) if negated else argument,)

    # ------------------------------------------------------------------ matrices
    def holds_relations(self) -> bool:
        """Whether an array is a system of equations rather than a matrix."""
        for token in self.tokens[self.position :]:
            if token.kind == "end":
                return False
            if token.text in ("=", "<", ">", "≤", "≥"):
                return True
        return False

    def matrix(self) -> Node:
        """An environment of rows and cells."""
        environment = self.token.text
        if environment not in _MATRICES:
            raise NotationError(f"environment {environment[:20]}")
        if environment == "array" and self.holds_relations():
            return self.cases()
        self.advance()
        if environment == "array" and self.token.text == "{":
            self.raw_group()
        rows: list[Node] = []
        cells: list[Node] = []
        while self.token.kind not in ("end", "eof"):
            if self.accept("\\\\"):
                rows.append(Node("row", tuple(cells)))
                cells = []
            elif not self.accept("&"):
                cells.append(self.expression())
            elif self.token.text in ("&", "\\\\") or not cells:
                raise NotationError("an empty cell")
        if self.advance().text != environment:
            raise NotationError("a matrix never ends")
        if cells:
            rows.append(Node("row", tuple(cells)))
        if not rows or len({len(row.args) for row in rows}) != 1:
            raise NotationError("rows of different lengths")
        return Node("matrix", tuple(rows), name=_MATRICES[environment])


def _drawn(decoration: str, name: str) -> str:
    """A decorated name; unit vectors are one thing under a hat, an arrow and in bold type."""
    decoration = {"overline": "bar", "widehat": "hat", "overrightarrow": "vec"}.get(decoration, decoration)
    letter = name.removeprefix("hat(").removesuffix(")").replace("imath", "i").replace("jmath", "j")
    return f"hat({letter})" if letter in UNIT_VECTORS and decoration in ("hat", "vec") else f"{decoration}({name})"


def transposed(matrix: Node) -> Node:
    """Rows as columns."""
    columns = zip(*(row.args for row in matrix.args), strict=True)
    return Node("matrix", tuple(Node("row", column) for column in columns), name=matrix.name)


def _apply(name: str, arguments: tuple[Node, ...]) -> Node:
    """Functions that are another way of writing a power or a logarithm become that."""
    if name == "sqrt":
        return Node("pow", (arguments[0], _HALF)) if len(arguments) == 1 else Node("func", arguments, name="root")
    if name == "exp" and len(arguments) == 1:
        return Node("pow", (Node("sym", name="e"), arguments[0]))
    if name == "lg":
        return Node("func", (*arguments[:1], number(10)), name="log")
    if name == "diag":
        size = range(len(arguments))
        rows = (tuple(arguments[i] if i == j else number(0) for j in size) for i in size)
        return Node("matrix", tuple(Node("row", row) for row in rows))
    if name == "cis":
        sine = Node("func", arguments, name="sin")
        return Node("add", (Node("func", arguments, name="cos"), Node("mul", (Node("sym", name="i"), sine))))
    return Node("func", arguments, name=name)
