"""What RL selection drops before any rollout: repeats, problems of the SFT data, unreadable golds, long prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from falcon_h1r.config_grpo import SelectionConfig
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.grpo.selection.screening import Drop, drop_long_prompts, question_key, screen_problems
from falcon_h1r.types import InputError, Problem


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("What is 3 + 4?", "what is  3+4"),
        ("Find $x^{2}$.", "find x^2"),
        ("**Find** it!", "Find it."),
        ("a three-digit number", "A three digit number"),
        ("Compute 3 \N{MINUS SIGN} 4", "Compute 3-4"),
        ("Compute, then: stop", "compute then\nstop"),
    ],
)
def test_questions_that_are_the_same(question: str, other: str) -> None:
    assert question_key(question) == question_key(other)


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("3 + 4", "3 - 4"),
        ("3 * 4", "3 + 4"),
        ("2 * 3", "2 3"),
        ("1.5", "15"),
        ("gcd of 12 and 3", "gcd of 1 and 23"),
        ("(2 + 3) * 4", "2 + 3 * 4"),
        ("5! is", "5 is"),
        ("n! is", "n is"),
        ("x \N{LESS-THAN OR EQUAL TO} 3", "x \N{GREATER-THAN OR EQUAL TO} 3"),
        ("3/4", "34"),
        ("10%", "10"),
        ("5 - 3", "5 3"),
    ],
)
def test_questions_that_are_not(question: str, other: str) -> None:
    assert question_key(question) != question_key(other)


@pytest.fixture
def sft_data(tmp_path: Path) -> SourceConfig:
    path = tmp_path / "sft.jsonl"
    rows = [{"question": f"what is {n}+{n}", "answer": f"Twice. #### {2 * n}"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), answer_after="####")


def test_problems_are_dropped_for_the_first_reason_and_each_gold_is_asked_about_once(sft_data: SourceConfig) -> None:
    asked: list[str] = []

    def check_problem(problem: Problem) -> bool:
        asked.append(problem.answer)
        return problem.answer != "?"

    problems = [
        Problem.from_question("What is 1 + 1?", "2"),
        Problem.from_question("What is 5 + 5?", "10"),
        Problem.from_question("what is 5+5", "10"),
        Problem.from_question("What is 2 + 8?", "10"),
        Problem.from_question("What is life?", "?"),
        Problem.from_question("What is love?", "?"),
        Problem.from_question("Prove it.", "10", verifiable=False),
        Problem.from_question("What is DNA?", "10", domain="science"),
        Problem(problem_uid := "own", "What is 6 + 6?", "12"),
        Problem(problem_uid, "What is 7 + 7?", "14"),
    ]
    selection = SelectionConfig(disjoint_from_sft=True, drop_unverifiable=True)
    drops = screen_problems(problems, selection, sft_data, check_problem, Watch())
    assert {index: drop.reason for index, drop in drops.items()} == {
        0: "in_sft",
        2: "repeated",
        4: "unverifiable_gold",
        5: "unverifiable_gold",
        6: "unverifiable_gold",
        7: "other_domain",
        9: "repeated",
    }
    assert drops[2].detail == f"as problem {problems[1].uid}"
    assert asked == ["10", "?", "12"]


def test_what_is_not_asked_for_is_not_dropped_but_rollouts_need_a_gold(sft_data: SourceConfig) -> None:
    problems = [Problem.from_question("What is 1 + 1?", "2"), Problem.from_question("What is life?", "?")]
    plain = SelectionConfig()
    missing = SourceConfig(path="nowhere.jsonl", curated=True)
    assert screen_problems(problems, plain, missing, lambda problem: False, Watch()) == {}
    drops = screen_problems(
        problems, replace(plain, num_rollouts=2), missing, lambda problem: problem.answer != "?", Watch()
    )
    assert drops == {1: Drop("unverifiable_gold", "?")}
    with pytest.raises(InputError, match="nowhere.jsonl: no such file"):
        screen_problems(problems, replace(plain, disjoint_from_sft=True), missing, lambda problem: True, Watch())


def test_prompts_beyond_the_limit_are_dropped_and_no_drop_is_given_twice() -> None:
    drops = {0: Drop("in_sft")}
    drop_long_prompts([[1] * 9, [1] * 4, [1] * 5], 4, drops)
    assert drops == {0: Drop("in_sft"), 2: Drop("prompt_too_long", "5 tokens")}
