"""How much a problem's difficulty weighs, and how hard a generated problem is."""

from __future__ import annotations

from falcon_h1r.data.difficulty import hardness
from falcon_h1r.data.problems import generate_problems
from falcon_h1r.types import Problem

PROBLEMS = list(generate_problems(seed=0, count=400))


def test_hardness_lies_between_zero_and_one_and_tells_hard_problems_apart() -> None:
    by_difficulty: dict[str, list[float]] = {"easy": [], "medium": [], "hard": []}
    for problem in PROBLEMS:
        by_difficulty[str(problem.difficulty)].append(hardness(problem))
    assert all(0.0 <= value <= 1.0 for values in by_difficulty.values() for value in values)
    means = {name: sum(values) / len(values) for name, values in by_difficulty.items()}
    assert means["easy"] < means["medium"] < means["hard"]
    assert len(set(by_difficulty["hard"])) > 10


def test_the_hardness_of_other_problems_is_in_the_middle() -> None:
    assert hardness(Problem.from_question("How many?", "4", family="gsm8k")) == 0.5
    assert hardness(Problem.from_question("How many?", "4", family="addition")) == 0.5


def test_a_longer_working_is_harder() -> None:
    short, long = "Compute 85+47.", "Compute 8512+4777."
    assert hardness(Problem.from_question(short, "132", family="addition")) < hardness(
        Problem.from_question(long, "13289", family="addition")
    )
