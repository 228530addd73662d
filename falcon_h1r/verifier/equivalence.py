"""The stages of a verdict, cheap first: string, normalised string, numbers, structure, algebra."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from falcon_h1r.types import Verdict, VerdictStatus
from falcon_h1r.verifier.compare import UNREADABLE, Comparison, NeedsAlgebra
from falcon_h1r.verifier.extract import extract_answer
from falcon_h1r.verifier.reading.notation import clean_parts, compact
from falcon_h1r.verifier.reading.parse_answer import parse_answer
from falcon_h1r.verifier.reading.remarks import Remark
from falcon_h1r.verifier.reading.units import is_plain_number, without_unit
from falcon_h1r.verifier.tree.node import MAX_ANSWER_CHARS, BudgetExceeded, Node, NotationError

_MULTIPLE_CHOICE = "ABCDEFGHIJ"
_LOOSE_DIVISION = re.compile(r"/\s*(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\w|\{[^{}]*\}))?\s*(?:\\[a-zA-Z]|[A-Za-z(])")
_OPTION_VALUE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf|bf)\s*)?\{?\s*(\([A-J]\)|[A-J][).])\s*\}?\s*(\S.*)")
_OPTION_PREFIX = re.compile(
    r"\{?(?:\(([A-J])\)|([A-J])[).])\}?(?=[^\s)}=])(?!.*\([A-J]\))(?!(?:[,;/]|or|and)[A-J](?![A-Za-z]))"
)


@lru_cache(maxsize=256)
def _parsed(answer: str, join_thousands: bool, tight_division: bool = False) -> Node | str:
    """The tree, or why there is none: golds repeat, and so do answers."""
    try:
        return parse_answer(answer, join_thousands, tight_division)
    except NotationError as error:
        return str(error)


@lru_cache(maxsize=1024)
def string_forms(answer: str) -> tuple[str, str]:
    """(cleaned, compact) forms of an answer."""
    value, remark = clean_parts(answer)
    return value, compact(value) + remark.text


def readings(answer: str) -> list[Node]:
    """Trees of an answer: 100,200 is a number, and failing that a list; h/kT is read both ways.

    Raises BudgetExceeded.
    """
    found = [_parsed(answer, True)]
    joined = len(answer) <= MAX_ANSWER_CHARS and clean_parts(answer) != clean_parts(answer, join_thousands=False)
    if joined and not isinstance(found[0], str):
        found.append(_parsed(answer, False))
    if "/" in answer and _LOOSE_DIVISION.search(clean_parts(answer)[0]):
        found.append(_parsed(answer, True, tight_division=True))
    return [tree for tree in found if isinstance(tree, Node)]


def is_text(answer: str) -> bool:
    """Whether an answer that does not parse is words rather than broken mathematics."""
    cleaned, _ = string_forms(answer)
    letters = sum(c.isalpha() for c in cleaned)
    return "\\" not in cleaned and letters >= max(2, len(cleaned) // 2)


_OPPOSITES = re.compile(
    r"(?i)\b(increas(?:e|ing)|decreas(?:e|ing)|gain|loss|profit|north|south|east|west|left|right|up|down|am|pm|"
    r"clockwise|counter-?clockwise|above|below|upwards?|downwards?|inwards?|outwards?|attractive|repulsive|convex|"
    r"concave|maximum|minimum)\b|°\s*(?:\\(?:text|mathrm)\s*\{\s*)?([NSEW])\b"
)


_COUNTED = re.compile(r"(?<![\d.^_])(\d+(?:\.\d+)?) ?([a-zA-Z]{3,})")  # 3 boys and 2 girls
_NAMED = re.compile(r"\b([a-zA-Z]{3,}):? ?(\d+(?:\.\d+)?)(?![\d.])")  # max 5, min 3
_WRAPPER = re.compile(r"\\(?:text|mathrm|textbf) ?|[{}]")


@lru_cache(maxsize=1024)
def _said_beside(answer: str) -> tuple[Remark, tuple[str, ...], dict[str, str]]:
    """(remark, directions, what is counted by number) of an answer."""
    value, remark = clean_parts(answer)
    directions = tuple(match.group().lower() for match in _OPPOSITES.finditer(value))
    if " of " not in value:  # north of east is not east of north
        directions = tuple(sorted(directions))
    words = " ".join(_WRAPPER.sub(" ", value).split()) if "\\text" in value or "\\mathrm" in value else ""
    counts = {match.group(2): match.group(1) for match in _COUNTED.finditer(words)}
    return remark, directions, counts or {match.group(1): match.group(2) for match in _NAMED.finditer(words)}


def _contradicting(answer: str, gold: str) -> bool:
    """Whether remarks, directions or assigned counts exclude each other, so that equal values would not be equal
    answers.
    """
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS:
        return False
    (remark, directions, counts), (gold_remark, gold_directions, gold_counts) = _said_beside(answer), _said_beside(gold)
    if remark.contradicts(gold_remark) or (directions and gold_directions and directions != gold_directions):
        return True
    return len(counts) > 1 and counts.keys() == gold_counts.keys() and counts != gold_counts


def option_letter(compacted: str) -> str:
    """The letter of (C), C. and "C) 12"; "" for anything else."""
    prefix = _OPTION_PREFIX.match(compacted)
    if prefix:
        return prefix.group(1) or prefix.group(2)
    stripped = compacted.strip("()[]{}. ")
    if len(stripped) == 1 and stripped.upper() in _MULTIPLE_CHOICE and stripped.isalpha():
        return stripped.upper()
    return ""


def _option_value(answer: str) -> str:
    """What stands behind the letter of (B) 12; "" where there is no letter, or nothing behind it."""
    match = _OPTION_VALUE.fullmatch(string_forms(answer)[0]) if len(answer) <= MAX_ANSWER_CHARS else None
    return match.group(2).rstrip("} ") if match else ""


def _option_letters(compacted: str) -> str:
    """The letters of several options, in order: ACD, A, C, D and (A)(C)(D)."""
    letters = re.sub(r"[\s,;(){}]|and|\\text|\\mathrm", "", compacted)
    return "".join(sorted(letters)) if 1 < len(letters) == len(set(letters) & set(_MULTIPLE_CHOICE)) else ""


def _same_strings(answer: str, gold: str) -> tuple[str, str] | None:
    """(stage, reason) when the strings alone settle that the answer is right."""
    if answer.strip() == gold.strip():
        return "string", "the strings are equal"
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS:
        return None
    (cleaned, key), (gold_cleaned, gold_key) = string_forms(answer), string_forms(gold)
    if key and key == gold_key:
        return "normalised", "the normalised strings are equal"
    letter = option_letter(key)
    if letter and letter == option_letter(gold_key):
        values = _option_value(answer), _option_value(gold)
        if not all(values) or not all(map(is_plain_number, values)) or Fraction(values[0]) == Fraction(values[1]):
            return "normalised", "the same option"
    letters = _option_letters(cleaned)
    if letters and letters == _option_letters(gold_cleaned) and "," in cleaned + gold_cleaned:
        return "normalised", "the same options"
    for one, other in ((cleaned, gold_cleaned), (gold_cleaned, cleaned)):
        value = without_unit(one)
        if value is not None and is_plain_number(other) and Fraction(value) == Fraction(other):
            return "number", "the same number with a unit"
    return None


def judge(answer: str | None, gold: str, algebra: bool = True) -> tuple[VerdictStatus, str, str]:
    """(status, stage, reason) for an extracted answer; raises NeedsAlgebra when that is needed and not
    allowed.
    """
    if not gold.strip():
        return "unverifiable_gold", "gold", "the gold is empty"
    if answer is None:
        return "wrong", "extract", "no balanced box"
    if not answer.strip():
        return "wrong", "extract", "the box is empty"
    if settled := _same_strings(answer, gold):
        return "correct", *settled
    if _contradicting(answer, gold):
        return "wrong", "remark", "what is said beside the values differs"
    value, gold_value = _option_value(answer), _option_value(gold)
    if bool(value) != bool(gold_value) and not option_letter(string_forms(answer if gold_value else gold)[1]):
        return judge(value or answer, gold_value or gold, algebra)  # 12 for (B) 12
    try:
        golds = readings(gold)
    except BudgetExceeded as error:
        return "undecided", "budget", f"gold: {error}"
    if not golds:
        if is_text(gold):
            return "wrong", "string", "the texts differ"
        return "unverifiable_gold", "gold", f"the gold does not parse: {_parsed(gold, True)}"
    try:
        predictions = readings(answer)
    except BudgetExceeded as error:
        return "undecided", "budget", str(error)
    if not predictions:
        return "wrong", "parse", f"the answer does not parse: {_parsed(answer, True)}"
    return _compare_readings(predictions, golds, algebra)


def _compare_readings(predictions: list[Node], golds: list[Node], algebra: bool) -> tuple[VerdictStatus, str, str]:
    stage = "number"
    needs_algebra = False
    for prediction in predictions:
        for gold in golds:
            comparison = Comparison(algebra)
            try:
                same = comparison.answers(prediction, gold)
            except NeedsAlgebra:
                needs_algebra = True
                continue
            except BudgetExceeded as error:
                return "undecided", "budget", str(error)
            except UNREADABLE as error:
                return "wrong", comparison.stage, f"no value: {error}"
            stage = comparison.stage
            if same:
                return "correct", stage, "equal"
    if needs_algebra:
        raise NeedsAlgebra
    return "wrong", stage, "not equal"


def judged(answer: str | None, gold: str, algebra: bool = True) -> tuple[VerdictStatus, str, str]:
    """`judge` at the border to callers: a mistake of ours is an undecided verdict, not an exception in a training
    run. Raises NeedsAlgebra, as `judge` does.
    """
    try:
        return judge(answer, gold, algebra)
    except NeedsAlgebra:
        raise
    except Exception as error:  # counted apart as undecided, with its name
        return "undecided", "error", f"{type(error).__name__}: {error}"[:200]


def verify(prediction_text: str, gold: str, after_think: bool = False, fallbacks: Sequence[str] = ()) -> Verdict:
    """Judge one response in this process, without a deadline: sizes are bounded, limits and integrals are
    not.

    Never raises on any text. `Verifier` gives the same verdicts with killable processes around the algebra.
    """
    start = time.perf_counter()
    status, stage, reason = judged(extract_answer(prediction_text, after_think, fallbacks), gold)
    return Verdict(status, stage, reason, time.perf_counter() - start)


def check_gold(gold: str) -> bool:
    """Whether a gold can be judged against: it parses within the budgets, or it is plain text."""
    try:
        return bool(gold.strip()) and (bool(readings(gold)) or is_text(gold))
    except BudgetExceeded:
        return False
