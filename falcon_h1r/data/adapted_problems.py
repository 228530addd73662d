"""A row's problem: its gold, choices, tests, and what is known of it."""

from __future__ import annotations

from typing import Any

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.choices import choices_of, gold_letter, shuffled, with_choices
from falcon_h1r.data.fields import (
    Row,
    as_difficulty,
    as_json,
    as_number,
    as_text,
    optional_text,
    pass_rate_of,
    value_of,
)
from falcon_h1r.data.source_checks import DOMAINS
from falcon_h1r.types import Difficulty, InputError, Problem, content_hash
from falcon_h1r.verifier.extract import extract_boxed

UNKNOWN = "unknown"  # the teacher or family of a row whose source does not say
OTHERS = "*"  # in domain_names: all that are not named


def read_problem(row: Row, source: SourceConfig, question: str, require_gold: bool) -> Problem:
    """The problem of a row.

    Args:
        question: as the row has it; choices are shown below it.
        require_gold: whether a gold that is empty, of a source that has some, is an error.

    Raises:
        InputError: naming the field.
    """
    tests = _tests(row, source)
    if starter := optional_text(row, source.starter_field).strip():
        question = f"{question.rstrip()}\n\n```python\n{starter}\n```"
    gold, verifiable = "", True
    if source.choices_field is not None or source.choices:
        labels, texts = choices_of(row, source.choices_field, source.choices)
        if source.shuffle_choices:
            labels, texts = shuffled(question, labels, texts)
        question = with_choices(question, texts)
        gold, verifiable = _letter(row, source, labels, texts)
    elif tests is None:
        gold, _, verifiable = gold_and_solution(row, source)
    if require_gold and verifiable and tests is None and not gold.strip():
        raise InputError(f"field {source.answer_field!r} is empty")
    return Problem(
        uid=optional_text(row, source.uid_field, numbers=True) or content_hash(question),
        question=question,
        answer=gold,
        family=optional_text(row, source.family_field) or source.family or UNKNOWN,
        difficulty=_difficulty(row, source),
        domain=_domain(row, source) if tests is None else "code",
        tests=tests,
        verifiable=verifiable,
        pass_rate=None if source.pass_rate_field is None else pass_rate_of(row, source.pass_rate_field),
        language=(optional_text(row, source.language_field).strip() or source.language or "").lower() or None,
    )


def _tests(row: Row, source: SourceConfig) -> str | None:
    """A problem's tests as JSON text; None where the row has none. Whether they can be used, curation finds out."""
    if source.tests_fields:
        columns = {name: value_of(row, name) for name in source.tests_fields}
        return as_json(columns, source.tests_fields[0], ascii_only=True) if any(columns.values()) else None
    name = source.tests_field
    if name is None or (value := value_of(row, name)) is None:
        return None
    if isinstance(value, str):
        return as_text(value, name) if value.strip() else None
    return as_json(value, name, ascii_only=True)


def gold_and_solution(row: Row, source: SourceConfig) -> tuple[str, str, bool]:
    """The gold, what precedes it where `answer_after` divides the field, and whether there is a gold to judge by."""
    if source.answer_field is None:
        return "", "", False
    value = value_of(row, source.answer_field)
    if _unprovable(value, source) or (source.answer_in_box and value is None):
        return "", "", False
    answer = as_text(value, source.answer_field, numbers=True)
    if source.answer_in_box:
        boxed = (extract_boxed(answer) or "").strip()
        return boxed, "", bool(boxed) and not _unprovable(boxed, source)
    if source.answer_after is None:
        return answer.strip(), "", True
    solution, mark, gold = answer.rpartition(source.answer_after)
    if not mark:
        raise InputError(f"field {source.answer_field!r} has no {source.answer_after!r} before its answer")
    return gold.strip(), solution.strip(), True


def _letter(row: Row, source: SourceConfig, labels: list[str], texts: list[str]) -> tuple[str, bool]:
    """The right choice's letter, and whether the row names one."""
    assert source.answer_field is not None
    value = value_of(row, source.answer_field)
    if _unprovable(value, source):
        return "", False
    return gold_letter(value, labels, texts, source.answer_field), True


def _unprovable(value: Any, source: SourceConfig) -> bool:
    said = "" if value is None else str(value).strip().casefold()
    return any(said == name.strip().casefold() for name in source.unprovable_answers)


def _domain(row: Row, source: SourceConfig) -> str:
    theirs = optional_text(row, source.domain_field)
    if source.domain_field is None or not theirs:
        return source.domain
    ours = source.domain_names.get(theirs, theirs)
    if ours not in DOMAINS:
        ours = source.domain_names.get(OTHERS, ours)
    if ours not in DOMAINS:
        raise InputError(f"field {source.domain_field!r}: {theirs[:40]!r} is no domain; domain_names says what it is")
    return ours


def _difficulty(row: Row, source: SourceConfig) -> Difficulty | None:
    name = source.difficulty_field
    if name is None or (value := value_of(row, name)) is None:
        return None
    if source.difficulty_bounds and (number := as_number(value)) is not None:
        medium, hard = source.difficulty_bounds
        return "easy" if number < medium else "medium" if number < hard else "hard"
    if isinstance(value, (str, int)) and (ours := source.difficulty_names.get(str(value))) is not None:
        return as_difficulty(ours or None, name)
    return as_difficulty(value, name)
