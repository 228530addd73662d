"""Tests as data sets have them, read into one form: LiveCodeBench, APPS and TACO rows, or a list of cases.

    {"inputs": ["1 2\\n"], "outputs": ["3\\n"]}                          standard input and output
    {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}              a function; each input a list of arguments
    [{"input": "1 2\\n", "output": "3\\n", "testtype": "stdin"}]          LiveCodeBench
    [{"input": "[1]\\n2", "output": "3", "testtype": "functional"}]      its arguments: JSON, one a line

or a row that holds such tests under `input_output`, `tests`, `test_cases`, or `public_test_cases` and
`private_test_cases`; and JSON text of any of these.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from falcon_h1r.types import InputError

MAX_TESTS_BYTES = 256 << 20  # of one problem, all inputs and outputs together
_HOLDERS = ("input_output", "tests", "test_cases")
_NAMES = ("fn_name", "func_name")  # what data sets call the function's name
_LONGEST_SHOWN = 40


@dataclass(frozen=True)
class StdinCase:
    """What the program reads and what it has to write."""

    input: str
    output: str


@dataclass(frozen=True)
class CallCase:
    """A call and its result, as JSON values."""

    arguments: list[Any]
    expected: Any
    maybe_wrapped: bool = False  # APPS writes some results as lists of one: the item is right, too


@dataclass(frozen=True)
class CodeTests:
    """The tests of one problem, all of one kind.

    Args:
        cases: in the data set's order.
        fn_name: the function that is called, or the method of class Solution; None: standard input and output.
        float_tolerance: of two decimals on standard output, absolute or relative; 0: they are equal as numbers.
    """

    cases: tuple[StdinCase | CallCase, ...]
    fn_name: str | None = None
    float_tolerance: float = 0.0

    @cached_property
    def content_hash(self) -> str:
        """First 16 hex digits of SHA-256 over all of it: equal in every process."""
        parts = [[vars(case) for case in self.cases], self.fn_name, self.float_tolerance]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def fault(self) -> str:
        """Why these tests cannot be judged against; empty where they can. Found out once."""
        if not self.cases:
            return "there are no tests"
        if self.fn_name is not None and not self.fn_name.isidentifier():
            return f"fn_name is no name of a function: {_shown(self.fn_name)}"
        kind = StdinCase if self.fn_name is None else CallCase
        if not all(isinstance(case, kind) for case in self.cases):
            return "tests with fn_name have to be calls, and tests without it standard input and output"
        try:
            size = len(json.dumps([vars(case) for case in self.cases], ensure_ascii=False).encode())
        except UnicodeEncodeError:
            return "a test holds half a character (a lone surrogate)"
        except (TypeError, ValueError, RecursionError):
            return "a test holds what is no JSON value"
        return "" if size <= MAX_TESTS_BYTES else f"the tests have {size:,} bytes; at most {MAX_TESTS_BYTES:,} are read"


def check_tests(tests: Any) -> str:
    """Why these tests cannot be judged against, in one line; empty where they can."""
    try:
        parse_tests(tests)
    except InputError as error:
        return str(error)
    return ""


def parse_tests(tests: Any) -> CodeTests:
    """Tests from any of the shapes above, or tests that were parsed before.

    Raises:
        InputError: where they have none of the shapes, contradict themselves or are empty.
    """
    try:
        found = tests if isinstance(tests, CodeTests) else _from_value(_loaded(tests), None, 0.0)
    except RecursionError:
        raise InputError("the tests are nested too deeply") from None
    if found.fault:
        raise InputError(found.fault)
    return found


def _from_value(value: Any, fn_name: str | None, tolerance: float) -> CodeTests:
    if isinstance(value, Mapping):
        return _from_mapping(value, _function_name(value) or fn_name, tolerance)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return _from_cases(value, fn_name, tolerance)
    raise InputError(f"tests have to be an object or a list, not {_shown(value)}")


def _from_mapping(row: Mapping[str, Any], fn_name: str | None, tolerance: float) -> CodeTests:
    if row.get("float_tolerance") is not None:
        tolerance = row["float_tolerance"]
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise InputError(f"float_tolerance has to be a number from 0 to below 1, not {_shown(tolerance)}")
    if "public_test_cases" in row or "private_test_cases" in row:
        cases = [_loaded(row[key]) for key in ("public_test_cases", "private_test_cases") if row.get(key)]
        if not all(isinstance(part, list) for part in cases):
            raise InputError("public_test_cases and private_test_cases have to be lists")
        return _from_cases([case for part in cases for case in part], fn_name, tolerance)
    for holder in _HOLDERS:
        if row.get(holder) is not None:
            return _from_value(_loaded(row[holder]), fn_name, tolerance)
    if "input" in row and "output" in row:
        return _from_cases([row], fn_name, tolerance)
    inputs, outputs = (_loaded(row.get(key)) for key in ("inputs", "outputs"))
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise InputError("tests need `inputs` and `outputs`, both lists")
    if len(inputs) != len(outputs):
        raise InputError(f"tests have {len(inputs)} inputs and {len(outputs)} outputs")
    pairs = zip(inputs, outputs, strict=True)
    if fn_name is None:
        cases = [StdinCase(_text(given), _text(wanted)) for given, wanted in pairs]
        return CodeTests(tuple(cases), None, tolerance)
    return CodeTests(tuple(_call(given, wanted) for given, wanted in pairs), fn_name, tolerance)


def _from_cases(cases: Sequence[Any], fn_name: str | None, tolerance: float) -> CodeTests:
    kinds: set[str] = set()
    found: list[StdinCase | CallCase] = []
    for number, case in enumerate(cases, start=1):
        if not isinstance(case, Mapping) or "input" not in case or "output" not in case:
            raise InputError(f"test {number} has to be an object with `input` and `output`, not {_shown(case)}")
        fn_name = _function_name(case) or fn_name
        kind = case.get("testtype") or ("stdin" if fn_name is None else "functional")
        if kind not in ("stdin", "functional"):
            raise InputError(f"test {number}: testtype is neither stdin nor functional, but {_shown(kind)}")
        kinds.add(kind)
        if kind == "functional" and fn_name is None:
            raise InputError(f"test {number} is functional, but no fn_name says which function is called")
        given, wanted = case["input"], case["output"]
        found.append(StdinCase(_text(given), _text(wanted)) if kind == "stdin" else _call(given, wanted))
    if len(kinds) > 1:
        raise InputError("some tests are functional and some are not")
    return CodeTests(tuple(found), fn_name if kinds == {"functional"} else None, tolerance)


def _call(given: Any, wanted: Any) -> CallCase:
    """A call. Text is LiveCodeBench's: arguments as JSON, one a line; a list is APPS's: the arguments themselves."""
    if isinstance(given, str):
        try:
            arguments = [json.loads(line) for line in given.split("\n") if line.strip()]
            return CallCase(arguments, json.loads(wanted) if isinstance(wanted, str) else _as_json(wanted))
        except (ValueError, RecursionError):
            raise InputError(f"a call's arguments or result are no JSON: {_shown(given)}, {_shown(wanted)}") from None
    if not isinstance(given, list):
        raise InputError(f"a call's arguments have to be a list, not {_shown(given)}")
    wanted = _as_json(wanted)
    return CallCase(given, wanted, maybe_wrapped=isinstance(wanted, list) and len(wanted) == 1)


def _as_json(value: Any) -> Any:
    """A value as it comes back from JSON, as results do: no tuples, keys that are text."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return value  # which CodeTests.fault names


def _function_name(row: Mapping[str, Any]) -> str | None:
    metadata: Any = row.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            metadata = None  # of another kind: words about the problem
    for place in (row, metadata):
        for key in _NAMES if isinstance(place, Mapping) else ():
            if place.get(key):
                return str(place[key])
    return None


def _text(value: Any) -> str:
    """Standard input or output; some data sets list its lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"a test's input and output have to be text, not {_shown(value)}")
    return str(value)


# -----------------------------------------------------------------------------
# Text that holds tests


def _loaded(value: Any) -> Any:
    """What a text says as JSON; LiveCodeBench's private tests are compressed besides."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return json.loads(_decompressed(value))


class _NothingButText(pickle.Unpickler):
    """Reads the one string that LiveCodeBench pickles; whatever would be imported is refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError("a pickle of text names no class")


def _decompressed(value: str) -> str:
    """base64 of zlib of a pickled string, as LiveCodeBench packs its private tests."""
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(value, validate=True), MAX_TESTS_BYTES)
        text = _NothingButText(io.BytesIO(packed)).load()
        json.loads(text)
    except Exception:  # an unpickler raises anything: OverflowError, MemoryError, ...
        raise InputError(f"tests are neither JSON nor LiveCodeBench's packed form: {_shown(value)}") from None
    return str(text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
