"""Keys for majority voting."""

import pytest

from falcon_h1r.verifier import canonical_answer, verify


def key(answer: str) -> str | None:
    return canonical_answer(f"\\boxed{{{answer}}}")


@pytest.mark.parametrize(
    "answers",
    [
        ["1/2", "0.5", r"\frac12", r"\frac{2}{4}", "x = 0.50"],
        ["1000", "1,000", r"1\,000", r"1000\text{ m}"],
        [r"\sqrt{8}", r"2\sqrt{2}", r"8^{1/2}"],
        ["1, 2", r"2 \text{ and } 1", "x=2, x=1"],
        ["(x+1)^2", "x^2+2x+1"],
        ["(1, 0.5)", r"\left(1, \frac{1}{2}\right)"],
        [r"\pm 1", "-1, 1"],
        [r"\text{Yes}", "yes"],
        [r"\sin 30^\circ", "1/2"],
        [r"(\sqrt{3}-i)^3", "-8i"],
        ["x<3", "3>x", r"(-\infty,3)"],
        [r"[3,4]\cup[1,2]", r"1\le x\le2 \text{ or } 3\le x\le 4"],
        ["|x|<1", "(-1,1)"],
        ["1:2", "2:4"],
        [r"k\pi, k\in\mathbb{Z}", r"n\pi, n\in\mathbb{Z}"],
        ["(1,2)", "x=1, y=2", "y=2, x=1", "(x,y)=(1,2)", r"\begin{pmatrix}1\\2\end{pmatrix}"],
        [r"\text{(C) }12", "C"],
        ["x+1-x", "1"],
        ["y=2x+3", "2x-y+3=0"],
        ["x^2+y^2=4", r"\frac{x^2}{4}+\frac{y^2}{4}=1"],
        [r"x+y\le 4", r"y\le 4-x", r"-2x-2y\ge -8"],
    ],
)
def test_equal_answers_share_a_key(answers: list[str]) -> None:
    assert len({key(a) for a in answers}) == 1


def test_different_answers_have_different_keys() -> None:
    answers = [
        "1",
        "2",
        "-1",
        "(1,2)",
        "(2,1)",
        "[1,2]",
        "1,2,3",
        r"\pi",
        "3.14",
        "x",
        "y",
        "x+1",
        "10%",
        "10",
        "0.1",
        "yes",
        "(x-1)^2+(y+2)^2=9",
        "(x+1)^2+(y-2)^2=9",
        "x+y=0",
        "x-y=0",
        "x=2, y=1, z=3",
        "x=1, y=2, z=3",
        r"5\text{ if }x>0",
        r"5\text{ if }x<0",
        r"k\pi, k\in\mathbb{N}",
        "|x-30|",
        "30-x",
        "(0,1)",
        "[0,1]",
        "(0,1]",
        r"\{0,1\}",
        "1/3",
        "0.3333",
        "(1,2),(3,4)",
        r"x+y\le 4",
        r"2x+y\le 4",
        r"x+y\ge 4",
        "x+y<4",
    ]
    assert len({key(a) for a in answers}) == len(answers)


def test_the_key_of_a_rational_is_its_reduced_fraction() -> None:
    assert key(r"\frac{2}{4}") == "1/2"
    assert key("4.0") == "4"


def test_without_an_answer_there_is_no_key() -> None:
    assert canonical_answer("no box") is None
    assert canonical_answer(r"\boxed{ }") is None
    assert canonical_answer(r"<think>\boxed{1}", after_think=True) is None


def test_what_does_not_parse_is_keyed_by_its_text() -> None:
    assert key(r"\foo{1} !!") == key(r" \foo{1}!! ")


def test_answers_with_one_key_are_equal_to_the_verifier() -> None:
    answers = ["0.5", "1/2", r"\sqrt{8}", r"2\sqrt{2}", "1, 2", "2, 1", "(x+1)^2", "x^2+2x+1", "10%", "10"]
    for a in answers:
        for b in answers:
            if key(a) == key(b):
                assert verify(f"\\boxed{{{a}}}", b).correct
