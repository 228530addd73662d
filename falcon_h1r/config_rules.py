"""What a setting has to be, in one line that names its key where it is not."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_h1r.types import InputError


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{key}={value}: not one of {', '.join(choices)}")


def share(key: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{key}={value}: a share lies between 0 and 1")


def at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise InputError(f"{key}={value}: has to be at least {least}")
