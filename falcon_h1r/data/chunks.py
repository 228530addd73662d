"""A corpus that does not fit memory, in chunks: planned from the files alone, each read on its own, row by row.

    sources (as configured) -> files (by name) -> chunks of about so many bytes -> rows -> traces

A chunk is a run of whole lines of a JSONL file, or of rows of a parquet file. A hub dataset is spooled to JSONL first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.adapters import Adapter
from falcon_h1r.data.files import format_of, name_in_source, source_files
from falcon_h1r.data.hub import PART_ROWS, spool_hub
from falcon_h1r.data.jsonl import READ_ERRORS, Fault, jsonl_rows, open_jsonl
from falcon_h1r.data.own_rows import own_trace
from falcon_h1r.data.parquet import parquet_rows, plan_parquet, raw_row
from falcon_h1r.types import InputError, Trace

_BLOCK = 8 << 20  # read at once by the scan for line ends


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one file. Plain values: it travels as JSON."""

    index: int  # in the whole table, from 0
    source: str  # its name under curate.sources
    path: str
    first_row: int  # line or row number of the first, from 1; of a hub dataset, over all its parts
    start: int  # bytes of a JSONL file (of the text that a .gz holds), rows of a parquet file
    end: int  # exclusive; 0 where the file has no rows that could be read, which reading tells again


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, or a whole file, that could not be read, and was passed over."""

    where: str  # "FILE, line N", "FILE, row N" or "FILE"
    reason: str
    raw: str  # its beginning


def plan_chunks(
    sources: Mapping[str, SourceConfig], chunk_bytes: int, spool: Path, part_rows: int = PART_ROWS
) -> list[Chunk]:
    """The table of all chunks: the same for the same files and `chunk_bytes`, whoever works on it.

    Args:
        sources: by name, in the order in which they are read.
        chunk_bytes: a chunk ends at the first line end from here on; one row at least, and all of a .gz.
        spool: folder for the rows of hub datasets, one folder for each.
        part_rows: rows of a hub dataset's part.

    Raises:
        InputError: for a wrong setting, a missing file, a dataset that cannot be loaded; not for what files hold.
    """
    for name, source in sources.items():
        adapter = Adapter(source, key=f"curate.sources.{name}")
        if not source.curated and not adapter.has_traces:
            raise InputError(f"curate.sources.{name}: no reasoning to learn from; set reasoning_field, or answer_after")
    chunks: list[Chunk] = []
    for name, source in sources.items():
        rows_left, first_hub_row = source.limit, 1
        for file in spool_hub(source, spool / name, part_rows) if source.format == "hub" else source_files(source):
            if rows_left == 0:
                break
            planned, num_rows = _plan_file(source, file, chunk_bytes, rows_left)
            for first_row, start, end in planned:
                first = first_row if source.format != "hub" else first_hub_row + first_row - 1
                chunks.append(Chunk(len(chunks), name, str(file), first, start, end))
            first_hub_row += part_rows
            rows_left = None if rows_left is None else rows_left - num_rows
    return chunks


def read_chunk(
    chunk: Chunk, source: SourceConfig, max_row_bytes: int, on_bad: Callable[[BadRow], None] | None = None
) -> Iterator[Trace]:
    """The traces of a chunk, in order, one row in memory at a time.

    Args:
        max_row_bytes: a longer row is bad, and never held whole.
        on_bad: told of every row that cannot be used; None: the first is an error.

    Raises:
        InputError: for the first bad row, where there is no `on_bad`.
    """
    adapter = Adapter(source, key=f"curate.sources.{chunk.source}")
    for number, row in _rows(chunk, source, max_row_bytes):
        fault = row if isinstance(row, Fault) else None
        if not isinstance(row, Fault):
            origin = f"{chunk.source}:{_place(chunk, source)}:{number}"
            try:
                yield from _traces(row, adapter, origin)
            except InputError as error:
                fault = Fault(str(error), raw_row(row))
        if fault is not None:
            bad = BadRow(_where(chunk, source, number), fault.reason, fault.raw)
            if on_bad is None:
                raise InputError(f"{bad.where}: {bad.reason}")
            on_bad(bad)


def _traces(row: dict[str, Any], adapter: Adapter, origin: str) -> list[Trace]:
    """A row's traces; what curation wrote keeps the origin it has."""
    if not adapter.source.curated:
        return adapter.traces(row, origin, with_empty=True)  # curation drops them, and nothing vanishes
    trace = own_trace(row)
    return [trace if trace.origin else replace(trace, origin=origin)]


def _rows(chunk: Chunk, source: SourceConfig, max_row_bytes: int) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    if format_of(source, chunk.path) == "parquet":
        return parquet_rows(chunk.path, chunk.start, chunk.end, max_row_bytes)
    return jsonl_rows(chunk.path, chunk.start, chunk.end, chunk.first_row, max_row_bytes)


def _place(chunk: Chunk, source: SourceConfig) -> str:
    """The file, or of a hub dataset the split, as origins name it."""
    return source.split if source.format == "hub" else name_in_source(source, chunk.path)


def _where(chunk: Chunk, source: SourceConfig, number: int) -> str:
    file = f"{source.path}, split {source.split}" if source.format == "hub" else chunk.path
    unit = "line" if source.format != "hub" and format_of(source, chunk.path) == "jsonl" else "row"
    return f"{file}, {unit} {number}" if number else file


# -----------------------------------------------------------------------------
# Planning


def _plan_file(
    source: SourceConfig, file: Path, chunk_bytes: int, max_rows: int | None
) -> tuple[list[tuple[int, int, int]], int]:
    """(first row, start, end) of a file's chunks, and with `max_rows` how many rows they hold.

    A file that cannot be read has one chunk without an extent, so that whoever reads it says why.
    """
    if format_of(source, file) == "parquet":
        parts = plan_parquet(file, chunk_bytes, max_rows)
        return [(start + 1, start, end) for start, end in parts] or [(1, 0, 0)], parts[-1][1] if parts else 0
    try:
        with open_jsonl(file) as lines:
            if b"\0" in lines.read(4096):
                return [(1, 0, 0)], 0
            lines.seek(0)
            if not _holds_rows(lines):
                return [(1, 0, 0)], 0
            lines.seek(0)
            end, num_rows = (None, 0) if max_rows is None else _end_of_rows(lines, max_rows)
            lines.seek(0)
            # What is packed cannot be entered in the middle.
            chunks = list(_scan_lines(lines, None if file.name.endswith(".gz") else chunk_bytes, end))
    except READ_ERRORS:
        return [(1, 0, 0)], 0
    return chunks, num_rows


def _holds_rows(file: IO[bytes]) -> bool:
    """Whether there is anything but blank lines; the first block tells of most files."""
    while block := file.read(_BLOCK):
        if block.strip():
            return True
    return False


def _scan_lines(file: IO[bytes], chunk_bytes: int | None, end: int | None) -> Iterator[tuple[int, int, int]]:
    """(first line, start, end) of chunks that end at the first line end from `chunk_bytes` on."""
    position = start = 0  # of the block, of the chunk
    line = first_line = 1  # of what has been counted so far, of the chunk
    while block := file.read(_BLOCK if end is None else min(_BLOCK, end - position)):
        counted = 0
        while chunk_bytes is not None:
            line_end = block.find(b"\n", max(counted, start + max(1, chunk_bytes) - 1 - position))
            if line_end < 0:
                break
            line += block.count(b"\n", counted, line_end + 1)
            counted = line_end + 1
            yield first_line, start, position + counted
            start, first_line = position + counted, line
        line += block.count(b"\n", counted)
        position += len(block)
    if position > start:
        yield first_line, start, position


def _end_of_rows(file: IO[bytes], max_rows: int) -> tuple[int, int]:
    """Where the first `max_rows` lines that are not blank end, and how many there are; long lines come in pieces."""
    position = num_rows = 0
    is_row = False
    while num_rows < max_rows and (piece := file.readline(1 << 20)):
        position += len(piece)
        is_row = is_row or bool(piece.strip())
        if piece.endswith(b"\n"):
            num_rows, is_row = num_rows + is_row, False
    return position, num_rows + is_row
