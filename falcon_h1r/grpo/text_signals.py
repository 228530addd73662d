"""What a response shows by itself, before any verifier looks at it: structure, scripts, repetition. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from falcon_h1r.data.scripts import count_scripts
from falcon_h1r.types import THINK_END, THINK_START

# What may break <think>reasoning</think>answer, in the order in which it is looked for.
UNOPENED, BEFORE, UNCLOSED, REPEATED = "unopened", "before", "unclosed", "repeated"
EMPTY, UNANSWERED = "empty", "unanswered"
OF_THE_CUT = (UNCLOSED, UNANSWERED)  # what a response that was cut off cannot help

# Greek runs too short to be words: products of variables. A longer one, and the text is Greek.
_GREEK_VARIABLES = re.compile(r"(?<![\u0370-\u03ff\u1f00-\u1fff])[\u0370-\u03ff]{1,3}(?![\u0370-\u03ff\u1f00-\u1fff])")
_WRITTEN_WITH = {"hiragana": ("katakana", "han"), "katakana": ("hiragana", "han")}
_LONGEST_READ = 200_000  # characters: formulas that never close cost up to 2,000 times their number
NGRAM_TOKENS = 8
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no bit of an earlier token is lost: 2^64 over the golden ratio


def think_fault(text: str, opened: bool = False) -> str | None:
    """What breaks the structure `<think>reasoning</think>answer`, the first of these; None: nothing does.

    unopened      there is no <think>
    before        text, beyond white space, stands before it
    unclosed      no </think> follows
    repeated      a second <think> or </think>: nested, or thinking again after the answer
    empty         no reasoning between them
    unanswered    nothing after </think>

    Args:
        opened: the prompt ends in <think>, as some chat templates do: the response begins inside.
    """
    if not opened:
        before, start, text = text.partition(THINK_START)
        if not start:
            return UNOPENED
        if before.strip():
            return BEFORE
    reasoning, end, answer = text.partition(THINK_END)
    if not end:
        return UNCLOSED
    if THINK_START in text or THINK_END in answer:
        return REPEATED
    if not reasoning.strip():
        return EMPTY
    return None if answer.strip() else UNANSWERED


def other_script_share(text: str, question: str) -> float:
    """The share of a response's letters in another script than the question's and Latin.

    Latin letters never count as foreign, for mathematics and code are written in them: English after a Chinese
    question is not mixing, Chinese after an English one is. Formulas between dollars or brackets, LaTeX commands,
    fenced code, mathematical alphabets and Greek runs of up to three letters (variables) are no letters of a language.
    Two languages of one script are not told apart. 0 where there are no letters. Of a very long response the first
    200,000 characters are looked at.
    """
    text = text[:_LONGEST_READ]
    if text.isascii():
        return 0.0
    letters = count_scripts(_GREEK_VARIABLES.sub(" ", text))
    own = {"latin", *count_scripts(question)}
    own.update(script for name in tuple(own) for script in _WRITTEN_WITH.get(name, ()))
    total = letters.total()
    return sum(count for script, count in letters.items() if script not in own) / total if total else 0.0


def repeated_ngram_share(ids: Sequence[int], n: int = NGRAM_TOKENS) -> float:
    """The share of the n-grams of tokens that occur earlier in the same response: 1 - distinct / all.

    n-grams are compared by 64-bit hashes, sum over j of ids[i + j] * m^j modulo 2^64. 0 where there are none.
    """
    count = len(ids) - n + 1
    if count < 1:
        return 0.0
    tokens = np.asarray(ids, dtype=np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    for j in range(n):
        hashes = hashes * np.uint64(_MULTIPLIER) + tokens[j : j + count]
    return 1.0 - len(np.unique(hashes)) / count
