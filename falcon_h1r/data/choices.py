"""Multiple choice as text: the choices below the question, each with a letter, and the letter as the gold."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from falcon_h1r.data.fields import Row, as_text, list_of, value_of
from falcon_h1r.types import InputError, content_hash

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


def choices_of(row: Row, field: str | None, fields: list[str]) -> tuple[list[str], list[str]]:
    """(labels as the row has them, texts). A field is a list, {label: text}, or {"label": [...], "text": [...]}."""
    if field is None:
        return list(string.ascii_uppercase[: len(fields)]), [
            as_text(value_of(row, name), name, True) for name in fields
        ]
    value = value_of(row, field)
    labels: list[Any] | None = None
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        labels, texts = value.get("label"), value["text"]
    elif isinstance(value, Mapping):
        labels, texts = [key for key in value if value[key] is not None], [v for v in value.values() if v is not None]
    else:
        texts = list_of(row, field)
    if not 2 <= len(texts) <= len(string.ascii_uppercase):
        raise InputError(f"field {field!r} has {len(texts)} choices; from 2 to 26 can be shown")
    if labels is None:
        labels = list(string.ascii_uppercase[: len(texts)])
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise InputError(f"field {field!r} has to have as many labels as texts")
    return [as_text(label, field, True) for label in labels], [as_text(text, field, True) for text in texts]


def with_choices(question: str, texts: list[str]) -> str:
    """The question, and a line for each choice."""
    shown = zip(string.ascii_uppercase, texts, strict=False)
    return "\n".join([question.rstrip(), "", *(f"{letter}. {text.strip()}" for letter, text in shown)])


def shuffled(question: str, labels: list[str], texts: list[str]) -> tuple[list[str], list[str]]:
    """Labels and texts in an order that depends on the question and the texts alone: the same on every machine."""
    places = sorted(range(len(texts)), key=lambda place: content_hash(f"{question}\n{texts[place]}"))
    return [labels[place] for place in places], [texts[place] for place in places]


def gold_letter(answer: Any, labels: list[str], texts: list[str], name: str) -> str:
    """The letter of the right choice, which a row names by index from 0, by label, by letter or by its text.

    Raises:
        InputError: where it names none of them, or two.
    """
    if (
        isinstance(answer, float) and answer.is_integer() and str(answer) not in (*labels, *texts)
    ):  # a column with nulls
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and str(answer) not in labels:
        if not 0 <= answer < len(texts):
            raise InputError(f"field {name!r}: no choice {answer} among {len(texts)} (they count from 0)")
        return string.ascii_uppercase[answer]
    answer = as_text(answer, name, numbers=True).strip()
    by_text = {place for place, text in enumerate(texts) if text.strip() == answer}
    by_label = {place for place, label in enumerate(labels) if label.strip() == answer}
    if not (by_text or by_label) and (match := _LETTER.fullmatch(answer)):
        by_label = {place for place, label in enumerate(labels) if label.strip() == match.group(1).upper()}
    if not (by_text or by_label) and answer.isdecimal() and len(answer) < 10 and int(answer) < len(texts):
        by_label = {int(answer)}
    found = sorted(by_text | by_label)
    if not found:
        raise InputError(f"field {name!r}: {answer[:40]!r} is none of the choices")
    if len(found) > 1:
        raise InputError(f"field {name!r}: {answer[:40]!r} names more than one of the choices")
    return string.ascii_uppercase[found[0]]
