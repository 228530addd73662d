"""Recursive descent over tokens: a whole answer. Lists, labels, relations, brackets, sets, cases."""

from __future__ import annotations

import re

from falcon_h1r.verifier.reading.notation import clean_parts
from falcon_h1r.verifier.reading.parse_expression import ExpressionParser
from falcon_h1r.verifier.reading.sequences import enumerated, joined_solutions, with_progression, with_shared_modulus
from falcon_h1r.verifier.reading.spellings import changes_value
from falcon_h1r.verifier.tree.kinds import is_set
from falcon_h1r.verifier.tree.node import MAX_ANSWER_CHARS, MAX_ITEMS, BudgetExceeded, Node, NotationError, free_symbols
from falcon_h1r.verifier.tree.rewrite import is_name

RELATIONS = {
    "=": "=", "\\equiv": "=", "<": "<", ">": ">", "≤": "<=", "≥": ">=", "≠": "!=", "\\in": "in", "\\notin": "notin"
}  # fmt: skip
_CLOSES = {"(": (")", "]", "\\rangle"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",), "\\langle": ("\\rangle", ")")}
_MAX_PIECES = 60
_MAX_NAME_CHARS = 40
_BRACKETED = re.compile(r"\([^()]*\)|\{[^{}]*\}")
_SAYS_MORE = re.compile(r"[,;<>≤≥≠]|\\(?:in|notin)(?![a-z])")  # in front of an equals sign more than a name
_IN_LABELS = (",", "|", "\\cap", "\\cup", "'")  # P(A | B) = ...
_ALIGNED = ("aligned", "align", "split", "gathered")
_FILLERS = ("is", "are", "a", "an", "the")
_CONDITION_WORDS = ("if", "for", "when", "where", "as", "and")
_SET_OPERATORS = {"\\cup": "union", "\\cap": "inter", "\\setminus": "minus", "\\backslash": "minus"}


class AnswerParser(ExpressionParser):
    """The grammar of answers on top of that of expressions."""

    def answer(self) -> Node:
        """Everything up to the end of the text."""
        node = self.collection(())
        if self.token.kind != "eof":
            raise NotationError(f"unexpected {self.token.text[:20]!r}")
        return node

    def collection(self, closing: tuple[str, ...]) -> Node:
        """Items between separators; several items to a semicolon are one tuple each: p=5,q=2; p=7,q=2."""
        groups: list[list[Node]] = [[]]
        kinds: set[str] = set()
        separators: list[str] = []  # between the items of the first group
        while self.token.kind != "eof" and self.token.text not in closing:
            if self.token.kind == "sep":
                kinds.add(self.token.text)
                separators.append(self.token.text)
                if self.advance().text == ";" and groups[-1]:
                    groups.append([])
                continue
            if groups[-1] and self.tokens[self.position - 1].kind != "sep":
                raise NotationError(f"unexpected {self.token.text[:20]!r}")
            groups[-1].append(self.item())
            if len(groups) + len(groups[-1]) > MAX_ITEMS:
                raise BudgetExceeded(f"more than {MAX_ITEMS} items")
        groups = [group for group in groups if group]
        if len(groups) == 1 and (solutions := joined_solutions(groups[0], separators)) is not None:
            return solutions
        joiner = "or" if "or" in kinds else "and" if "and" in kinds else ","
        if len(groups) == 1 and len(groups[0]) == 1 and not kinds - {"and", "or"} and closing == ():
            return groups[0][0]
        if len(groups) > 1 and any(len(group) > 1 for group in groups):
            return Node("list", tuple(Node("tuple", tuple(group), name="()") for group in groups), name=joiner)
        items = with_progression(with_shared_modulus([item for group in groups for item in group]))
        if len(items) == 1 and closing == ():
            return items[0]
        return Node("list", items, name=joiner)

    def item(self) -> Node:
        """side (relation side)*; the last part of a derivation; the exact part of an approximation."""
        sides = [_named_point(self.modulus(self.side()))]
        names: list[str] = []
        while self.token.kind == "op":
            if self.token.text in RELATIONS:
                names.append(RELATIONS[self.advance().text])
                sides.append(self.modulus(self.side()))
            elif self.accept("\\approx"):  # an exact value and its rounding, or a name and its value
                rounded = self.side()
                if len(sides) == 1 and is_name(sides[0]):
                    sides, names = [sides[0], rounded], ["="]
            elif self.accept("\\iff", "\\implies", "\\Rightarrow"):
                sides, names = [self.side()], []
            else:
                break
        return sides[0] if not names else Node("chain", tuple(sides), name=" ".join(names))

    def modulus(self, residue: Node) -> Node:
        r"""What follows as \pmod{m}, \bmod m or (mod m), around its residue; without one, the residue."""
        bracket = self.token.text == "(" and self.peek().text == "mod"
        if bracket:
            self.position += 2
            modulus = self.expression()
            self.expect(")")
        elif self.accept("\\pmod", "\\mod", "\\bmod") or self.accept_word("mod"):
            modulus = self.operand()
        else:
            return residue
        return Node("mod", (residue, modulus))

    def side(self) -> Node:
        """A name with its arguments, or set operations and ratios of expressions."""
        self.accept("\\approx")
        label = self.label()
        if label is not None:
            return label
        node = self.ratio()
        pieces = 1
        while self.token.kind == "op" and self.token.text in _SET_OPERATORS:
            pieces += 1
            if pieces > _MAX_PIECES:
                raise BudgetExceeded(f"a union of more than {_MAX_PIECES} pieces")
            node = Node(_SET_OPERATORS[self.advance().text], (node, self.ratio()))
        return node

    def label(self) -> Node | None:
        """f(x), x(t), P(a, b) before an equals sign: a name, not a product; "Paolo:" before a value."""
        if self.token.kind == "word" and self.peek().text == ":":
            word = self.advance().text.lower()
            self.tokens[self.position] = type(self.token)("op", "=")
            return Node("sym", name=word)
        if self.token.kind not in ("name", "func"):
            return None
        start = self.position
        if self.token.kind == "name":
            name = self.advance().text
            name += self.subscript()
            while self.accept("'"):
                name += "'"
            if self.token.text == "^" and [self.peek(k).text for k in (1, 2, 3, 4)] == ["{", "-", "1", "}"]:
                self.position += 5  # the inverse function
                name += "^-1"
            if self.accept("("):
                inside = ""
                while self.token.kind in ("name", "num") or self.token.text in _IN_LABELS:
                    inside += self.advance().text
                if inside and self.accept(")") and self.token.text == "=":
                    return Node("sym", name=f"{name}({inside})")
        self.position = start
        return None

    def ratio(self) -> Node:
        """a : b : c; with a part like 05 or 00 it is a time of day, which has no common factor to cancel."""
        parts = [self.expression()]
        clock = False
        while self.accept(":") or self.accept_word("to"):
            clock = clock or (len(self.token.text) == 2 and self.token.text[0] == "0")
            parts.append(self.expression())
        half = self.advance().text.lower() if self.token.text.lower() in ("am", "pm") else ""
        if len(parts) == 1:
            return parts[0]
        return Node("ratio", tuple(parts), name=f"clock{half}" if clock or half else "")

    # ------------------------------------------------------------------ brackets
    def bracketed(self) -> Node:
        """A bracket of any kind with what it holds."""
        self.enter()
        bars, self.open_bars = self.open_bars, 0
        opening = self.advance().text
        if opening == "\\{" and (condition := self.builder()) is not None:
            node = condition
        elif opening == "{" and self.is_stacked():
            node = self.stacked(self.expression())
            self.expect("}")
        else:
            inner = self.collection(_CLOSES[opening])
            closing = self.advance().text
            if closing not in _CLOSES[opening]:
                raise NotationError(f"{opening} never closes")
            node = _close(opening, closing, inner)
        self.open_bars = bars
        self.depth -= 1
        return node

    def is_stacked(self) -> bool:
        """Whether the open group is {a \\choose b} or {a \\over b}."""
        level = 0
        for token in self.tokens[self.position :]:
            level += {"{": 1, "}": -1}.get(token.text, 0)
            if level < 0:
                return False
            if level == 0 and token.text in ("\\choose", "\\over"):
                return True
        return False

    def builder(self) -> Node | None:
        r"""\{x | condition\} and \{x \in \mathbb{R} : condition\}, after the opening brace."""
        start = self.position
        if self.token.kind != "name":
            return None
        variable = self.advance().text + self.subscript()
        domain: Node | None = None
        if self.accept("\\in"):
            # nothing that nests: it would be parsed once more if this turns out to be no set-builder
            domain = self.operand() if self.token.kind == "name" or self.token.text == "\\mathbb" else None
        if not self.accept("|", ":"):
            self.position = start
            return None
        condition = self.collection(("\\}",))
        self.expect("\\}")
        condition = condition.args[0] if len(condition.args) == 1 and condition.op == "list" else condition
        body = Node("builder", (condition,), name=variable)
        return body if domain is None else Node("inter", (domain, body))

    # ------------------------------------------------------------------ cases and systems
    def cases(self) -> Node:
        """Rows between braces: a system of equations, or values with the conditions under which they hold."""
        environment = self.advance().text
        if environment == "array" and self.token.text == "{":
            self.raw_group()
        if environment == "array":  # columns as in a list
            self.tokens = [type(t)("sep", ",") if t.text == "&" else t for t in self.tokens]
        elif environment in _ALIGNED:  # here "&" is about layout
            self.tokens[self.position :] = [t for t in self.tokens[self.position :] if t.text != "&"]
        rows: list[list[Node]] = [[]]
        while self.token.kind not in ("end", "eof"):
            if self.accept("\\\\"):
                rows.append([])
            elif not self.accept("&"):
                while self.token.text in _CONDITION_WORDS:
                    self.advance()
                rows[-1].append(self.cell(environment))
            if sum(map(len, rows)) > MAX_ITEMS:
                raise BudgetExceeded(f"more than {MAX_ITEMS} cells")
        if self.advance().text != environment:
            raise NotationError("an environment never ends")
        rows = [list(row[0].args) if len(row) == 1 and _is_case(row[0]) else row for row in rows if row]
        if rows and all(len(row) == 1 for row in rows):
            return Node("list", tuple(row[0] for row in rows), name="and")
        if any(len(row) != 2 for row in rows):
            raise NotationError("cases that are not pairs of a value and its condition")
        return Node("piecewise", tuple(Node("row", tuple(row)) for row in rows))

    def cell(self, environment: str) -> Node:
        """One cell of cases; a condition in words ("n is even") is text."""
        ends = ("\\\\", "&", environment)
        end = self.position
        while self.tokens[end].kind != "eof" and self.tokens[end].text not in ends:
            end += 1
        inside = self.tokens[self.position : end]
        if any(t.kind == "word" and t.text not in _CONDITION_WORDS for t in inside):
            self.position = end
            words = (t.text for t in inside if t.text not in (*_FILLERS, ","))
            return Node("text", name=" ".join(words).lower())
        cell = self.collection((*ends, *_CONDITION_WORDS))
        return cell.args[0] if len(cell.args) == 1 else cell


def _is_case(cell: Node) -> bool:
    """A value and its condition in one cell: 3, n = 1."""
    return cell.op == "list" and len(cell.args) == 2 and cell.args[0].op != "chain" and cell.args[1].op == "chain"


def _named_point(node: Node) -> Node:
    """A(1, 2) as A = (1, 2)."""
    if node.op == "mul" and len(node.args) == 2 and node.args[1].op == "tuple" and node.args[0].name[:1].isupper():
        return Node("chain", node.args, name="=")
    return node


def _close(opening: str, closing: str, inner: Node) -> Node:
    """What a bracket means by its shape and by how many items it holds."""
    if opening == "\\{":
        return Node("set", inner.args)
    if inner.op == "list" and len(inner.args) == 1:
        if (opening, closing) in (("(", "]"), ("[", ")")):
            raise NotationError("brackets that do not match")
        return inner.args[0]
    if not inner.args:
        raise NotationError("an empty bracket")
    if opening == "{":
        return Node("set", inner.args)
    if opening == "\\langle" and closing == "\\rangle":
        return Node("tuple", inner.args, name="()")
    # an angle beside a round bracket is a closed end, as some countries write it
    return Node("tuple", inner.args, name=opening.replace("\\langle", "[") + closing.replace("\\rangle", "]"))


def _tree(cleaned: str, tight_division: bool) -> Node:
    """The tree of a cleaned answer; where only what stands before the last equals sign cannot be read, it is a name."""
    try:
        return AnswerParser(cleaned, tight_division).answer()
    except NotationError:
        name, equals, value = cleaned.rpartition("=")
        if not equals or not name.strip() or len(name) > _MAX_NAME_CHARS or "=" in name or changes_value(name):
            raise
        if name.count("{") != name.count("}") or name.count("(") != name.count(")"):
            raise
        if _SAYS_MORE.search(_BRACKETED.sub("", name)):
            raise
        return AnswerParser(value, tight_division).answer()


def parse_answer(answer: str, join_thousands: bool = True, tight_division: bool = False) -> Node:
    """The tree of an answer; raises NotationError or BudgetExceeded, and nothing else, on any text.

    Args:
        join_thousands: 12,345 is one number.
        tight_division: h/kT is h over kT, as physicists write, rather than T times h/k.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        raise BudgetExceeded(f"longer than {MAX_ANSWER_CHARS} characters")
    cleaned, remark = clean_parts(answer, join_thousands)
    if not cleaned:
        raise NotationError("empty")
    if len(cleaned) > MAX_ANSWER_CHARS:
        raise BudgetExceeded(f"longer than {MAX_ANSWER_CHARS} characters when written out")
    tree = _tree(cleaned, tight_division)
    if remark.listing and (written_out := enumerated(tree, remark.listing)) is not None:
        return written_out
    if not remark.parameters:
        return tree
    if remark.domain in "ZN" and is_set(tree) and free_symbols(tree) <= remark.parameters:  # 1 < x < 5, x whole
        return Node("inter", (Node("sym", name=f"set:{remark.domain}"), tree))
    return Node("given", (tree,), name=f"{remark.domain}:" + " ".join(sorted(remark.parameters)))
