"""JSON lines: read with errors that name the line, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import math
import os
import platform
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from falcon_h1r.types import InputError

READ_ERRORS = (OSError, EOFError, zlib.error)  # of files, gzipped ones included
RAW_CHARACTERS = 2000  # shown of a row that cannot be read
_BLOCK = 1 << 20
_HEAD = 4096  # in which a binary file shows itself


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row, or a whole file, cannot be read, and what of it was seen."""

    reason: str
    raw: str = ""


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) of each line that is not blank, one at a time. A name in .gz is read through gzip.

    Raises:
        InputError: for a missing, unreadable or empty file, and for a line that is no JSON object.
    """
    for number, row in jsonl_rows(path):
        if isinstance(row, Fault):
            raise InputError(f"{path}, line {number}: {row.reason}" if number else f"{path}: {row.reason}")
        yield number, row


def jsonl_rows(
    path: str | Path, start: int = 0, end: int | None = None, first_line: int = 1, max_row_bytes: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Yield (line number, row or what is wrong with it) of each line that is not blank; raises nothing for a file.

    Args:
        start, end: bytes, of the text a .gz holds; `start` is the start of line `first_line`.
        max_row_bytes: a longer line is passed over without being held in memory.

    Line number 0 is the file itself: unreadable, binary, or without rows.
    """
    num_rows = 0
    try:
        with open_jsonl(path) as file:
            if start == 0 and b"\0" in file.read(_HEAD):
                yield 0, Fault("not UTF-8 text but a binary file")
                return
            file.seek(start)
            position, number = start, first_line
            while (end is None or position < end) and (found := _read_line(file, max_row_bytes)):
                line, length = found
                position += length
                if line.strip():
                    num_rows += 1
                    yield number, _row_or_fault(line, length, max_row_bytes)
                number += 1
            while end == 0 and file.read(_BLOCK):  # planned as unreadable: find out why
                pass
            holds_none = num_rows == 0 and start == 0 and not file.read(1)
    except FileNotFoundError:
        yield 0, Fault("no such file")
        return
    except READ_ERRORS as error:
        yield 0, Fault(f"cannot be read ({getattr(error, 'strerror', None) or error})")
        return
    if holds_none:
        yield 0, Fault("holds no rows")


def open_jsonl(path: str | Path) -> IO[bytes]:
    """The bytes of a JSONL file, unpacked if its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path, "rb")) if str(path).endswith(".gz") else open(path, "rb")


def _read_line(file: IO[bytes], max_bytes: int | None) -> tuple[bytes, int] | None:
    """The next line, or the beginning of one beyond `max_bytes`, and the length of all of it; None at the end."""
    line = file.readline(-1 if max_bytes is None else max_bytes + 2)  # with its line end, which may have two bytes
    length = len(line)
    if max_bytes is not None and length == max_bytes + 2 and not line.endswith(b"\n"):
        while rest := file.readline(_BLOCK):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
    return (line, length) if line else None


def _row_or_fault(line: bytes, length: int, max_bytes: int | None) -> dict[str, Any] | Fault:
    if max_bytes is not None and max(length - 2, len(line.rstrip(b"\r\n"))) > max_bytes:
        return Fault(f"longer than {max_bytes:,} bytes", raw_text(line))
    try:
        return parse_row(line)
    except InputError as error:
        return Fault(str(error), raw_text(line))


def raw_text(line: bytes) -> str:
    """The beginning of a line, whatever it holds."""
    return line[: 4 * RAW_CHARACTERS].decode("utf-8", errors="replace").rstrip("\r\n")[:RAW_CHARACTERS]


def parse_row(line: bytes) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        InputError: saying what the line is instead.
    """
    try:
        row = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets without end
        raise InputError(f"not JSON that can be read ({str(error).split(';')[0]})") from None
    if not isinstance(row, dict):
        raise InputError(f"has to be a JSON object, not {json_type(row)}")
    return row


def json_type(value: Any) -> str:
    """What JSON calls a value's type."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a value of type {type(value).__name__}")  # as parquet has decimals, dates and bytes


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows beside `path`, then rename: readers see all of them, or the file that was there before."""
    with new_file(Path(path)) as file:
        for row in rows:
            file.write(json_line(row))


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as it stands in a file. A lone surrogate becomes its own JSON escape, which reads back as it was."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file written beside, on the disk and renamed when the context ends; nothing where it fails."""
    beside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")  # several nodes may write it
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
