"""From a cleaned answer to tokens: numbers, names, functions, words, operators."""

from __future__ import annotations

import re
from dataclasses import dataclass

from falcon_h1r.verifier.reading.units import ABBREVIATIONS
from falcon_h1r.verifier.tree.node import MAX_DEPTH, MAX_TOKENS, BudgetExceeded, NotationError


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is num, name, func, word, op, sep (a comma, "and"), begin, end (of an environment) or eof."""

    kind: str
    text: str
    spaced: bool = False  # white space stands before it


FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arccot arcsec arccsc arcsinh "
    "arccosh arctanh ln log lg exp sqrt abs max min gcd lcm floor ceil det Re Im sgn cis diag".split()
)
_FUNCTION_SYNONYMS = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "acot": "arccot", "asinh": "arcsinh",
    "acosh": "arccosh", "atanh": "arctanh", "arsinh": "arcsinh", "arcosh": "arccosh", "artanh": "arctanh",
    "tg": "tan", "ctg": "cot", "cosec": "csc", "arctg": "arctan", "Abs": "abs", "Max": "max", "Min": "min",
    "ceiling": "ceil", "factorial": "factorial", "binomial": "binom", "sign": "sgn",
}  # fmt: skip
_NAMED = {"infty": "oo", "infinity": "oo", "inf": "oo", "Infinity": "oo", "oo": "oo", "pi": "pi"}
_SYMBOL_NAMES = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega Alpha Beta Eta ell nabla partial hbar imath jmath top "
    "odot oplus ast star prime circ".split()
)
_SMALL_WORDS = frozenset("no on yes odd not the is are of to if true none even by at all any mod".split())
UNIT_VECTORS = ("i", "j", "k")
_UNITS_AND_FUNCTIONS = ("sec", "min")
_BOLD = ("mathbf", "textbf", "bf", "boldsymbol")
_SEPARATORS = frozenset(("and", "or", "land", "lor", "wedge", "vee"))
_TEXT_COMMANDS = frozenset(
    "text textbf textit mathrm mathbf mathit mbox operatorname textrm textsf mathsf rm bf boldsymbol".split()
)
_OPERATOR_COMMANDS = frozenset(
    "frac sqrt binom choose over cdot times div pm mp cup cap setminus backslash in notin approx to emptyset "
    "lfloor rfloor lceil rceil angle overline vec hat bar tilde dot ddot underline overrightarrow widehat mathbb "
    "mathcal lim sum prod int pmod mod bmod langle rangle iff implies Rightarrow boxed triangle dots equiv".split()
)
_ROMAN_NUMERAL = re.compile("(?=..)(?:X{0,3}(?:IX|IV|V?I{1,3}|V))")  # of statements: II, III; one letter is a name
_TOKEN = re.compile(
    r"(?P<num>(?:\d+\.\d+|\d+\.(?!\d)|\d+|\.\d+)(?:[eE][+-]?\d+(?![A-Za-z\d]))?)"
    r"|(?P<command>\\(?:[A-Za-z]+|.))|(?P<run>[A-Za-z]+)|(?P<op>\*\*|->|\S)"
)


def _group_end(text: str, start: int) -> int:
    """Position of the brace that closes the group opened at text[start]."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
    raise NotationError("a text group never closes")


class _Tokeniser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[Token] = []
        self.depth = 0

    def add(self, kind: str, text: str, spaced: bool = False) -> None:
        """Append a token, within the budget."""
        if len(self.tokens) >= MAX_TOKENS:
            raise BudgetExceeded(f"more than {MAX_TOKENS} tokens")
        self.tokens.append(Token(kind, text, spaced))

    @property
    def after_value(self) -> bool:
        """Whether what stands before could be a complete value, so that a letter in text type is its unit."""
        last = self.tokens[-1] if self.tokens else None
        if last is None:
            return False
        per = last.text == "/" and len(self.tokens) > 1 and self.tokens[-2].kind == "word"  # the s of m/s
        per = per or (last.text == "\\cdot" and self.tokens[-2].kind == "word")
        return per or last.text == "pi" or last.kind in ("num", "word") or last.text in ("}", ")", "°")

    def scan(self, text: str, words: bool = False) -> None:
        """Add the tokens of `text`; with `words`, letters are words: the content of a text command."""
        position = 0
        while position < len(text):
            spaced = text[position] == " "
            while position < len(text) and text[position] == " ":
                position += 1
            match = _TOKEN.match(text, position)
            if match is None:
                break
            position = match.end()
            if match.lastgroup == "command":
                position = self.command(match.group()[1:], text, position, spaced)
            elif match.lastgroup == "run":
                self.run(match.group(), words, spaced, text[position : position + 2])
            elif match.lastgroup == "num":
                self.add("num", match.group(), spaced)
            else:
                self.operator(match.group(), spaced)

    def operator(self, op: str, spaced: bool) -> None:
        """Append one printed character, or a power written as in Python."""
        if op in (",", ";"):
            self.add("sep", op, spaced)
        else:
            self.add("op", {"**": "^"}.get(op, op), spaced)

    def run(self, run: str, words: bool, spaced: bool, following: str = "") -> None:
        """A run of letters: a function, a constant, a word, a unit, or variables side by side."""
        if run.lower() in ("and", "or"):
            self.add("sep", run.lower(), spaced)
        elif run in _UNITS_AND_FUNCTIONS and self.after_value and not following.lstrip().startswith(("(", "{", "[")):
            self.add("word", run, spaced)
        elif run in FUNCTIONS or run in _FUNCTION_SYNONYMS:
            self.add("func", _FUNCTION_SYNONYMS.get(run, run), spaced)
        elif run == "binom":
            self.add("func", "binom", spaced)
        elif run in _NAMED or run in _SYMBOL_NAMES:
            self.add("name", _NAMED.get(run, run), spaced)
        elif _ROMAN_NUMERAL.fullmatch(run):
            self.add("word", run, spaced)
        elif len(run) == 1 and not (words and self.after_value and run not in "ei"):
            self.add("name", run, spaced)
        elif words or len(run) >= 4 or run.lower() in _SMALL_WORDS or (run in ABBREVIATIONS and self.after_value):
            self.add("word", run, spaced)
        else:
            for position, letter in enumerate(run):
                self.add("name", letter, spaced and position == 0)

    def command(self, name: str, text: str, position: int, spaced: bool) -> int:
        """A command read at `position`, just behind its name; returns where to go on."""
        if name in _TEXT_COMMANDS:
            while position < len(text) and text[position] == " ":
                position += 1
            if position < len(text) and text[position] == "{":
                end = _group_end(text, position)
                content = text[position + 1 : end]
                if content.strip() in UNIT_VECTORS and name in _BOLD:
                    self.add("name", f"hat({content.strip()})", spaced)
                    return end + 1
                # mathrm{e} and friends are names in upright type; a word in upright type is a word
                self.depth += 1
                if self.depth > MAX_DEPTH:
                    raise BudgetExceeded(f"nested deeper than {MAX_DEPTH}")
                self.scan(content, words=True)
                self.depth -= 1
                return end + 1
            if name in _BOLD and re.match(r"[ijk](?![A-Za-z])", text[position : position + 2]):
                self.add("name", f"hat({text[position]})", spaced)
                return position + 1
            return position
        if name in ("begin", "end"):
            end = _group_end(text, position) if text[position : position + 1] == "{" else -1
            if end < 0:
                raise NotationError("an environment without a name")
            self.add(name, text[position + 1 : end].rstrip("*"), spaced)
            return end + 1
        if (name in FUNCTIONS and name != "sqrt") or name in _FUNCTION_SYNONYMS:
            self.add("func", _FUNCTION_SYNONYMS.get(name, name), spaced)
        elif name in _SEPARATORS:
            self.add("sep", "or" if name in ("or", "lor", "vee") else "and", spaced)
        elif name in _NAMED:
            self.add("name", _NAMED[name], spaced)
        elif name in _SYMBOL_NAMES:
            self.add("name", name, spaced)
        elif name in _OPERATOR_COMMANDS or not name.isalpha():
            self.add("op", "\\" + name, spaced)
        elif name in ("R", "Z", "Q", "N", "C"):
            self.add("name", "set:" + name, spaced)
        else:
            raise NotationError(f"unknown command \\{name[:20]}")
        return position


def tokenise(cleaned: str) -> list[Token]:
    """Tokens of a cleaned answer, ended by one of kind "eof"."""
    tokeniser = _Tokeniser(cleaned)
    tokeniser.scan(cleaned)
    tokeniser.tokens.append(Token("eof", ""))
    return tokeniser.tokens
