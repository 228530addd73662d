"""Facts of groups, the metrics of a step made from them, and the transcripts that are kept."""

from __future__ import annotations

import itertools
import json
import pickle
from typing import Any

import pytest

from falcon_h1r.config_grpo import GRPOConfig, RewardConfig
from falcon_h1r.grpo.metrics import (
    MOST_FAMILIES,
    MOST_OF_A_GROUP,
    GroupFacts,
    chosen_rollouts,
    group_facts,
    rollout_metrics,
    sample_rows,
)
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.types import Problem, Rollout, RolloutGroup, Verdict
from falcon_h1r.verifier import Verifier

UNUSED = Verifier(after_think=True)  # starts no process before it is asked
CORRECT, WRONG = Verdict("correct", "string", "", 0.5), Verdict("wrong", "number", "", 0.25)


def group_of(pattern: str, lengths: list[int] | None = None, family: str = "sums", **reward: Any) -> RolloutGroup:
    """A group by its verdicts, r for right: "rwww"."""
    problem = Problem(f"{family}/{pattern}", "question", "7", family=family)
    lengths = lengths or [10] * len(pattern)
    rollouts = [
        Rollout(problem.uid, k, [1], [*range(length)], [-1.0] * length, "stop", 0, f"<think>a</think>\\boxed{{{k}}}")
        for k, length in enumerate(lengths)
    ]
    verdicts = [CORRECT if letter == "r" else WRONG for letter in pattern]
    return Scorer(UNUSED, GRPOConfig(reward=RewardConfig(**reward))).score(problem, rollouts, verdicts)


def facts_of(*patterns: str) -> list[GroupFacts]:
    return [group_facts(group_of(pattern)) for pattern in patterns]


def test_facts_are_small_and_travel_without_tokens_or_text() -> None:
    group = group_of("rwww", lengths=[4000] * 4)
    facts = group_facts(group)
    assert pickle.loads(pickle.dumps(facts)) == facts
    assert len(pickle.dumps(facts)) < 2000


def test_groups_without_contrast_are_told_apart_by_what_they_lack() -> None:
    metrics = rollout_metrics(facts_of("rrrr", "wwww", "wwww", "rwww", "rrrw"))
    assert metrics["zero_variance_share"] == 0.6
    assert (metrics["all_right_share"], metrics["all_wrong_share"]) == (0.2, 0.4)
    assert metrics["pass_at_1"] == metrics["reward_mean"] == metrics["reward_correct_mean"] == 8 / 20
    assert metrics["pass_at_group"] == 0.6


def test_pass_at_four_is_the_mean_over_all_choices_of_four_rollouts() -> None:
    patterns = ["rwwwww", "rrwwww", "wwwwww"]
    metrics = rollout_metrics(facts_of(*patterns))
    brute = [any(letter == "r" for letter in chosen) for p in patterns for chosen in itertools.combinations(p, 4)]
    assert metrics["pass_at_4"] == pytest.approx(sum(brute) / len(brute))
    assert "pass_at_4" not in rollout_metrics(facts_of("rwww"))  # it would be pass_at_group again


def test_lengths_are_told_apart_by_verdict_and_no_mean_is_made_of_nothing() -> None:
    metrics = rollout_metrics([group_facts(group_of("rrww", lengths=[10, 20, 100, 300]))])
    assert metrics["response_tokens_mean"] == 107.5
    assert metrics["response_tokens_max"] == 300
    assert metrics["response_tokens_p95"] == pytest.approx(270)
    assert (metrics["response_tokens_right_mean"], metrics["response_tokens_wrong_mean"]) == (15, 200)
    assert "response_tokens_right_mean" not in rollout_metrics(facts_of("wwww"))
    assert metrics["sampled_tokens"] == 430


def test_each_part_of_the_reward_is_logged_by_itself_and_they_sum_to_the_reward() -> None:
    groups = [group_of("rw", lengths=[90, 100], overlong_penalty=0.5, overlong_buffer_tokens=20, format_penalty=0.25)]
    config = GRPOConfig(reward=RewardConfig(overlong_penalty=0.5, overlong_buffer_tokens=20, format_penalty=0.25))
    config.limits.response_tokens = 100
    group = Scorer(UNUSED, config).score(groups[0].problem, groups[0].rollouts, groups[0].verdicts)
    metrics = rollout_metrics([group_facts(group)])
    parts = {key: value for key, value in metrics.items() if key.startswith("reward_") and key != "reward_mean"}
    assert parts == {
        "reward_correct_mean": 0.5,
        "reward_format_mean": 0.0,
        "reward_overlong_mean": pytest.approx(-0.5 * (0.5 + 1.0) / 2),
    }
    assert metrics["reward_mean"] == pytest.approx(sum(parts.values()))


def test_families_have_numbers_of_their_own_and_the_largest_are_logged() -> None:
    groups = [group_of("rrww", family="sums"), group_of("rwww", family="sums"), group_of("rrrr", family="roots")]
    metrics = rollout_metrics([group_facts(group) for group in groups])
    assert metrics["family_pass_at_1/sums"] == metrics["family_reward_mean/sums"] == 3 / 8
    assert metrics["family_pass_at_1/roots"] == 1.0
    many = [group_of("rw", family=f"f{number:02}") for number in range(MOST_FAMILIES + 5)] + groups[:2]
    logged = [key for key in rollout_metrics([group_facts(group) for group in many]) if key.startswith("family_reward")]
    assert len(logged) == MOST_FAMILIES and "family_reward_mean/sums" in logged
    assert not any(key.startswith("family") for key in rollout_metrics(facts_of("rw")))


def test_a_step_that_drew_nothing_has_no_averages() -> None:
    assert rollout_metrics([]) == {"sampled_tokens": 0.0}


def test_transcripts_are_the_best_the_worst_the_longest_and_the_one_that_repeats_itself() -> None:
    group = group_of("wwrwwwww", lengths=[10, 11, 12, 13, 99, 15, 16, 17])
    group.rollouts[6] = Rollout("p", 6, [1], [5] * 16, [0.0] * 16, "stop", 0, "555")
    assert chosen_rollouts(group) == [0, 2, 4, 6]
    assert len(chosen_rollouts(group_of("rrrrrrrr"))) == MOST_OF_A_GROUP
    assert chosen_rollouts(group_of("rw")) == [0, 1]


def test_a_row_says_what_a_reward_is_made_of_and_what_the_text_shows() -> None:
    rows = sample_rows([group_of("rw", format_penalty=0.5)], step=3)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0] | {"stage": "", "reason": ""} == {
        "step": 3,
        "problem_uid": "sums/rw",
        "question": "question",
        "gold": "7",
        "family": "sums",
        "sample_index": 0,
        "response": "<think>a</think>\\boxed{0}",
        "prediction": "0",
        "reward": 1.0,
        "parts": {"correct": 1.0, "format": 0.0},
        "status": "correct",
        "stage": "",
        "reason": "",
        "stop_reason": "stop",
        "response_tokens": 10,
        "structure": "whole",
        "num_boxes": 1,
        "other_script_share": 0.0,
        "repeated_ngram_share": 0.0,
    }
