"""What an answer says besides its value: approximations, the range of a parameter, words for a whole answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SET = r"(?:\\mathbb\s*\{?\s*|\\)?[ZNQRC](?![A-Za-z])\+?\s*\}?(?:\s*_\s*\{[^{}]*\}|\s*\^\s*\{?\s*[+*]\s*\}?)?"
_NAMES = r"[a-zA-Z](?:_\w)?(?:\s*,\s*[a-zA-Z](?:_\w)?){0,4}"
# "k \in Z" behind a comma, a bracket or a word: it introduces k, and more of the answer may follow.
_DECLARATION = re.compile(
    rf"(?:[,;]\s*(?:\\text\s*\{{[^{{}}]*\}}\s*|(?:for|where|with)\s+)?|\(\s*|\bfor\s+|\\text\s*\{{[^{{}}]*\}}\s*)({_NAMES}\s*\\in\s*{_SET})\s*\)?"
)
# From here on the text is about the value: how it was rounded, when it holds, what its names stand for.
_TAIL = re.compile(
    r"(?P<rounding>\\text\s*\{\s*[(\[]?\s*(?:approx\w*|about|roughly|or about|i\.e)\b"
    r"|[(\[]\s*(?:\\text\s*\{\s*)?(?:approximately|approx|about|roughly)\b)"
    r"|(?P<condition>\\text\s*\{\s*[(\[]?\s*(?:when|if|unless|except|provided)\b)"
    r"|(?P<listing>(?:,|;|\bfor\b)\s*[a-zA-Z]\s*(?:=|\\in\s*\\\{)\s*-?\d+(?:\s*,\s*(?:-?\d+|\\dots))+\s*(?:\\\})?$"
    r"|(?:,|\\text\s*\{\s*|\band\b)(?:[^{},]{0,20}\b)?(?<!without )permutations?\b)"
    r"|(?P<detail>\\text\s*\{\s*[(\[]?\s*(?:where|for|with)\b|[(\[]\s*(?:\\text\s*\{\s*)?where\b"
    r"|\\forall\b|\bfor (?:all|any|every|some|each)\b|\bwhere\b)"
)
_PARAMETER = re.compile(r"(?<![A-Za-z\\])([A-Za-z](?:_\{?\w+\}?)?)(?![A-Za-z])")
_NATURAL = re.compile(
    r"\\in\s*(?:\\mathbb\s*\{?\s*|\\)?(?:N\b|Z\+)|\b(?:positive|non-?negative) integer|\bnatural number"
)
_INTEGERS = re.compile(r"\\in\s*(?:\\mathbb\s*\{?\s*|\\)?Z\b|\binteger")
_FREE = re.compile(r"\\in\b|\\forall|\b(?:constant|arbitrary|real|any|every|all|parameter|number)")
_NOT_NAMES = re.compile(r"\\mathbb\s*\{?\s*[A-Z]\+?\s*\}?|\\[A-Za-z]+|\b[A-Za-z]{2,}\b|\ba (?=[a-z]{2})")
# a tail that goes on with further answers: "or", "and ... for ...", "4 for a = 2"
_FURTHER = re.compile(
    r"\\text\s*\{[^{}]*\b(?:or|and)\b[^{}]*\}|\bor\b[^=]*=|\b(?:for|if|when)\b.*[,;}].*\b(?:for|if|when)\b|\band \d"
)
_ASIDE = re.compile(r"\\text\s*\{\s*\((?:with|where|for)\b[^(){}]*\)\s*([,;]?)\s*\}(?=\s*[,;]?\s*\S)")
_RESTRICTING = re.compile(r"\b(?:even|odd|prime|composite|divisible|multiple|negative)|\d+|[<>≤≥≠=]")


@dataclass(frozen=True, slots=True)
class Remark:
    """What an answer says besides its value.

    `parameters` are free to choose, from the integers ("Z"), from the naturals ("N") or otherwise ("C"): `domain`.
    `condition` says when the value holds, `restrictions` what a detail speaks of, `listing` how to write out more.
    """

    parameters: frozenset[str] = frozenset()
    domain: str = ""
    condition: str = ""
    restrictions: tuple[str, ...] = ()
    listing: str = ""

    @property
    def text(self) -> str:
        """One string for remarks that say the same."""
        said = (self.domain, self.condition, *self.restrictions, self.listing)
        return f" [{' '.join(part for part in said if part)}]" if any(said) else ""

    def contradicts(self, other: Remark) -> bool:
        """Whether two values under these remarks are different answers, even if the values are equal."""
        if self.condition != other.condition:
            return True
        if self.restrictions and other.restrictions:
            return self.restrictions != other.restrictions
        return "=" in self.restrictions + other.restrictions  # the value at one point


NO_REMARK = Remark()

_FAMILY = re.compile(
    r"\\\{\s*((?![a-z]\s*(?:\\in|[|:]))[^|:{}]*(?:\{[^{}]*\}[^|:{}]*)*)[|:]\s*"
    r"([a-z](?:\s*,\s*[a-z])*\s*\\in\s*\\mathbb\s*\{?\s*[ZNQR]\s*\}?|[a-z]\s*=\s*-?\d+(?:\s*,\s*(?:-?\d+|\\dots))+)\s*\\\}"
)

# Whole answers in words, and what they say. "No solution" is an empty set, infinitely many is infinity.
_NOUNS = (
    "solutions?|roots?|values?|integers?|(?:natural )?numbers?|pairs?|triples?|functions?|polynomials?|primes?|"
    "points?|triangles?|answers?"
)
_WHOLE_ANSWERS = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (r"(?:there (?:is|are) )?(?:no|none)(?: such)?(?: (?:real|integer|positive|possible|valid))*"
         rf"(?: (?:{_NOUNS}))(?: exists?)?|(?:the )?empty set|none|no such [a-z ]{{1,30}} exists?", r"\emptyset"),
        (r"(?:the )?(?:limit )?(?:does not|doesn't|do not|don't) exist|dne", r"\text{does not exist}"),
        (r"infinite(?:ly many)?(?: solutions)?|infinity", r"\infty"),
        (r"(?:all )?(?:the )?even (?:integers|numbers)", r"2k, k \in \mathbb{Z}"),
        (r"(?:all )?(?:the )?odd (?:integers|numbers)", r"2k+1, k \in \mathbb{Z}"),
        (r"(?:all )?(?:the )?integers", r"\mathbb{Z}"),
        (r"all real (?:numbers|values)|(?:all|every|any) reals?(?: numbers?)?", r"\mathbb{R}"),
    )
)  # fmt: skip
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_ONES)}  # of bases: 1011_{\text{two}}
_EXCEPT = re.compile(
    r"(?i)(?:all|every|any) real (?:numbers?|values?)(?: of [a-z])?,? (?:except|other than|but|besides)(?: for)?\s*"
    r"(?:[a-z]\s*=\s*)?(.+)"
)
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")


def split_remark(text: str) -> tuple[str, Remark]:
    """(value, remark) of a cleaned answer; nothing is a remark at its very start."""
    if "\\begin" in text:
        return text, NO_REMARK
    declared: list[str] = []

    def declaration(match: re.Match[str]) -> str:
        before = text[: match.start()]
        if not before.strip() or before.count("\\{") != before.count("\\}"):
            return match.group()
        declared.append(match.group(1))
        return " "

    text = _ASIDE.sub(r"\1 ", text) if "(" in text else text
    value = " ".join(_DECLARATION.sub(declaration, text).split()) if "\\in" in text else text
    tail = _TAIL.search(value)
    if tail is None or tail.start() == 0:
        tail_text, kind = "", ""
    else:
        value, tail_text, kind = value[: tail.start()], value[tail.start() :], str(tail.lastgroup)
    if kind == "detail" and _FURTHER.search(tail_text):
        kind = "condition"  # it goes on with more answers
    if kind == "detail" and _FREE.search(tail_text):
        declared.append(tail_text)
    if kind == "listing" and "dots" in tail_text:
        declared.append(f"{_PARAMETER.findall(_NOT_NAMES.sub(' ', tail_text))[0]} \\in \\mathbb{{N}}")
        kind = ""
    parameters, domain = _declared(" , ".join(declared))
    return value.rstrip(" ,;("), Remark(
        parameters,
        domain,
        condition="".join(tail_text.split()) if kind == "condition" else "",
        restrictions=tuple(_RESTRICTING.findall(tail_text)) if kind == "detail" else (),
        listing=tail_text if kind == "listing" else "",
    )


def _declared(text: str) -> tuple[frozenset[str], str]:
    """Names that a text introduces as free to choose, and their domain."""
    names = _PARAMETER.findall(_NOT_NAMES.sub(" ", text))
    domain = "N" if _NATURAL.search(text) else "Z" if _INTEGERS.search(text) else "C" if names else ""
    return frozenset(re.sub(r"_\{?(\w+)\}?", r"_\1", name) for name in names), domain


def _excepted(words: str) -> str | None:
    """All real numbers but some, as a difference of sets."""
    match = _EXCEPT.fullmatch(words)
    return rf"\mathbb{{R}} \setminus \{{{match.group(1)}\}}" if match else None


def builder_family(text: str) -> str:
    r"""\{2k : k \in \mathbb{Z}\} as its values and the remark about k; any other answer unchanged."""
    match = _FAMILY.fullmatch(text)
    return f"{match.group(1)}, {match.group(2)}" if match else text


def whole_answer(text: str) -> str:
    """An answer in words as notation, where the words are known; anything else unchanged."""
    if not any(c.isalpha() for c in text) or len(text) > 80:
        return text
    words = " ".join(_WRAPPED.sub(r"\1", text).split()).strip(" .!")
    for pattern, meaning in _WHOLE_ANSWERS:
        if pattern.fullmatch(words):
            return meaning
    return _excepted(words) or text
