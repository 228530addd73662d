"""Problems and traces of a source: files of the user's in any format, a hub dataset, or what curation wrote.

Everything here reads one source from its beginning, row by row. falcon_h1r.data.chunks reads parts of many;
falcon_h1r.data.adapters says what becomes of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.adapted_problems import UNKNOWN
from falcon_h1r.data.adapters import Adapter
from falcon_h1r.data.fields import Row
from falcon_h1r.data.files import format_of, source_files
from falcon_h1r.data.hub import hub_rows
from falcon_h1r.data.jsonl import Fault, jsonl_rows
from falcon_h1r.data.own_rows import own_problem, own_trace
from falcon_h1r.data.parquet import parquet_rows
from falcon_h1r.types import InputError, Problem, Trace

__all__ = [
    "UNKNOWN",
    "check_benchmark",
    "check_problems",
    "check_traces",
    "load_problems",
    "load_traces",
    "own_problem",
    "own_trace",
    "read_problems",
    "read_traces",
    "shorten",
]

Record = TypeVar("Record")


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
    """Problems in the order of the files, one at a time.

    An empty gold is an error. A source without golds (`answer_field` null) gives problems that are not verifiable.
    """
    adapter = _adapter(source)
    parse = own_problem if source.curated else adapter.problem
    return _read(source, lambda row: [parse(row)])


def read_traces(source: SourceConfig, max_row_bytes: int | None = None) -> Iterator[Trace]:
    """Traces in the order of the files, one at a time. Empty parts pass: curation counts and drops them.

    A row longer than `max_row_bytes` is an error, and not held in memory.
    """
    adapter = _adapter(source)
    if source.curated:
        return _read(source, lambda row: [own_trace(row)], max_row_bytes)
    if not adapter.has_traces:
        raise InputError(f"{source.path}: no reasoning to learn from; set reasoning_field, or answer_after")
    return _read(source, adapter.traces, max_row_bytes)


def _adapter(source: SourceConfig) -> Adapter:
    try:
        return Adapter(source)
    except InputError as error:
        raise InputError(f"{source.path}: {error}" if source.path else str(error)) from None


def _read(
    source: SourceConfig, parse: Callable[[Row], Iterable[Record]], max_row_bytes: int | None = None
) -> Iterator[Record]:
    """What up to `limit` rows hold; what is wrong with one is said with its file and line."""
    for where, row in islice(_rows(source, max_row_bytes), source.limit):
        if isinstance(row, Fault):
            raise InputError(f"{where}: {row.reason}")
        try:
            records = parse(row)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        yield from records


def _rows(source: SourceConfig, max_row_bytes: int | None) -> Iterator[tuple[str, dict[str, Any] | Fault]]:
    """(where it stands, row) of every row of a source."""
    if source.format == "hub":
        for number, row in enumerate(hub_rows(source), start=1):
            yield f"{source.path}, split {source.split}, row {number}", row
        return
    for file in source_files(source):
        is_parquet = format_of(source, file) == "parquet"
        unit = "row" if is_parquet else "line"
        read = parquet_rows if is_parquet else jsonl_rows
        for number, found in read(file, max_row_bytes=max_row_bytes):
            yield f"{file}, {unit} {number}" if number else str(file), found
