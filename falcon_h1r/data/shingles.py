"""Text as a set of word shingles, hashed without a loop over its words.

A word is a run of letters and digits; a sign of arithmetic, and a character of a script that leaves no spaces, is a
word of its own. Case, other punctuation and spacing do not count. A text of fewer words is one shingle, itself.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

_WORD_BASE, _SHINGLE_BASE = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F  # odd
_SPACE, _IN_WORD, _ALONE = 0, 1, 2
_SIGNS = "-*/^%"  # of arithmetic, besides what Unicode calls a mathematical symbol (+ < = > | ~ × ∑ ...)
_UNSPACED = ((0x0E00, 0x0EFF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
_PLANE = 0x10000  # each character from here on is a word: rare Han, emoji, letters of mathematics


def shingle_hashes(text: str, width: int) -> NDArray[np.uint64]:
    """(shingles) 32-bit hashes of every `width` words in a row, in order and with repeats; at least one."""
    words = _word_hashes(text)
    if not len(words):
        return np.zeros(1, np.uint64)
    width = min(width, len(words))
    count = len(words) - width + 1
    hashes = np.zeros(count, np.uint64)
    for start in range(width):  # Horner's rule, all shingles at once
        hashes *= np.uint64(_SHINGLE_BASE)
        hashes += words[start : start + count]
    return _mixed(hashes) >> np.uint64(32)


def shingles_slowly(text: str, width: int) -> list[tuple[str, ...]]:
    """The shingles that `shingle_hashes` hashes, as words; none of a text without words."""
    words: list[str] = []
    before = _SPACE
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = _class_of(character)
        if kind == _IN_WORD and before == _IN_WORD:
            words[-1] += character
        elif kind != _SPACE:
            words.append(character)
        before = kind
    width = min(width, len(words))
    return [tuple(words[start : start + width]) for start in range(len(words) - width + 1)] if words else []


def _word_hashes(text: str) -> NDArray[np.uint64]:
    """(words): of each word the polynomial sum_j code[j] base^j modulo 2^64, mixed."""
    codes = _codes(text)
    kinds = _kinds().take(np.minimum(codes, _PLANE))
    codes, inside = codes[kinds != _SPACE], kinds == _IN_WORD
    follows = np.zeros(len(kinds), np.bool_)
    follows[1:] = inside[1:] & inside[:-1]
    starts = np.flatnonzero(~follows[kinds != _SPACE])
    if not len(starts):
        return np.empty(0, np.uint64)
    lengths = np.diff(starts, append=len(codes))
    powers = np.full(lengths.max(), _WORD_BASE, np.uint64)
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    places = np.arange(len(codes)) - np.repeat(starts, lengths)  # of each character in its word
    return _mixed(np.add.reduceat(codes * powers[places], starts))


def _codes(text: str) -> NDArray[np.uint32]:
    if text.isascii():
        return np.frombuffer(text.lower().encode(), np.uint8).astype(np.uint32)
    text = unicodedata.normalize("NFKC", text).casefold()
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3: every bit depends on every other."""
    hashes = hashes ^ (hashes >> np.uint64(33))
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xC4CEB9FE1A85EC53)
    hashes ^= hashes >> np.uint64(33)
    return hashes


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """(_PLANE + 1): what each character is to a word; the last entry is of all that follow."""
    return np.array([_class_of(chr(code)) for code in range(_PLANE + 1)], np.uint8)


def _class_of(character: str) -> int:
    code = ord(character)
    if code >= _PLANE:
        return _ALONE
    if character.isalnum():
        return _ALONE if any(first <= code <= last for first, last in _UNSPACED) else _IN_WORD
    return _ALONE if character in _SIGNS or unicodedata.category(character) == "Sm" else _SPACE
