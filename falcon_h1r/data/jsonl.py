"""JSON lines: read with errors that name the line, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from falcon_h1r.types import InputError


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) of each line that is not blank, one at a time.

    Raises:
        InputError: for a missing, unreadable or empty file, and for a line that is no JSON object.
    """
    num_rows = 0
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    num_rows += 1
                    yield number, _parse_row(line, f"{path}, line {number}")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if num_rows == 0:
        raise InputError(f"{path}: holds no rows")


def _parse_row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets without end
        raise InputError(f"{where}: not JSON that can be read ({str(error).split(';')[0]})") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: has to be a JSON object, not {json_type(row)}")
    return row


def json_type(value: Any) -> str:
    """What JSON calls a value's type."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows beside `path`, then rename: readers see all of them, or the file that was there before."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        # A lone surrogate becomes its own JSON escape, which reads back as it was.
        with open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
