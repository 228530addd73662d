"""Problems and traces from JSONL files: a user's own, with fields named in a SourceConfig, or curation's.

Where a row's parts come from, for a file of the user's:

    question    question_field
    gold        answer_field; with `answer_after`, what follows its last mark: `... #### 42` -> `42`
    reasoning   reasoning_field; without one, what precedes that mark. `strip_pattern` is removed from it
    response    what follows `</think>` in the reasoning; else its last \\boxed{}; else \\boxed{gold}
    tests       tests_field; a row that has some needs no gold, and its response is else the last fenced program

so that a trace which states a result of its own is judged by that, and only one that states none is taken at
its source's word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import islice
from typing import Any, TypeVar

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.jsonl import json_type, read_jsonl
from falcon_h1r.types import (
    DIFFICULTIES,
    LEFT_OUT_AT_DEFAULT,
    THINK_END,
    THINK_START,
    Difficulty,
    InputError,
    Problem,
    Trace,
    problem_from_row,
    trace_from_row,
)
from falcon_h1r.verifier.code.extract import extract_program
from falcon_h1r.verifier.extract import extract_boxed

Record = TypeVar("Record")
Row = Mapping[str, Any]

UNKNOWN = "unknown"  # the teacher or family of a row whose source does not say


def load_problems(source: SourceConfig) -> list[Problem]:
    """All problems of a source."""
    return list(read_problems(source))


def load_traces(source: SourceConfig) -> list[Trace]:
    """All traces of a source."""
    return list(read_traces(source))


def check_problems(source: SourceConfig) -> None:
    """Read every row once, keeping none: a recipe fails before its model is loaded.

    Raises:
        InputError: on the first row that is no problem, naming file and line.
    """
    for _ in read_problems(source):
        pass


def check_benchmark(source: SourceConfig) -> None:
    """The same for problems that are counted: one that stands there twice would count twice.

    Raises:
        InputError: on the first repeat, too.
    """
    seen: dict[str, int] = {}
    for number, problem in enumerate(read_problems(source), start=1):
        if problem.uid in seen:
            raise InputError(
                f"{source.path}: problem {number} repeats problem {seen[problem.uid]} ({shorten(problem.question)!r})"
            )
        seen[problem.uid] = number


def shorten(text: str, limit: int = 60) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_traces(source: SourceConfig) -> None:
    """The same for traces."""
    for _ in read_traces(source):
        pass


def read_problems(source: SourceConfig) -> Iterator[Problem]:
    """Problems in the order of the file, one at a time; an empty gold is an error."""
    return _read(source, own_problem if source.curated else lambda row: _problem(row, source, require_gold=True))


def read_traces(source: SourceConfig) -> Iterator[Trace]:
    """Traces in the order of the file, one at a time. Empty parts pass: curation counts and drops them."""
    if not source.curated and source.reasoning_field is None and source.answer_after is None:
        raise InputError(f"{source.path}: no reasoning to learn from; set reasoning_field, or answer_after")
    pattern = _compile(source)
    return _read(source, own_trace if source.curated else lambda row: _trace(row, source, pattern))


def _read(source: SourceConfig, parse: Callable[[Row], Record]) -> Iterator[Record]:
    """Parse up to `limit` rows; what is wrong with one is said with its file and line."""
    if source.path is None:
        raise InputError("path: a JSONL file has to be named")
    if source.limit is not None and source.limit < 1:
        raise InputError(f"{source.path}: limit={source.limit} has to be at least 1")
    for number, row in islice(read_jsonl(source.path), source.limit):
        try:
            yield parse(row)
        except InputError as error:
            raise InputError(f"{source.path}, line {number}: {error}") from None


# -----------------------------------------------------------------------------
# Rows of the user's


def _problem(row: Row, source: SourceConfig, require_gold: bool) -> Problem:
    question = _text(row, source.question_field)
    tests = _tests(row, source.tests_field)
    gold = _gold_and_solution(row, source)[0] if tests is None else ""
    for name, text in ((source.question_field, question), (source.answer_field, gold)):
        if not text.strip() and ((require_gold and tests is None) or name == source.question_field):
            raise InputError(f"field {name!r} is empty")
    family = _optional_text(row, source.family_field) or UNKNOWN
    problem = Problem.from_question(question, gold, family=family, difficulty=_difficulty(row, source))
    return problem if tests is None else replace(problem, tests=tests, domain="code")


def _tests(row: Row, name: str | None) -> str | None:
    """A problem's tests as JSON text; None where the row has none. Whether they can be used, curation finds out."""
    if name is None or (value := _field(row, name)) is None:
        return None
    return _text(row, name) if isinstance(value, str) else json.dumps(value)


def _trace(row: Row, source: SourceConfig, strip_pattern: re.Pattern[str] | None) -> Trace:
    problem = _problem(row, source, require_gold=False)
    if source.reasoning_field is None:
        reasoning = _gold_and_solution(row, source)[1] if problem.tests is None else ""
    else:
        reasoning = _optional_text(row, source.reasoning_field)
    if strip_pattern is not None:
        reasoning = strip_pattern.sub("", reasoning)
    reasoning, response = _split_response(reasoning, problem)
    teacher = _optional_text(row, source.teacher_field)
    return Trace(problem, teacher or UNKNOWN, reasoning, response, _weight(row, source.weight_field))


def _gold_and_solution(row: Row, source: SourceConfig) -> tuple[str, str]:
    """The gold, and what precedes it where `answer_after` divides the field."""
    answer = _text(row, source.answer_field, numbers=True)
    if source.answer_after is None:
        return answer.strip(), ""
    solution, mark, gold = answer.rpartition(source.answer_after)
    if not mark:
        raise InputError(f"field {source.answer_field!r} has no {source.answer_after!r} before its answer")
    return gold.strip(), solution.strip()


def _split_response(reasoning: str, problem: Problem) -> tuple[str, str]:
    """Reasoning and response: see the head of this file."""
    before, end, after = reasoning.rpartition(THINK_END)
    if end:
        return _without_start(before), after.strip()
    if problem.tests is not None:
        program = extract_program(reasoning)
        return _without_start(reasoning), "" if program is None else f"```python\n{program.rstrip()}\n```"
    stated, gold = extract_boxed(reasoning), problem.answer
    reasoning = _without_start(reasoning)
    return reasoning, rf"\boxed{{{gold if stated is None else stated}}}" if gold or stated else ""


def _without_start(reasoning: str) -> str:
    return reasoning.strip().removeprefix(THINK_START).strip()


# -----------------------------------------------------------------------------
# Rows that curation wrote


def own_problem(row: Row) -> Problem:
    """A problem from the row that to_row made of it."""
    _check_fields(row, Problem)
    for name in ("uid", "question", "answer", "family", "domain"):
        _text(row, name)
    _difficulty_named(row["difficulty"], "difficulty")
    if row.get("tests") is not None:
        _text(row, "tests")
    return problem_from_row(row)


def own_trace(row: Row) -> Trace:
    """A trace from the row that to_row made of it."""
    _check_fields(row, Trace)
    if not isinstance(row["problem"], dict):
        raise InputError(f"field 'problem' has to be an object, not {json_type(row['problem'])}")
    own_problem(row["problem"])
    for name in ("teacher", "reasoning", "response"):
        _text(row, name)
    _weight(row, "weight")
    return trace_from_row(row)


def _check_fields(row: Row, record: type[Problem] | type[Trace]) -> None:
    names = [field.name for field in fields(record)]
    for name in names:
        if name not in ("tests", *LEFT_OUT_AT_DEFAULT):
            _field(row, name)
    if unknown := [name for name in row if name not in names]:
        raise InputError(f"unknown field {unknown[0]!r}: not a row that curation writes")


# -----------------------------------------------------------------------------
# Fields


def _field(row: Row, name: str) -> Any:
    if name not in row:
        raise InputError(f"no field {name!r} (it has: {', '.join(map(str, row)) or 'none'})")
    return row[name]


def _text(row: Row, name: str, numbers: bool = False) -> str:
    value = _field(row, name)
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"field {name!r} has to be text{' or a number' if numbers else ''}, not {json_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"field {name!r} holds half a character (a lone surrogate)") from None
    return value


def _optional_text(row: Row, name: str | None) -> str:
    """The text of a field that need not be named, and may be null; empty then."""
    if name is None or _field(row, name) is None:
        return ""
    return _text(row, name)


def _difficulty(row: Row, source: SourceConfig) -> Difficulty | None:
    if source.difficulty_field is None:
        return None
    return _difficulty_named(_field(row, source.difficulty_field), source.difficulty_field)


def _difficulty_named(value: Any, name: str) -> Difficulty | None:
    for difficulty in DIFFICULTIES:
        if value == difficulty:
            return difficulty
    if value is not None:
        raise InputError(f"field {name!r} has to be one of {', '.join(DIFFICULTIES)}, not {str(value)[:40]!r}")
    return None


def _weight(row: Row, name: str | None) -> float:
    if name is None:
        return 1.0
    value = _field(row, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"field {name!r} has to be a number, not {json_type(value)}")
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"field {name!r} has to be finite and not negative, not {value}")
    return float(value)


def _compile(source: SourceConfig) -> re.Pattern[str] | None:
    if source.strip_pattern is None:
        return None
    try:
        return re.compile(source.strip_pattern)
    except re.error as error:
        raise InputError(f"strip_pattern={source.strip_pattern}: not a regular expression ({error})") from None
