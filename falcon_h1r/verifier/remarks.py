"""What an answer says besides its value: approximations, the range of a parameter, words for a whole answer."""

from __future__ import annotations

import re

# What follows a value without being part of it.
_REMARK = re.compile(
    r"\\text\s*\{\s*[(\[]?\s*(?:approx\w*|about|roughly|or about|i\.e|where|for|when|if|with)\b"
    r"|[(\[]\s*(?:\\text\s*\{\s*)?(?:approximately|approx|about|roughly|where)\b"
    r"|(?:,|;|\(|\bfor\b|\\text\s*\{[^{}]*\})\s*[a-zA-Z](?:_\w)?(?:\s*,\s*[a-zA-Z](?:_\w)?){0,4}\s*\\in\s*"
    r"(?:\\mathbb\s*\{?\s*|\\)?[ZNQRC]\b"
    r"|(?:,|;|\bfor\b)\s*[a-zA-Z]\s*(?:=|\\in\s*\\\{)\s*-?\d+(?:\s*,\s*(?:-?\d+|\\dots))+\s*(?:\\\})?$"
    r"|(?:,|\\text\s*\{\s*|\band\b)(?:[^{},]{0,30}\b)?permutations?\b"
    r"|\\forall\b|\bfor (?:all|any|every|some|each)\b|\bwhere\b"
)
_PARAMETER = re.compile(r"(?<![A-Za-z\\])([A-Za-z](?:_\{?\w+\}?)?)(?![A-Za-z])")
_INTEGERS = re.compile(r"\\in\s*(?:\\mathbb\s*\{?\s*|\\)?[ZN]\b|\binteger|\bnatural number")
_NOT_NAMES = re.compile(r"\\mathbb\s*\{?\s*[A-Z]\s*\}?|\\[A-Za-z]+|\b[A-Za-z]{2,}\b|\ba (?=[a-z]{2})")

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
NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_EXCEPT = re.compile(
    r"(?i)(?:all|every|any) real (?:numbers?|values?)(?: of [a-z])?,? (?:except|other than|but|besides)(?: for)?\s*"
    r"(?:[a-z]\s*=\s*)?(.+)"
)
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")


def split_remark(text: str) -> tuple[str, str]:
    """(value, remark) of a cleaned answer; the remark is "" where there is none, or nothing before it."""
    remark = None if "\\begin" in text else _REMARK.search(text)
    if remark is None or remark.start() == 0:
        return text, ""
    return text[: remark.start()].rstrip(" ,;("), text[remark.start() :]


def _excepted(words: str) -> str | None:
    """All real numbers but some, as a difference of sets."""
    match = _EXCEPT.fullmatch(words)
    return rf"\mathbb{{R}} \setminus \{{{match.group(1)}\}}" if match else None


def builder_family(text: str) -> str:
    r"""\{2k : k \in \mathbb{Z}\} as its values and the remark about k; any other answer unchanged."""
    match = _FAMILY.fullmatch(text)
    return f"{match.group(1)}, {match.group(2)}" if match else text


def declared_parameters(remark: str) -> tuple[frozenset[str], bool]:
    """Names that a remark introduces as free to choose, and whether they stand for integers."""
    names = _PARAMETER.findall(_NOT_NAMES.sub(" ", remark))
    integers = _INTEGERS.search(remark) is not None
    return frozenset(re.sub(r"_\{?(\w+)\}?", r"_\1", name) for name in names), integers


def whole_answer(text: str) -> str:
    """An answer in words as notation, where the words are known; anything else unchanged."""
    if not any(c.isalpha() for c in text) or len(text) > 80:
        return text
    words = " ".join(_WRAPPED.sub(r"\1", text).split()).strip(" .!")
    for pattern, meaning in _WHOLE_ANSWERS:
        if pattern.fullmatch(words):
            return meaning
    return NUMBER_WORDS.get(words.lower()) or _excepted(words) or text
