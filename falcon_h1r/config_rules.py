"""What a setting has to be, in one line that names its key where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from falcon_h1r.types import InputError

LONGEST_SHOWN = 40  # characters of a value in a message


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{key}={value}: not one of {', '.join(choices)}")


def share(key: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{key}={value}: a share lies between 0 and 1")


def at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise InputError(f"{key}={value}: has to be at least {least}")


def differing(key: str, section: object, **built: Any) -> list[str]:
    """The settings of a section that are not the only value that code exists for, as `key.name=value`."""
    found = []
    for name, only in built.items():
        value = getattr(section, name)
        if value != only:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            found.append(f"{key}.{name}={shown}" if len(shown) <= LONGEST_SHOWN else f"{key}.{name}")
    return found
