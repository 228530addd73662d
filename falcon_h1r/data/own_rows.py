"""Rows that curation wrote, read back as they were."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from falcon_h1r.data.fields import Row, as_difficulty, number_of, text_of, value_of
from falcon_h1r.data.jsonl import json_type
from falcon_h1r.types import LEFT_OUT_AT_DEFAULT, InputError, Problem, Trace, Turn, problem_from_row, trace_from_row

MAY_BE_ABSENT = ("tests", *LEFT_OUT_AT_DEFAULT)  # tests: rows that were written before there were any


def own_problem(row: Row) -> Problem:
    """A problem from the row that to_row made of it."""
    _check_fields(row, Problem)
    for name in ("uid", "question", "answer", "family", "domain"):
        text_of(row, name)
    as_difficulty(row["difficulty"], "difficulty")
    for name in ("tests", "language"):
        if row.get(name) is not None:
            text_of(row, name)
    if row.get("pass_rate") is not None and number_of(row, "pass_rate") > 1:
        raise InputError(f"field 'pass_rate' has to be a share from 0 to 1, not {row['pass_rate']}")
    _check_truth(row.get("verifiable", True), "verifiable")
    return problem_from_row(row)


def own_trace(row: Row) -> Trace:
    """A trace from the row that to_row made of it."""
    _check_fields(row, Trace)
    if not isinstance(row["problem"], dict):
        raise InputError(f"field 'problem' has to be an object, not {json_type(row['problem'])}")
    own_problem(row["problem"])
    for name in ("teacher", "reasoning", "response"):
        text_of(row, name)
    number_of(row, "weight")
    if "origin" in row:
        text_of(row, "origin")
    if row.get("given_verdict") is not None:
        _check_truth(row["given_verdict"], "given_verdict")
    _check_turns(row.get("turns", []))
    return trace_from_row(row)


def _check_truth(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise InputError(f"field {name!r} has to be true or false, not {json_type(value)}")


def _check_turns(turns: Any) -> None:
    if not isinstance(turns, list):
        raise InputError(f"field 'turns' has to be a list, not {json_type(turns)}")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise InputError(f"turn {number} has to be an object, not {json_type(turn)}")
        try:
            _check_fields(turn, Turn)
            for name in turn:
                text_of(turn, name)
        except InputError as error:
            raise InputError(f"turn {number}: {error}") from None


def _check_fields(row: Row, record: type[Problem] | type[Trace] | type[Turn]) -> None:
    names = [field.name for field in fields(record)]
    for name in names:
        if name not in MAY_BE_ABSENT:
            value_of(row, name)
    if unknown := [name for name in row if name not in names]:
        raise InputError(f"unknown field {unknown[0]!r}: not a row that curation writes")
