"""A response as the rules of instruction following see it: words, sentences, paragraphs, and what a rule is.

Every function takes time linear in the text, whatever a model has written.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Given = Mapping[str, Any]  # an instruction's arguments, by name


@dataclass(frozen=True, slots=True)
class Rule:
    """How one kind of instruction is decided."""

    follows: Callable[[str, Given], bool]
    needs: tuple[str, ...] = ()  # arguments without which it cannot be


_WORD = re.compile(r"\w+")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St|Prof|Capt|Cpt|Lt|Mt|Inc|Ltd|Jr|Sr|Co|vs|e\.g|i\.e)\.")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores: what IFEval counts as words."""
    return _WORD.findall(text)


def tokens(text: str) -> list[str]:
    """What stands between white space, without punctuation around it: "don't" is one."""
    return [bare for token in text.split() if (bare := stripped(token))]


def bare_words(text: str) -> list[str]:
    """Words between white space, in lower case and without punctuation."""
    return text.lower().translate(_WITHOUT_PUNCTUATION).split()


def sentences(text: str) -> list[str]:
    """Sentences with the marks that end them; a last one may have none.

    A rule of our own: a mark before white space ends a sentence, unless it closes a common abbreviation. The
    benchmarks' authors use NLTK's trained splitter, which divides some texts elsewhere.
    """
    flat = _ABBREVIATION.sub(lambda found: found[1].replace(".", "\0") + "\0", " ".join(text.split()))
    found, start = [], 0
    for mark in _SENTENCE_END.finditer(flat):
        found.append(flat[start : mark.end()])
        start = mark.end()
    found.append(flat[start:])
    return [sentence.replace("\0", ".").strip() for sentence in found if sentence.strip()]


def ends_with(sentence: str, mark: str) -> bool:
    """Whether a sentence ends with a mark, quotes and brackets behind it aside."""
    return sentence.rstrip("\"'”’)]").endswith(mark)


def filled_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def stripped(text: str) -> str:
    """Without punctuation and spaces around it."""
    return text.strip(string.punctuation + string.whitespace)


def count_word(word: str, text: str) -> int:
    """How often a word or phrase stands by itself, whatever its case."""
    return len(re.findall(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE))


def related(number: int, relation: str, bound: int) -> bool:
    """IFEval's two relations; "less than" leaves the bound out.

    Raises:
        ValueError: for another.
    """
    if relation == "less than":
        return number < bound
    if relation == "at least":
        return number >= bound
    raise ValueError(f"no such relation: {relation}")
