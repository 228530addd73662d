"""Which part of a response is the answer."""

import pytest

from falcon_h1r.types import ANSWER_FALLBACKS
from falcon_h1r.verifier import verify
from falcon_h1r.verifier.extract import FALLBACKS, count_boxed, extract_answer, extract_boxed


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


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("none", 0),
        (r"\boxed{1}", 1),
        (r"\boxed{\boxed{1}}", 1),
        (r"\boxed{1} or \fbox{2} or \boxed 3", 3),
        (r"\boxed{\boxed{1}} and \boxed{2}", 2),
        (r"\boxed{1} and \boxed{2", 1),
    ],
)
def test_boxes_are_counted_a_box_in_a_box_once(text: str, count: int) -> None:
    assert count_boxed(text) == count


def test_only_boxes_behind_the_thinking_are_counted_where_only_they_matter() -> None:
    text = r"<think>\boxed{1} \boxed{2}</think>\boxed{3}"
    assert (count_boxed(text), count_boxed(text, after_think=True)) == (3, 1)
    assert count_boxed(r"<think>\boxed{1}", after_think=True) == 0


@pytest.mark.parametrize(
    ("fallback", "text", "answer"),
    [
        ("answer", "So the final answer is 42. Good.", "42"),
        ("answer", "**Answer:** $x = 3.5$", "$x = 3.5$"),
        ("answer", "The answer is 3.5.", "3.5"),
        ("hash", "5 + 5 = 10\n#### 10", "10"),
        ("math", r"so $x$ is $\frac{1}{2}$, as said", r"\frac{1}{2}"),
        ("math", r"so \[ x = 3 \]", "x = 3"),
        ("number", "first 3 apples, then 1,200 pears.", "1,200"),
    ],
)
def test_a_fall_back_finds_an_answer_without_a_box(fallback: str, text: str, answer: str) -> None:
    assert extract_answer(text, fallbacks=[fallback]) == answer
    assert extract_answer(text) is None


def test_a_box_goes_before_every_fall_back_and_the_first_that_finds_something_decides() -> None:
    text = "The answer is 1. #### 2"
    assert extract_answer(text + r" \boxed{3}", fallbacks=list(FALLBACKS)) == "3"
    assert extract_answer(text, fallbacks=["hash", "answer"]) == "2"
    assert extract_answer("<think>The answer is 1.", after_think=True, fallbacks=["answer"]) is None
    assert verify(text, "1", fallbacks=["answer"]).correct


def test_every_fall_back_of_the_config_is_there() -> None:
    assert tuple(FALLBACKS) == ANSWER_FALLBACKS


def test_an_unknown_fall_back_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'guess'"):
        extract_answer("1", fallbacks=["guess"])
