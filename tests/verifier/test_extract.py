"""Which part of a response is the answer."""

import pytest

from falcon_h1r.verifier import extract_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7} and done", "7"),
        (r"\boxed 5 is it", "5"),
        (r"\boxed{ 3 }", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{8}}", "8"),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_balanced_box_decides(text: str, answer: str) -> None:
    assert extract_boxed(text) == answer


@pytest.mark.parametrize("text", ["", "no box", r"\boxed{never closes", r"\boxed{a{b}", r"\boxedfoo{1}", "boxed{1}"])
def test_without_a_balanced_box_there_is_no_answer(text: str) -> None:
    assert extract_boxed(text) is None


def test_an_unbalanced_last_box_leaves_the_one_before() -> None:
    assert extract_boxed(r"\boxed{4} and then \boxed{5") == "4"


def test_a_printed_brace_closes_nothing() -> None:
    assert extract_boxed(r"\boxed{\{1\}, \}}") == r"\{1\}, \}"


def test_after_think_only_what_follows_the_last_end_of_thinking_counts() -> None:
    text = r"<think>\boxed{1}</think> hm <think>\boxed{2}</think> so \boxed{3}"
    assert extract_boxed(text, after_think=True) == "3"
    assert extract_boxed(r"<think>\boxed{1}</think> no box", after_think=True) is None


def test_a_response_that_never_stopped_thinking_has_no_answer() -> None:
    assert extract_boxed(r"<think> it is \boxed{1}", after_think=True) is None
    assert extract_boxed(r"<think> it is \boxed{1}") == "1"


def test_long_text_before_the_box_does_not_matter() -> None:
    assert extract_boxed("reasoning " * 200_000 + r"\boxed{42}") == "42"
    assert extract_boxed(r"\boxed{" * 20_000 + "{}" * 200_000) is None
