"""What counts as the expected output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.verifier.code import CallCase
from falcon_h1r.verifier.code.compare import difference_of_results, difference_of_texts, same_values, shown

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("3", "3\n"),
        ("3  \n", "3"),
        ("\n3\n\n\n", "3"),
        ("a b\r\nc\r\n", "a b\nc"),
        ("  1 2\n3", "1 2\n3"),
        ("1.0 2", "1.00 2.0"),
        ("1e2", "100"),
        ("1   2", "1 2"),  # numbers, token by token
        ("", "\n"),
    ],
)
def test_white_space_around_lines_and_the_writing_of_numbers_do_not_matter(written: str, expected: str) -> None:
    assert difference_of_texts(written, expected) == ""


@pytest.mark.parametrize(
    ("written", "expected", "what"),
    [
        ("3", "4", "line 1 is '3', not '4'"),
        ("1\n2", "1\n3", "line 2 is '2', not '3'"),
        ("1", "1\n2", "1 lines, not 2"),
        ("1\n2\n3", "1\n2", "3 lines, not 2"),
        ("", "0", "line 1 is '', not '0'"),
        ("yes", "YES", "line 1 is 'yes', not 'YES'"),
        ("a  b", "a b", "line 1 is 'a  b', not 'a b'"),
        ("0.3333333", "0.3333334", "line 1 is '0.3333333', not '0.3333334'"),
        ("50000000000000000", "50000000000000001", "line 1"),
        ("1_0", "10", "line 1"),
        ("nan", "NaN", "line 1"),
        ("١", "1", "line 1"),
        ("1 2", "12", "line 1"),
        ("a\n\nb", "a\nb", "line 2 is '', not 'b'"),
    ],
)
def test_anything_else_does(written: str, expected: str, what: str) -> None:
    assert difference_of_texts(written, expected).startswith(what)


def test_a_tolerance_is_for_two_inexact_numbers_alone() -> None:
    assert difference_of_texts("0.3333333 7", "0.3333334 7", 1e-6) == ""
    assert difference_of_texts("1000000.5", "1000000.6", 1e-6) == ""  # relatively
    assert difference_of_texts("0.33", "0.34", 1e-6) != ""
    assert difference_of_texts("1000000", "1000001", 1e-3) != ""  # integers are exact
    assert difference_of_texts("2", "2.0001", 1e-3) != ""
    assert difference_of_texts("0." + "3" * 500, "0." + "3" * 501, 1e-3) != ""


@pytest.mark.parametrize(
    "monster", ["1e999999999", "9" * 100_000, "0." + "1" * 100_000, "1e9999", "-" * 1000, "sNaN", "1E+", "[" * 100_000]
)
def test_monsters_are_wrong_and_cost_nothing(monster: str) -> None:
    assert difference_of_texts(monster, "1", 1e-6) and difference_of_texts(f"1 {monster}", "1 2.5", 1e-6)
    assert difference_of_results(monster.encode(), CallCase([], 1))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([1, [2, 3]], [1, [2, 3]]),
        (1, 1.0),
        (True, 1),
        (0.1 + 0.2, 0.3),
        (2.00001, 2.0),
        (2.000001, 2),
        (123456788.0, 123456789.0),
        ({"a": [1.0]}, {"a": [1]}),
        (None, None),
        (10**400, 10**400),
        ([], []),
    ],
)
def test_results_that_are_equal(result: Any, expected: Any) -> None:
    assert same_values(json.loads(json.dumps(result)), expected)
    assert difference_of_results(json.dumps(result).encode(), CallCase([], expected)) == ""


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([1, 2], [2, 1]),
        ([1], [1, 1]),
        (1, "1"),
        (None, False),
        ([], {}),
        (2.001, 2.0),
        (123456788.0, 123456789),
        (100000.5, 100000),
        (10**17, 10**17 + 1),
        (10**400, 1.5),
        (float("nan"), float("nan")),
        ({"a": 1}, {"a": 1, "b": 2}),
        ("ab", ["a", "b"]),
        (0, None),
    ],
)
def test_results_that_are_not(result: Any, expected: Any) -> None:
    assert not same_values(result, expected) and not same_values(expected, result)


def test_an_answer_wrapped_in_a_list_counts_only_where_the_data_set_does_that() -> None:
    assert difference_of_results(b"5", CallCase([], [5], maybe_wrapped=True)) == ""
    assert difference_of_results(b"[5]", CallCase([], [5], maybe_wrapped=True)) == ""
    assert difference_of_results(b"5", CallCase([], [5])) != ""


@pytest.mark.parametrize("written", [b"", b"1 1", b"1\n1", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_one_json_value_is_no_result(written: bytes) -> None:
    assert difference_of_results(written, CallCase([], 1))


@given(JSON_VALUES)
def test_every_value_equals_itself_after_a_journey_through_json(value: Any) -> None:
    assert same_values(json.loads(json.dumps(value)), value)


@given(JSON_VALUES, JSON_VALUES)
def test_equality_has_no_direction_for_exact_values(one: Any, other: Any) -> None:
    assert same_values(one, other) == same_values(other, one)


@given(st.text())
def test_a_reason_shows_little_and_that_printable(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown("x" * 1000)) <= 26
