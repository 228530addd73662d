"""Recursive descent over tokens, the ground floor: the tokens themselves, numerals, indices, drawn names."""

from __future__ import annotations

from fractions import Fraction

from falcon_h1r.verifier.reading.remarks import NUMBER_WORDS
from falcon_h1r.verifier.reading.tokens import Token, tokenise
from falcon_h1r.verifier.tree.node import MAX_DEPTH, MAX_DIGITS, BudgetExceeded, Node, NotationError, number


def literal(text: str) -> Node:
    """A number as written; a decimal remembers how many digits it claims."""
    if len(text) > MAX_DIGITS:
        raise BudgetExceeded(f"a number of more than {MAX_DIGITS} characters")
    if text.isdecimal():
        return number(int(text))
    mantissa, _, exponent = text.lower().partition("e")
    if abs(int(exponent or 0)) > MAX_DIGITS:
        raise BudgetExceeded("a decimal exponent out of range")
    value = Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)
    fractional = "." in mantissa and mantissa[-1] != "."
    digits = len(mantissa.replace(".", "").strip("0")) if fractional else 0
    return Node("num", value=value, digits=digits if value.denominator > 1 else 0)


def recurring(text: str) -> Node:
    """0.333... and 0.1818... as the fractions they stand for; a decimal that shows no period as written."""
    whole, _, decimals = text.partition(".")
    for period in range(1, len(decimals) // 2 + 1):
        repeats = 3 if period == 1 else 2
        tail = decimals[-period:]
        if decimals.endswith(tail * repeats):
            start = len(decimals)
            while start >= period and decimals[start - period : start] == tail:
                start -= period
            fixed = decimals[:start]
            value = Fraction(f"{whole or 0}.{fixed or 0}")
            return number(value + Fraction(int(tail), (10**period - 1) * 10 ** len(fixed)))
    return literal(text)


class NumeralParser:
    """Parses what one answer's tokens hold; a fresh one for every answer."""

    def __init__(self, cleaned: str, tight_division: bool = False) -> None:
        self.tokens = tokenise(cleaned)
        self.tight_division = tight_division  # a/bc is a/(bc) where b is a variable
        self.position = 0
        self.depth = 0
        self.open_bars = 0
        self.open_integrals = 0

    # ------------------------------------------------------------------ tokens
    @property
    def token(self) -> Token:
        """The next token."""
        return self.tokens[self.position]

    def peek(self, ahead: int = 1) -> Token:
        """A token further on, without moving."""
        return self.tokens[min(self.position + ahead, len(self.tokens) - 1)]

    def advance(self) -> Token:
        """Take the next token; the end stays the end."""
        token = self.tokens[self.position]
        if token.kind != "eof":
            self.position += 1
        return token

    def accept(self, *texts: str) -> bool:
        """Step over an operator if it is next."""
        if self.token.kind == "op" and self.token.text in texts:
            self.position += 1
            return True
        return False

    def accept_word(self, text: str) -> bool:
        """Step over a word if it is next."""
        if self.token.kind == "word" and self.token.text == text:
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Step over an operator that has to be next."""
        if not self.accept(text):
            raise NotationError(f"expected {text!r}, found {self.token.text[:20]!r}")

    def enter(self) -> None:
        """One level deeper; recursion is bounded here and nowhere else."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BudgetExceeded(f"nested deeper than {MAX_DEPTH}")

    # ------------------------------------------------------------------ numerals and names
    def numeral(self) -> Node:
        """A number, a repeating decimal, a number in a base, or a mixed number."""
        written = self.advance().text
        whole = literal(written)
        if self.token.text in ("\\overline", "\\dot") and "." in written:
            return self.repeating(written)
        if "." in written and self.accept("\\dots"):
            return recurring(written)
        if self.token.text == "_":
            return self.based(whole)
        if whole.value.denominator > 1:
            return whole
        fraction, length = self.simple_fraction()
        if fraction is None or not 0 < fraction < 1:
            return whole
        self.position += length
        return number(whole.value + fraction)

    def based(self, digits: Node) -> Node:
        """A numeral with its base behind it: 1011_2, 1011_{(2)}, 1011_{\\text{two}}."""
        base = self.subscript().strip("_()")
        return Node("based", (digits,), name=NUMBER_WORDS.get(base, base))

    def simple_fraction(self) -> tuple[Fraction | None, int]:
        r"""A fraction of two integers that stands next, 3/4 or \frac{3}{4} or \frac34, and how many tokens it
        takes.

        Found by looking at the tokens: parsing ahead and again would double the work at each level of
        nesting.
        """
        texts = [self.peek(ahead).text for ahead in range(7)]
        if self.token.kind == "num" and self.token.spaced and texts[1] == "/":
            parts, length = [texts[0], texts[2]], 3
        elif texts[0] == "\\frac":
            parts, length = [], 1
            while len(parts) < 2 and length < 6:
                if texts[length] == "{" and texts[length + 2 : length + 3] == ["}"]:
                    parts, length = [*parts, texts[length + 1]], length + 3
                elif not parts and len(texts[length]) == 2:
                    parts, length = list(texts[length]), length + 1
                elif len(texts[length]) == 1:
                    parts, length = [*parts, texts[length]], length + 1
                else:
                    break
        else:
            return None, 0
        plain = len(parts) == 2 and all(p.isascii() and p.isdigit() and len(p) < 20 for p in parts)
        if not plain or int(parts[1]) == 0 or self.peek(length).text == "^":
            return None, 0
        return Fraction(int(parts[0]), int(parts[1])), length

    def repeating(self, written: str) -> Node:
        r"""0.1\overline{6}, after its first part."""
        self.advance()
        period = self.raw_group()
        if not period.isdigit() or len(period) > MAX_DIGITS:
            raise NotationError("a bar over something else than digits")
        decimals = len(written.partition(".")[2])
        return number(Fraction(written.rstrip(".")) + Fraction(int(period), (10 ** len(period) - 1) * 10**decimals))

    def subscript(self) -> str:
        """The text of an index, so that x_1, x_{1} and x _ 1 are one name."""
        if not self.accept("_"):
            return ""
        if not self.accept("{"):
            return "_" + self.advance().text
        text = ""
        level = 1
        while self.token.kind != "eof":
            token = self.advance()
            level += {"{": 1, "}": -1}.get(token.text, 0)
            if level == 0:
                return "_" + text
            text += token.text if token.text not in "{}" else ""
        raise NotationError("an index never closes")

    def raw_group(self) -> str:
        """The text of the next group or token, for names that are drawn rather than computed."""
        if not self.accept("{"):
            return self.advance().text
        text = ""
        while self.token.kind != "eof" and self.token.text != "}":
            text += self.advance().text
        self.expect("}")
        return text
