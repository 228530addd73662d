"""Parquet files, a few rows at a time: no row group is ever held whole, only the page of each column that is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from falcon_h1r.data.jsonl import RAW_CHARACTERS, Fault

_BATCH_BYTES = 4 << 20  # about so much is decoded at a time
_MAX_BATCH_ROWS = 256


def parquet_rows(
    path: str | Path, start: int = 0, end: int | None = None, max_row_bytes: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield (row number from 1, row or what is wrong with it) of rows `start` (from 0) up to `end`.

    Row number 0 is the file itself: unreadable, or without rows. Raises nothing for a file.
    """
    import pyarrow as pa

    number, is_open = start, False
    try:
        with _open(path) as file:
            is_open = True
            if file.metadata.num_rows == 0:
                yield 0, Fault("holds no rows")
            for batch in _batches(file, start, file.metadata.num_rows if end is None else end):
                for row in _rows(batch, max_row_bytes):
                    number += 1
                    yield number, row
    except FileNotFoundError:
        yield 0, Fault("no such file")
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        if is_open:
            yield number + 1, Fault(f"cannot be read from here on ({reason})")
        else:
            yield 0, Fault(f"not a parquet file that can be read ({reason})")


def plan_parquet(path: str | Path, chunk_bytes: int, max_rows: int | None = None) -> list[tuple[int, int]]:
    """(start, end) rows of parts of about `chunk_bytes`, as the file's own sizes have it; none if it is unreadable."""
    import pyarrow as pa

    try:
        with _open(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except (OSError, pa.ArrowException):
        return []
    parts: list[tuple[int, int]] = []
    start = row = 0
    room = float(chunk_bytes)
    for num_rows, num_bytes in sizes:
        left, row_bytes = num_rows, max(1.0, num_bytes / max(1, num_rows))
        while left:
            if room < row_bytes and row > start:
                parts.append((start, row))
                start, room = row, float(chunk_bytes)
            taken = min(left, max(1, int(room // row_bytes)))
            left, row, room = left - taken, row + taken, room - taken * row_bytes
    if row > start:
        parts.append((start, row))
    if max_rows is not None:
        parts = [(start, min(end, max_rows)) for start, end in parts if start < max_rows]
    return parts


def _open(path: str | Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _batches(file: Any, start: int, end: int) -> Iterator[Any]:
    """Batches of rows `start` up to `end`; row groups outside are not opened."""
    first = 0
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        row, first = first, first + group.num_rows
        if first <= start or row >= end or not group.num_rows:
            continue
        size = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        for batch in file.iter_batches(batch_size=size, row_groups=[index], use_threads=False):
            before = max(0, start - row)
            wanted = batch.slice(before, max(0, min(end, row + batch.num_rows) - row - before))
            row += batch.num_rows
            if wanted.num_rows:
                yield wanted
            if row >= end:
                break


def _rows(batch: Any, max_row_bytes: int | None) -> Iterator[dict[str, Any] | Fault]:
    batch = _without_dictionaries(batch)
    for place in range(batch.num_rows):
        row = batch.slice(place, 1)
        if max_row_bytes is not None and row.nbytes > max_row_bytes:
            yield Fault(f"longer than {max_row_bytes:,} bytes")
            continue
        try:
            values: dict[str, Any] = row.to_pylist()[0]
        except (ValueError, OverflowError, LookupError) as error:  # not UTF-8, a date beyond Python's, no such zone
            yield Fault(f"a value cannot be read ({str(error).split(chr(10))[0]})")
            continue
        yield values


def _without_dictionaries(batch: Any) -> Any:
    """The batch with each row's own values in columns that name them by number: the size of a row is then its own."""
    import pyarrow as pa

    columns = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def raw_row(row: dict[str, Any]) -> str:
    """The beginning of a row, to show it."""
    return json.dumps(row, ensure_ascii=False, default=str)[:RAW_CHARACTERS]
