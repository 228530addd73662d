"""Fields of a row, looked up and checked. What is wrong with one is an InputError that names it.

A field's name may be a path through objects (`extra.problem`); a key that is spelled so, dot and all, comes first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from falcon_h1r.data.jsonl import json_type
from falcon_h1r.types import DIFFICULTIES, Difficulty, InputError

LARGEST = 1e9  # of numbers that multiply the loss

Row = Mapping[str, Any]


def value_of(row: Row, name: str) -> Any:
    """The value of a field that has to be there; below a null, null."""
    if name in row or "." not in name:
        return _key(row, name, name, "it has")
    value: Any = row
    walked = ""
    for key in name.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise InputError(f"field {walked!r} has to be an object to have {name!r}, not {json_type(value)}")
        value = _key(value, key, name, f"{walked!r} has" if walked else "it has")
        walked = f"{walked}.{key}" if walked else key
    return value


def _key(row: Row, key: str, name: str, its: str) -> Any:
    if key not in row:
        raise InputError(f"no field {name!r} ({its}: {', '.join(map(str, row)) or 'none'})")
    return row[key]


def text_of(row: Row, name: str, numbers: bool = False) -> str:
    """The text of a field; with `numbers`, a finite number's text, too."""
    return as_text(value_of(row, name), name, numbers)


def as_text(value: Any, name: str, numbers: bool = False) -> str:
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"field {name!r} has to be text{' or a number' if numbers else ''}, not {json_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"field {name!r} holds half a character (a lone surrogate)") from None
    return value


def as_json(value: Any, name: str, ascii_only: bool = False) -> str:
    """A value as JSON text; its letters as they are, unless `ascii_only`."""
    try:
        return as_text(json.dumps(value, ensure_ascii=ascii_only), name)
    except (TypeError, ValueError, RecursionError):  # dates and bytes of a parquet file
        raise InputError(f"field {name!r} holds what is no JSON value") from None


def _is_finite(value: float) -> bool:
    return not isinstance(value, float) or math.isfinite(value)  # isfinite knows no integer beyond the floats


def optional_text(row: Row, name: str | None, numbers: bool = False) -> str:
    """The text of a field that need not be named, and may be null; empty then."""
    if name is None or (value := value_of(row, name)) is None:
        return ""
    return as_text(value, name, numbers)


def has_value(row: Row, name: str | None) -> bool:
    """Whether a field that rows may leave out is named, there, and neither null nor empty."""
    if name is None or (name not in row and name.partition(".")[0] not in row):
        return False
    return bool(value_of(row, name))


def list_of(row: Row, name: str) -> list[Any]:
    """The list in a field, which may be written as JSON text."""
    value = value_of(row, name)
    if isinstance(value, str):
        try:
            loaded = json.loads(value)
        except (ValueError, RecursionError):
            loaded = None
        value = loaded if isinstance(loaded, list) else value
    if not isinstance(value, list):
        raise InputError(f"field {name!r} has to be a list, not {json_type(value)}")
    return value


def number_of(row: Row, name: str) -> float:
    """A number from 0 to LARGEST."""
    value = value_of(row, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"field {name!r} has to be a number, not {json_type(value)}")
    if not (_is_finite(value) and 0 <= value <= LARGEST):
        raise InputError(f"field {name!r} has to be from 0 to {LARGEST:g}, not {str(value)[:40]}")
    return float(value)


def as_number(value: Any) -> float | None:
    """A finite number, or the one that a text writes; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def pass_rate_of(row: Row, name: str) -> float | None:
    """A share from 0 to 1, perhaps written as text; null and "n/a" are none."""
    value = value_of(row, name)
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "n/a")):
        return None
    rate = as_number(value)
    if rate is None or not 0 <= rate <= 1:
        shown = json_type(value) if rate is None and not isinstance(value, str) else repr(str(value)[:40])
        raise InputError(f"field {name!r} has to be a share from 0 to 1, not {shown}")
    return rate


def as_verdict(value: Any, name: str) -> bool | None:
    """True or false, also as 1 and 0; null is None."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    raise InputError(f"field {name!r} has to be true or false, not {json_type(value)}")


def as_difficulty(value: Any, name: str) -> Difficulty | None:
    """One of DIFFICULTIES; null is None."""
    for difficulty in DIFFICULTIES:
        if value == difficulty:
            return difficulty
    if value is not None:
        raise InputError(f"field {name!r} has to be one of {', '.join(DIFFICULTIES)}, not {str(value)[:40]!r}")
    return None
