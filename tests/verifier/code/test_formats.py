"""Tests as data sets write them, and what is said of those that cannot be used."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.types import InputError
from falcon_h1r.verifier.code import CallCase, CodeTests, StdinCase, check_tests, formats, parse_tests

ECHO = CodeTests((StdinCase("1\n", "2\n"), StdinCase("3\n", "4\n")))
ADD = CodeTests((CallCase([1, [2]], 3), CallCase([4, [5]], 9)), "add")

STDIN_LIST = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}, {"input": "3\n", "output": "4\n"}]
CALL_LIST = [{"input": "1\n[2]", "output": "3", "testtype": "functional"}, {"input": "4\n[5]", "output": "9"}]


def packed(value: Any) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        ({"inputs": ["1\n", "3\n"], "outputs": ["2\n", "4\n"]}, ECHO),
        (json.dumps({"inputs": ["1\n", "3\n"], "outputs": ["2\n", "4\n"], "fn_name": None}), ECHO),
        ({"input_output": json.dumps({"inputs": ["1\n", "3\n"], "outputs": ["2\n", "4\n"]}), "difficulty": "x"}, ECHO),
        ({"tests": STDIN_LIST}, ECHO),
        (STDIN_LIST, ECHO),
        (json.dumps(STDIN_LIST), ECHO),
        ({"public_test_cases": STDIN_LIST[:1], "private_test_cases": packed(STDIN_LIST[1:]), "metadata": "{}"}, ECHO),
        ({"fn_name": "add", "inputs": [[1, [2]], [4, [5]]], "outputs": [3, 9]}, ADD),
        ({"fn_name": "add", "inputs": ["1\n[2]", "4\n[5]"], "outputs": ["3", "9"]}, ADD),
        ({"public_test_cases": json.dumps(CALL_LIST), "metadata": '{"func_name": "add"}'}, ADD),
        ([{**case, "fn_name": "add"} for case in CALL_LIST], ADD),
        ({"inputs": [["a", "b"]], "outputs": [["c", "d"]]}, CodeTests((StdinCase("a\nb", "c\nd"),))),
        ({"input": "1", "output": 7}, CodeTests((StdinCase("1", "7"),))),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[5]]}, CodeTests((CallCase([1], [5], True),), "f")),
        (
            {"inputs": ["1"], "outputs": ["0.5"], "float_tolerance": 1e-6},
            CodeTests((StdinCase("1", "0.5"),), None, 1e-6),
        ),
        (ADD, ADD),
        # Values where LiveCodeBench has text
        ([{"input": [1, [2]], "output": 3, "fn_name": "add"}, {"input": "4\n[5]", "output": 9}], ADD),
        (
            [{"input": [], "output": True, "fn_name": "f"}, {"input": "", "output": ["a"]}],
            CodeTests((CallCase([], True), CallCase([], ["a"])), "f"),
        ),
        ([{"input": ["a", "b"], "output": ["c", "d"]}], CodeTests((StdinCase("a\nb", "c\nd"),))),
        (
            {"fn_name": "f", "inputs": [[1]], "outputs": [[(1, 2), {3: None}]]},
            CodeTests((CallCase([1], [[1, 2], {"3": None}]),), "f"),
        ),
        # A tolerance beside what holds the tests, and metadata that are words
        (
            {"input_output": {"inputs": ["1"], "outputs": ["0.5"]}, "float_tolerance": 1e-6},
            CodeTests((StdinCase("1", "0.5"),), None, 1e-6),
        ),
        (
            {"tests": [{"input": "1", "output": "0.5"}], "float_tolerance": 1e-6},
            CodeTests((StdinCase("1", "0.5"),), None, 1e-6),
        ),
        ({"inputs": ["1\n", "3\n"], "outputs": ["2\n", "4\n"], "metadata": "from a contest"}, ECHO),
    ],
)
def test_the_shapes_that_data_sets_have(row: Any, tests: CodeTests) -> None:
    assert parse_tests(row) == tests
    assert parse_tests(row).content_hash == tests.content_hash
    assert check_tests(row) == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "there are no tests"),
        ({"inputs": [], "outputs": []}, "there are no tests"),
        ({"inputs": ["1"], "outputs": []}, "tests have 1 inputs and 0 outputs"),
        ({"question": "1+1?"}, "tests need `inputs` and `outputs`, both lists"),
        ({"inputs": "1", "outputs": ["1"]}, "tests need `inputs` and `outputs`, both lists"),
        (7, "tests have to be an object or a list, not 7"),
        ("what?", "tests are neither JSON nor LiveCodeBench's packed form: 'what?'"),
        ([{"input": "1"}], "test 1 has to be an object with `input` and `output`, not {'input': '1'}"),
        (
            [{"input": "1", "output": "2", "testtype": "odd"}],
            "test 1: testtype is neither stdin nor functional, but 'odd'",
        ),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "test 1 is functional, but no fn_name says"),
        ([*STDIN_LIST, {**CALL_LIST[0], "fn_name": "f"}], "some tests are functional and some are not"),
        ({"fn_name": "f", "inputs": [7], "outputs": [7]}, "a call's arguments have to be a list, not 7"),
        ({"fn_name": "f", "inputs": ["x"], "outputs": ["7"]}, "a call's arguments or result are no JSON: 'x', '7'"),
        ({"fn_name": "a b", "inputs": [[]], "outputs": [7]}, "fn_name is no name of a function: 'a b'"),
        ({"inputs": [{}], "outputs": ["7"]}, "a test's input and output have to be text, not {}"),
        ({"inputs": ["\ud800"], "outputs": ["7"]}, "a test holds half a character (a lone surrogate)"),
        (
            {"inputs": ["1"], "outputs": ["1"], "float_tolerance": 2},
            "float_tolerance has to be a number from 0 to below 1",
        ),
        ([{"input": None, "output": "7"}], "a test's input and output have to be text, not None"),
        ([{"input": "1", "output": {"a": 1}}], "a test's input and output have to be text, not {'a': 1}"),
        ('{"tests":' * 700 + "1" + "}" * 700, "the tests are nested too deeply"),
        (CodeTests((CallCase([1], 2),)), "tests with fn_name have to be calls, and tests without it standard input"),
        (CodeTests((CallCase([{1}], 2),), "f"), "a test holds what is no JSON value"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(row: Any, message: str) -> None:
    assert check_tests(row).startswith(message)
    assert "\n" not in check_tests(row)
    with pytest.raises(InputError):
        parse_tests(row)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


def test_a_packed_form_that_would_run_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    assert check_tests({"public_test_cases": [], "private_test_cases": text}).startswith("tests are neither JSON")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"\x80\x04\x8d" + b"\xff" * 8, b"\x80\x04Nr\xff\xff\xff\x7f.", b"g0\n.", b""])
def test_a_packed_form_that_is_broken_is_refused(content: bytes) -> None:
    text = base64.b64encode(zlib.compress(content)).decode()
    assert check_tests({"private_test_cases": text}).startswith("tests are neither JSON")
    deep = base64.b64encode(zlib.compress(pickle.dumps("[" * 100_000))).decode()
    assert check_tests({"private_test_cases": deep}).startswith("tests are neither JSON")


def test_a_packed_form_that_swells_is_not_swallowed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_TESTS_BYTES", 1 << 20)
    swollen = base64.b64encode(zlib.compress(pickle.dumps("9" * (1 << 20)))).decode()
    assert len(swollen) < 2000
    assert check_tests({"private_test_cases": swollen}).startswith("tests are neither JSON")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(["inputs", "outputs", "fn_name", "input", "output", "tests", "metadata", "testtype"]),
                x,
                max_size=4,
            )
        ),
    )
)
def test_no_row_raises_anything_but_the_one_line(row: Any) -> None:
    message = check_tests(row)
    assert "\n" not in message
    assert message or isinstance(parse_tests(row), CodeTests)


def test_the_hash_is_of_the_content() -> None:
    assert ECHO.content_hash == CodeTests(ECHO.cases).content_hash
    others = [ADD, CodeTests(ECHO.cases[:1]), CodeTests(ECHO.cases[::-1]), CodeTests(ECHO.cases, None, 0.1)]
    assert len({tests.content_hash for tests in (ECHO, *others)}) == 5
