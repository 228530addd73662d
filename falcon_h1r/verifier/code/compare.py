"""Whether what a program wrote is what was expected. Runs where the expected outputs are, on plain data alone.

Standard output is compared as LiveCodeBench does: outer white space dropped, line by line, white space around a line
ignored; a line is equal as text, or token by token where all tokens of both are decimal numbers (1.0 is 1.00, and
is not 1.0000001). Where the tests say `float_tolerance`, two numbers that are both written with a decimal point
or an exponent may differ by that much, absolutely or relatively; LiveCodeBench has no such thing.

Results of functions are JSON values: lists (tuples became lists), objects by their keys' text, numbers by value, so
that true is 1 as it is in Python. Between two floats 1e-5 is allowed, absolutely or relatively (LeetCode's;
LiveCodeBench allows none); between a float and an integer absolutely alone, as integers are exact.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

from falcon_h1r.verifier.code.formats import CallCase

RESULT_TOLERANCE = 1e-5
_NUMBER = re.compile(r"[+-]?(?:\d+(\.\d*)?|(\.\d+))(?:[eE][+-]?\d{1,4})?", re.ASCII)
_LONGEST_INEXACT = 400  # characters of a decimal that a tolerance is applied to
_LONGEST_SHOWN = 24  # characters of an output in a reason: it goes to logs, and shall not give a test away


def difference_of_texts(written: str, expected: str, tolerance: float = 0.0) -> str:
    """What tells a program's standard output from the expected one, in short; empty where nothing does."""
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (written, expected))
    for number, (line, other) in enumerate(zip(lines, wanted, strict=False), start=1):
        if line != other and not _same_numbers(line, other, tolerance):
            return f"line {number} is {shown(line)}, not {shown(other)}"
    if len(lines) != len(wanted):
        return f"{len(lines)} lines, not {len(wanted)}"
    return ""


def _same_numbers(line: str, wanted: str, tolerance: float) -> bool:
    tokens, others = line.split(), wanted.split()
    return len(tokens) == len(others) and all(
        _same_number(*pair, tolerance) for pair in zip(tokens, others, strict=True)
    )


def _same_number(token: str, wanted: str, tolerance: float) -> bool:
    if not (_NUMBER.fullmatch(token) and _NUMBER.fullmatch(wanted)):
        return False
    one, other = Decimal(token), Decimal(wanted)
    if one == other:
        return True
    both_inexact = all(any(sign in text for sign in ".eE") for text in (token, wanted))
    if not (both_inexact and tolerance > 0 and max(len(token), len(wanted)) <= _LONGEST_INEXACT):
        return False
    return abs(one - other) <= Decimal(tolerance) * max(Decimal(1), abs(other))


def difference_of_results(written: bytes, case: CallCase) -> str:
    """The same for a function's result, one JSON value as the program's process wrote it."""
    if not written:
        return "no result"
    try:
        result = json.loads(written)
    except (ValueError, RecursionError):
        return "the result is not one JSON value"
    try:
        if same_values(result, case.expected) or (case.maybe_wrapped and same_values(result, case.expected[0])):
            return ""
    except RecursionError:
        return "the result is nested too deeply"
    return f"the result is {shown(written[:100].decode(errors='replace'))}, not {shown(json.dumps(case.expected))}"


def same_values(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        if one == other:
            return True
        if isinstance(one, int) and isinstance(other, int):
            return False
        both_inexact = isinstance(one, float) and isinstance(other, float)
        try:
            return math.isclose(one, other, rel_tol=RESULT_TOLERANCE if both_inexact else 0.0, abs_tol=RESULT_TOLERANCE)
        except OverflowError:  # an integer beyond every float
            return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_values, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_values(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def shown(text: str) -> str:
    """A short, printable piece of an output."""
    piece = "".join(c if c.isprintable() else " " for c in text[: _LONGEST_SHOWN + 1])
    return repr(piece if len(piece) <= _LONGEST_SHOWN else piece[: _LONGEST_SHOWN - 3] + "...")
