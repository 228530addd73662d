"""What would take forever is refused by its size, before it is computed."""

import time

import pytest

from falcon_h1r.verifier import check_gold, verify
from falcon_h1r.verifier.reading.parse_answer import parse_answer
from falcon_h1r.verifier.tree.node import BudgetExceeded
from falcon_h1r.verifier.values.exact import ExactEvaluator

BOMBS = {
    "power": "9**9**9",
    "tower": r"9^{9^{9^{9^{9}}}}",
    "real tower": r"e^{e^{e^{e^{99}}}}",
    "tiny": r"2^{-10^{12}}",
    "factorial": "99999999!",
    "factorial of a real": r"(10^{40} + \pi)!",
    "iterated factorial": "((9!)!)!",
    "binomial": r"\binom{10^{9}}{5 \cdot 10^{8}}",
    "decimal exponent": "1e999999999",
    "huge sine": r"\sin(10^{10^{9}})",
    "expansion": "(x+1)^{5000}-(x-1)^{5000}",
    "sum": r"\sum_{k=1}^{10^{9}} k",
    "nested sums": r"\sum_{a=1}^{999}\sum_{b=1}^{999}\sum_{c=1}^{999} abc",
    "parentheses": "(x+" * 2000 + "1" + ")" * 2000,
    "fractions": r"\frac{1}{" * 500 + "2" + "}" * 500,
    "carets": "x^" * 500 + "x",
    "minus signs": "-" * 1399 + "x",
    "percent signs": "1" + "%" * 1400,
    "products": "*".join("x" for _ in range(700)),
    "quotients": "/".join("x" for _ in range(700)),
    "unions": r"\cup".join("[0,1]" for _ in range(200)),
    "plus-minus": r"\pm".join("x" for _ in range(40)),
    "digits": "7" * 7000,
    "list": ",".join(map(str, range(20_000))),
    "square roots": r"\sqrt{" * 200 + "2" + "}" * 200,
    "large matrix": r"\begin{vmatrix}" + r"\\".join("&".join("x" * 12) for _ in range(12)) + r"\end{vmatrix}",
    "mixed numbers": r"1\frac{" * 19 + "1" + "}{2}" * 19,
    "set-builders": r"\{x \in " * 19 + "2y" + r"\}" * 19,
    "long whole number": "1 " + "9" * 6000 + "/3",
    "many gammas": ",".join(rf"({n}.5x)!" for n in range(100)),
    "names and commas": "a," * 3900,
    "ligatures": "\ufb03" * 7000 + "!",
    "dollars": "$" * 5000 + "7!",
    "conditions joined": r"x<1\cup " * 700 + "y",
    "digits and words": "1" * 7000 + r"\text{ out of } x",
    "polynomial": "+".join(f"x^{{{n}}}y^{{{1000 - n}}}" for n in range(1000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly_and_never_called_correct(name: str) -> None:
    start = time.process_time()
    for gold in ("1", r"\sqrt{2}", "x", "[0,1]"):
        if name == "unions" and gold == "[0,1]":
            continue
        assert not verify(f"\\boxed{{{BOMBS[name]}}}", gold).correct
        verify("\\boxed{1}", BOMBS[name])
    assert time.process_time() - start < 4


@pytest.mark.parametrize("name", BOMBS)
def test_identical_bombs_are_equal_as_strings(name: str) -> None:
    assert verify(f"\\boxed{{{BOMBS[name]}}}", BOMBS[name]).stage == "string"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"10^{4000}\Gamma(\frac13)\Gamma(\frac23)", r"\frac{2\pi}{\sqrt3} 10^{4000}"),
        (r"10^{4000}\sum_{k=1}^{100} \ln(k+x)", r"10^{4000}\sum_{k=0}^{99} \ln(k+1+x)"),
        (r"10^{5000}e^{x}\arcsin(\frac{x}{100})", r"10^{5000}e^{2x}e^{-x}\arcsin(\frac{x}{100})"),
    ],
)
def test_large_values_are_compared_in_bounded_time(one: str, other: str) -> None:
    start = time.process_time()
    verify(f"\\boxed{{{one}}}", other)
    assert time.process_time() - start < 4


def test_beyond_the_budget_the_verdict_is_undecided() -> None:
    verdict = verify(r"\boxed{2^{10^{10}}}", r"\sqrt{2}")
    assert (verdict.status, verdict.stage) == ("undecided", "budget")


def test_nesting_is_bounded_by_count_and_not_by_the_stack() -> None:
    with pytest.raises(BudgetExceeded):
        parse_answer("(1+" * 200 + "1" + ")" * 200)
    assert ExactEvaluator().value(parse_answer("(1+" * 15 + "1" + ")" * 15)) == 16


def test_pairs_of_parentheses_around_each_other_cost_nothing() -> None:
    assert verify("\\boxed{" + "(" * 3000 + "7" + ")" * 3000 + "}", "7").correct


def test_a_gold_is_verifiable_when_it_parses_within_the_budgets_or_is_plain_text() -> None:
    assert all(map(check_gold, ["1/2", r"\frac{\pi}{2}", "Evelyn", "(1,2]", "x<3"]))
    assert not any(map(check_gold, ["", " ", r"\frac{1}{", "7" * 9000, r"\begin{cases} 1"]))
