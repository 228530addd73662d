"""Alarms: silent over a run that learns, on where one collapses, told once, and remembered over a resume."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping

import pytest

from falcon_h1r.grpo.alarms import BY_NAME, CALM_STEPS, PREFIX, RULES, STEPS_BEFORE, WATCHED, Alarms, judge_rule

CALM = {
    "response_tokens_mean": 200.0,
    "truncated_share": 0.05,
    "entropy": 0.5,
    "repeated_ngrams_share": 0.1,
    "several_boxes_share": 0.02,
    "format_broken_share": 0.05,
    "language_mixing_share": 0.001,
    "empty_share": 0.0,
    "reward_mean": 0.4,
    "pass_at_1": 0.45,
    "zero_variance_share": 0.4,
    "all_wrong_share": 0.3,
    "undecided_share": 0.002,
    "sampler_kl": 0.001,
    "importance_ratio": 1.0,
    "grad_norm": 0.7,
}
Change = Callable[[int], Mapping[str, float]]

# What a broken run's metrics become, by the steps since it began to break.
BREAKS: dict[str, Change] = {
    "length_explosion": lambda n: {"response_tokens_mean": 200 * 1.15**n},
    "truncation": lambda n: {"truncated_share": min(0.9, 0.05 + 0.08 * n)},
    "entropy_collapse": lambda n: {"entropy": 0.5 * 0.8**n},
    "entropy_explosion": lambda n: {"entropy": 0.5 * 1.15**n},
    "repetition": lambda n: {"repeated_ngrams_share": min(0.9, 0.1 + 0.03 * n)},
    "several_boxes": lambda n: {"several_boxes_share": min(0.9, 0.02 + 0.03 * n)},
    "format_broken": lambda n: {"format_broken_share": min(0.9, 0.05 + 0.03 * n)},
    "language_mixing": lambda n: {"language_mixing_share": min(0.5, 0.01 * n)},
    "empty_responses": lambda n: {"empty_share": 0.2},
    "reward_hacking": lambda n: {"reward_mean": 0.4 + 0.02 * n, "pass_at_1": 0.45},
    "no_contrast": lambda n: {"zero_variance_share": min(1.0, 0.4 + 0.05 * n)},
    "nothing_solved": lambda n: {"all_wrong_share": min(1.0, 0.3 + 0.05 * n)},
    "verifier": lambda n: {"undecided_share": 0.3},
    "sampler_gap": lambda n: {"sampler_kl": 0.4},
    "importance_ratio": lambda n: {"importance_ratio": 0.6},
    "gradient_spike": lambda n: {"grad_norm": 30.0 if n == 3 else 0.7},
}


def noisy(step: int, change: Mapping[str, float] | None = None) -> dict[str, float]:
    """A step's metrics with five percent of noise on whatever a run does to them."""
    rng = random.Random(step)
    values = CALM | dict(change or {})
    return {key: value * rng.uniform(0.95, 1.05) for key, value in values.items()}


def names_on(states: Mapping[str, float]) -> set[str]:
    return {key.removeprefix(PREFIX) for key, value in states.items() if value}


def test_every_rule_has_a_run_that_breaks_it() -> None:
    assert set(BREAKS) == set(BY_NAME) and len(BY_NAME) == len(RULES)
    assert set(CALM) == set(WATCHED)


def test_a_run_that_learns_raises_no_alarm() -> None:
    alarms = Alarms()
    for step in range(200):
        learnt = 1 - math.exp(-step / 60)
        change = {
            "reward_mean": 0.2 + 0.6 * learnt,
            "pass_at_1": 0.25 + 0.6 * learnt,
            "response_tokens_mean": 200 + 150 * learnt,
            "entropy": 0.5 - 0.35 * learnt,
            "format_broken_share": 0.3 - 0.28 * learnt,
            "zero_variance_share": 0.3 + 0.4 * learnt,
        }
        assert names_on(alarms.look(noisy(step, change), announce=False)) == set(), step


@pytest.mark.parametrize("name", BREAKS)
def test_a_run_that_breaks_raises_its_alarm_and_no_other(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    alarms, seen = Alarms(), set[str]()
    for step in range(20):
        assert names_on(alarms.look(noisy(step))) == set()
    for step in range(20, 45):
        seen |= names_on(alarms.look(noisy(step, BREAKS[name](step - 20))))
    assert seen == {name}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith(f"alarm: {name} at step ") and BY_NAME[name].look_at in printed[0]
    assert BY_NAME[name].metric in printed[0]


def test_an_alarm_is_told_again_only_after_a_calm(capsys: pytest.CaptureFixture[str]) -> None:
    alarms = Alarms()
    broken = [True, True, False, True] + [False] * CALM_STEPS + [True, False]
    for is_broken in broken:
        states = alarms.look({"sampler_kl": 0.4 if is_broken else 0.0})
        assert states == {"alarm_sampler_gap": float(is_broken)}
    assert [line.split(":")[1].strip() for line in capsys.readouterr().out.splitlines()] == [
        "sampler_gap at step 1",
        "sampler_gap at step 10",
    ]


def test_a_metric_that_is_missing_or_not_finite_is_passed_over() -> None:
    alarms = Alarms()
    assert alarms.look({}) == {}
    for value in (math.nan, math.inf):
        assert alarms.look({"grad_norm": value, "loss": math.nan}) == {"alarm_gradient_spike": 0.0}
    json.dumps(alarms.state_dict(), allow_nan=False)


def test_reward_that_rises_with_pass_at_1_is_no_hacking() -> None:
    alarms = Alarms()
    for step in range(60):
        change = {"reward_mean": 0.2 + 0.01 * step, "pass_at_1": 0.25 + 0.01 * step}
        assert names_on(alarms.look(noisy(step, change), announce=False)) == set()


def test_a_resumed_run_sees_and_says_what_one_that_never_stopped_does(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [noisy(step, BREAKS["length_explosion"](max(0, step - 15))) for step in range(40)]
    once = Alarms()
    expected = [once.look(metrics) for metrics in steps]
    printed = capsys.readouterr().out
    for cut in (3, 20, 28):
        first = Alarms()
        states = [first.look(metrics) for metrics in steps[:cut]]
        stored = json.loads(json.dumps(first.state_dict()))
        first.look(steps[0], announce=False)  # what was stored does not move on
        again = Alarms()
        again.load_state_dict(stored)
        states += [again.look(metrics) for metrics in steps[cut:]]
        assert states == expected
        assert capsys.readouterr().out == printed
        assert again.state_dict() == once.state_dict()


def test_memory_is_bounded() -> None:
    alarms = Alarms()
    for step in range(300):
        alarms.look(noisy(step), announce=False)
    assert len(alarms.state_dict()["history"]) <= STEPS_BEFORE + 5


def test_switched_off_it_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    alarms = Alarms(enabled=False)
    assert alarms.look({"sampler_kl": 9.0}) == {}
    assert capsys.readouterr().out == ""


def test_a_level_says_what_was_seen() -> None:
    history = [{"sampler_kl": 0.001}] * 9 + [{"sampler_kl": 0.2}]
    assert judge_rule(BY_NAME["sampler_gap"], history) == "sampler_kl is 0.2, above 0.05"
    assert judge_rule(BY_NAME["sampler_gap"], history[:-1]) is None
    assert judge_rule(BY_NAME["sampler_gap"], []) is None
