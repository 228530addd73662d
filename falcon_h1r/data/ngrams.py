r"""Text as letters and digits alone, and the hashes of its character n-grams.

    normalise("Let $\left(x, y\right)$ be …")  ->  "letxybe"

What is left is the same however a copy was spaced, cased, punctuated or typeset. All hashes of a text take a few numpy
operations a character (Karp and Rabin 1987, as differences of prefix sums). Equal hashes prove nothing: whoever
finds some compares the characters.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]

# Commands that change how a formula looks, or whose sign in Unicode is no letter, so that \frac{1}{2} is 1/2 and
# \cdot is · here. They are removed wherever they begin, also before a letter: a copy may have lost its spaces.
_COMMAND = re.compile(
    r"(?i)\\(?:"
    r"left|right|big{1,2}[lr]?|displaystyle|limits|"
    r"text(?:bf|it|rm|tt|sf)?|math(?:bf|it|rm|tt|sf|bb|cal|frak|scr)|operatorname|boldsymbol|"
    r"[dtc]?frac|sqrt|cdots?|[lv]?dots|times|div|pm|mp|circ|angle|triangle|"
    r"le(?:qslant|q)?|ge(?:qslant|q)?|neq?|approx|equiv|q?quad)"
    # And what a page from the web leaves: bare tags and entities whose sign is no letter.
    r"|</?(?:br|p|b|i|u|em|strong|div|span|[uo]l|li|su[bp]|code|pre)\s*/?>"
    r"|&(?:nbsp|[lg][te]|ne|amp|quot|apos|times|middot|minus|deg|[lr][sd]quo|[nm]dash|hellip|#\d{1,6}|#x[\da-f]{1,6});"
)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_LOWER = bytes(ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256))
_NO_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalnum())

_BASE = 0x9E3779B97F4A7C15  # odd, hence with an inverse modulo 2^64
_BLOCK = 1 << 15  # windows hashed at a time: what stays in the processor's second cache


@functools.cache
def letters_of(character: str) -> str:
    """What one character becomes: its compatibility decomposition, case folded, without marks: É -> e, ² -> 2.

    Decomposed (NFKD) rather than composed, so that a character's letters do not depend on its neighbours.
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(letter for letter in folded if letter.isalnum())


class _Letters(dict[int, str]):
    """`letters_of` as a table that fills itself."""

    def __missing__(self, code: int) -> str:
        self[code] = letters = letters_of(chr(code))
        return letters


_LETTERS = _Letters()


def normalise(text: str) -> str:
    """The letters and digits of a text, in order, case folded."""
    if "\\" in text or "<" in text or "&" in text:
        text = _COMMAND.sub("", text)
    if not text.isascii():
        text = _NOT_ASCII.sub(lambda match: match.group().translate(_LETTERS), text)
    return text.encode().translate(_LOWER, _NO_LETTERS).decode()  # bytes below 128 are whole characters in UTF-8


def normalise_with_positions(text: str) -> tuple[str, list[int]]:
    """`normalise`, character by character, and where in the text each of its characters comes from."""
    removed = {index for match in _COMMAND.finditer(text) for index in range(*match.span())}
    letters: list[str] = []
    positions: list[int] = []
    for index, character in enumerate(text):
        if index not in removed:
            its_letters = letters_of(character)
            letters.extend(its_letters)
            positions.extend([index] * len(its_letters))
    return "".join(letters), positions


def codes_of(text: str) -> Codes:
    """(characters) uint32: the code points of a text that `normalise` returned."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@functools.cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(count), (count): the base's powers and their inverses, modulo 2^64."""
    powers = np.empty((2, count), np.uint64)
    for row, factor in zip(powers, (_BASE, pow(_BASE, -1, 1 << 64)), strict=True):
        row[0], row[1:] = 1, factor
        np.multiply.accumulate(row, out=row)
    return powers[0], powers[1]


def window_hashes(codes: Codes, width: int) -> NDArray[np.uint64]:
    """(characters - width + 1): the hash of every window, sum_j codes[i + j] base^j modulo 2^64.

    With prefix sums S_i = sum_{j<i} codes[j] base^j that is (S_{i+width} - S_i) base^-i.
    """
    count = max(0, len(codes) - width + 1)
    hashes = np.empty(count, np.uint64)
    powers, inverses = _powers(_BLOCK + width)
    for start in range(0, count, _BLOCK):
        block = codes[start : start + _BLOCK + width - 1]
        sums = np.zeros(len(block) + 1, np.uint64)
        np.multiply(block, powers[: len(block)], out=sums[1:])
        np.add.accumulate(sums, out=sums)
        windows = len(block) - width + 1
        np.subtract(sums[width:], sums[:windows], out=hashes[start : start + windows])
        hashes[start : start + windows] *= inverses[:windows]
    return hashes


def window_hashes_slowly(codes: Codes, width: int) -> list[int]:
    """`window_hashes`, by the formula."""
    values = [int(code) for code in codes]
    return [
        sum(value * pow(_BASE, j, 1 << 64) for j, value in enumerate(values[start : start + width])) % (1 << 64)
        for start in range(len(values) - width + 1)
    ]
