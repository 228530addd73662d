"""Answers of multiple choice: the letter, what stands behind it, several letters."""

from __future__ import annotations

import re

from falcon_h1r.verifier.reading.notation import string_forms
from falcon_h1r.verifier.tree.node import MAX_ANSWER_CHARS

_LETTERS = "ABCDEFGHIJ"
_VALUE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf|bf)\s*)?\{?\s*(\([A-J]\)|[A-J][).])\s*\}?\s*(\S.*)")
_PREFIX = re.compile(
    r"\{?(?:\(([A-J])\)|([A-J])[).])\}?(?=[^\s)}=])(?!.*\([A-J]\))(?!(?:[,;/]|or|and)[A-J](?![A-Za-z]))"
)


def option_letter(compacted: str) -> str:
    """The letter of (C), C. and "C) 12"; "" for anything else."""
    prefix = _PREFIX.match(compacted)
    if prefix:
        return prefix.group(1) or prefix.group(2)
    stripped = compacted.strip("()[]{}. ")
    if len(stripped) == 1 and stripped.upper() in _LETTERS and stripped.isalpha():
        return stripped.upper()
    return ""


def option_value(answer: str) -> str:
    """What stands behind the letter of (B) 12; "" where there is no letter, or nothing behind it."""
    match = _VALUE.fullmatch(string_forms(answer)[0]) if len(answer) <= MAX_ANSWER_CHARS else None
    return match.group(2).rstrip("} ") if match else ""


def option_letters(cleaned: str) -> str:
    """The letters of several options, in order: ACD, A, C, D and (A)(C)(D)."""
    letters = re.sub(r"[\s,;(){}]|and|\\text|\\mathrm", "", cleaned)
    return "".join(sorted(letters)) if 1 < len(letters) == len(set(letters) & set(_LETTERS)) else ""
