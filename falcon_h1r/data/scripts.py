"""In which scripts a text is written, by its letters; code and formulas are left out."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from falcon_h1r.types import InputError

FEWEST = 10  # letters of other scripts below which a text is none of theirs: a name, a quoted word

# First words of a letter's name in Unicode that are not its script's. None: a sign like °, whatever it is called.
_NAMES = {
    "cjk": "han", "ideographic": "han", "katakana-hiragana": "katakana", "halfwidth": "katakana",
    "fullwidth": "latin", "mathematical": None,
    "double-struck": None, "script": None, "black-letter": None, "micro": None, "ohm": None, "kelvin": None,
    "angstrom": None, "planck": None, "modifier": None, "superscript": None, "subscript": None, "feminine": None,
    "masculine": None, "circled": None, "parenthesized": None, "alef": None, "bet": None, "information": None,
}  # fmt: skip
KNOWN = frozenset(
    "latin cyrillic greek han hiragana katakana hangul bopomofo arabic hebrew thai lao khmer myanmar tibetan "
    "devanagari bengali tamil telugu kannada malayalam gujarati gurmukhi oriya sinhala georgian armenian ethiopic "
    "mongolian".split()
)
_IGNORED = re.compile(  # bounded, so that what never closes costs no more than its length
    r"^ {0,3}```.*?(?:^ {0,3}```|\Z)|\$\$.{0,2000}?\$\$|\$[^$\n]{0,500}\$|\\\(.{0,500}?\\\)|\\\[.{0,2000}?\\\]|"
    r"\\[A-Za-z]+",
    re.DOTALL | re.MULTILINE,
)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_NO_ASCII_LETTERS = bytes(byte for byte in range(256) if not chr(byte).isalpha() or byte > 127)


def find_other_scripts(texts: Mapping[str, str], scripts: Iterable[str], most: float) -> str | None:
    """The first of some texts, by name, whose letters are of other scripts by more than a share; None if none is.

    No scripts: any will do.

    Raises:
        InputError: for a script that is not known.
    """
    allowed = frozenset(scripts)
    if unknown := allowed - KNOWN:
        raise InputError(f"curate.filters.scripts: {min(unknown)} is none of {', '.join(sorted(KNOWN))}")
    for name, text in texts.items() if allowed else ():
        if "latin" in allowed and sum(map(len, _other_letters(text))) < FEWEST:
            continue
        counts = count_scripts(text)
        others = Counter({script: count for script, count in counts.items() if script not in allowed})
        if others.total() >= FEWEST and others.total() > most * counts.total():
            script, count = max(others.items(), key=lambda item: (item[1], item[0]))
            return f"{name}: {count / counts.total():.0%} of its letters are {script}"
    return None


def count_scripts(text: str) -> Counter[str]:
    """Letters by script. A Greek letter that stands alone is a variable, and does not count."""
    text = _IGNORED.sub(" ", text)
    counts = Counter({"latin": len(text.encode("ascii", "ignore").translate(None, _NO_ASCII_LETTERS))})
    for run in _other_letters(text):
        for script, count in Counter(map(script_of, run)).items():
            if script is not None and not (script == "greek" and len(run) == 1):
                counts[script] += count
    return +counts


def _other_letters(text: str) -> list[str]:
    """The runs of letters beyond ASCII."""
    return [run for piece in _NOT_ASCII.findall(text) for run in _LETTERS.findall(piece)]


@functools.cache
def script_of(letter: str) -> str | None:
    """The script of one letter, by the first word of its name in Unicode; None of a sign."""
    first = unicodedata.name(letter, "").lower().split(" ")[0]
    return _NAMES.get(first, first) or None
