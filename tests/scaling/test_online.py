"""The online algorithm on scripted traces: thresholds, stops, votes and tokens are known by construction."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.scaling.confidence import summarise
from falcon_h1r.scaling.online import OnlineResult, OnlineSettings, OnlineVote, stop_threshold
from falcon_h1r.scaling.traces import ScoredTrace

WINDOW = 2
SETTINGS = OnlineSettings(num_traces=8, warmup_traces=4, wave_traces=2, keep_share=0.5, consensus_share=1.0)


def trace(index: int, answer: str | None, *confidences: float, right: bool | None = None) -> ScoredTrace:
    """A trace that goes on to its end, by groups of two tokens."""
    summary = summarise(np.array(confidences, dtype=float), WINDOW, "mean")
    is_right = answer == "a" if right is None else right
    return ScoredTrace(index, answer, len(confidences), False, {"top_k": summary}, is_right)


def cut_at(full: ScoredTrace, threshold: float | None) -> ScoredTrace:
    """What an engine hands back of it under a threshold."""
    tokens = None if threshold is None else full.confidence["top_k"].tokens_until_below(threshold)
    return full if tokens is None else replace(full, answer=None, num_tokens=tokens, was_stopped=True, is_right=None)


def run(traces: list[ScoredTrace], settings: OnlineSettings, seed: int | None = None) -> OnlineResult:
    """Draw wave after wave; with a seed, each wave's traces end in a random order."""
    vote = OnlineVote(settings)
    while wave := vote.next_wave():
        if seed is not None:
            random.Random(seed).shuffle(wave)
        threshold = vote.stop_below
        for index in wave:
            vote.ended(cut_at(traces[index], threshold))
    return vote.result()


# Lowest groups 1, 2, 3, 4: the median, half of them to be kept, is 2.5.
WARMUP = [
    trace(0, "a", 1.0, 9.0, 9.0),
    trace(1, "b", 5.0, 3.0, 1.0),
    trace(2, "a", 3.0, 5.0, 5.0),
    trace(3, "b", 4.0, 4.0, 4.0, 4.0),
]
LATER = [
    trace(4, "a", 5.0, 3.0, 2.0, 8.0, 8.0),  # groups 5, 4, 2.5, 5, 8: never below 2.5
    trace(5, "b", 5.0, 3.0, 1.0, 8.0, 8.0),  # 5, 4, 2: stopped at its third token
    trace(6, "b", 2.0, 9.0, 9.0),  # stopped at its first
    trace(7, "a", 8.0, 8.0, 3.0, 1.0),  # 8, 8, 5.5, 2: stopped at its last
]


def test_a_whole_run_by_hand() -> None:
    result = run(WARMUP + LATER, SETTINGS)
    assert result.threshold == 2.5
    assert [t.num_tokens for t in result.traces] == [3, 3, 3, 4, 5, 3, 1, 4]
    assert [t.was_stopped for t in result.traces] == [False] * 5 + [True] * 3
    assert (result.num_traces, result.num_stopped, result.tokens, result.ended_by) == (8, 3, 26, "budget")
    # Lowest groups: a has 1 + 3 + 2.5, b has 2 + 4.
    assert result.votes["lowest_group"].shares == {"a": 6.5 / 12.5, "b": 6 / 12.5}
    assert result.consensus == 6.5 / 12.5
    assert (result.votes["majority"].winner, result.votes["majority"].num_votes) == ("a", 5)
    # The mean warm-up trace has 13 / 4 tokens; the three that were stopped drew 8.
    assert result.tokens_saved_by_confidence == 3 * 13 / 4 - 8
    assert result.tokens_saved_by_consensus == 0


@pytest.mark.parametrize("seed", range(6))
def test_the_order_in_which_a_waves_traces_end_changes_nothing(seed: int) -> None:
    assert run(WARMUP + LATER, SETTINGS, seed) == run(WARMUP + LATER, SETTINGS)


def test_waves_are_drawn_in_the_order_of_their_indices() -> None:
    vote, waves = OnlineVote(replace(SETTINGS, wave_traces=3)), []
    while wave := vote.next_wave():
        waves.append(wave)
        threshold = vote.stop_below
        for index in wave:
            vote.ended(cut_at((WARMUP + LATER)[index], threshold))
    assert waves == [[0, 1, 2, 3], [4, 5, 6], [7]]


def test_a_wave_is_what_has_not_ended_of_it_and_its_threshold_stays() -> None:
    vote = OnlineVote(SETTINGS)
    vote.ended(WARMUP[2])
    assert (vote.next_wave(), vote.threshold, vote.finished) == ([0, 1, 3], None, False)
    for index in (3, 1, 0):
        vote.ended(WARMUP[index])
    assert (vote.next_wave(), vote.threshold) == ([4, 5], 2.5)
    vote.ended(LATER[0])
    assert (vote.next_wave(), vote.threshold) == ([5], 2.5)


def test_a_trace_that_fell_below_is_stopped_whatever_its_engine_saw() -> None:
    """As where the stop token came in the same message: it has an answer, and still does not vote."""
    vote = OnlineVote(SETTINGS)
    for ended in (*WARMUP, *LATER):
        vote.ended(ended)
    result = vote.result()
    assert [t.was_stopped for t in result.traces] == [False] * 5 + [True] * 3
    assert result.votes == run(WARMUP + LATER, SETTINGS).votes


# ------------------------------------------------------------------------------------------------------------
# Thresholds


@pytest.mark.parametrize(
    "keep_share, threshold", [(0.0, 5.0), (0.25, 4.0), (0.5, 3.0), (0.75, 2.0), (0.9, 1.4), (0.1, 4.6)]
)
def test_the_threshold_keeps_its_share_of_the_warm_up(keep_share: float, threshold: float) -> None:
    assert stop_threshold([3.0, 1.0, 5.0, 2.0, 4.0], keep_share) == pytest.approx(threshold, abs=1e-12)


def test_sixteen_traces_at_the_default_keep_the_top_tenth() -> None:
    # Rank 0.9 * 15 = 13.5: halfway between the 14th and the 15th of 1, ..., 16.
    assert stop_threshold([float(value) for value in range(1, 17)], 0.1) == pytest.approx(14.5, abs=1e-12)


@pytest.mark.parametrize(("keep_share", "place"), [(0.9, 1), (0.8, 2), (0.7, 3), (0.4, 6), (0.3, 7), (0.1, 9)])
def test_a_percentile_that_is_a_traces_own_is_exactly_that(keep_share: float, place: int) -> None:
    """A trace as sure as that is not stopped: 1 - 0.7 is a little more than 0.3, and must not show."""
    lowest = sorted(np.random.default_rng(1).uniform(10, 20, 11).tolist())
    assert stop_threshold(lowest, keep_share) == lowest[place]


@pytest.mark.parametrize(
    ("name", "value"), [("keep_share", 10), ("vote_share", -0.1), ("consensus_share", 95), ("measure", "entropy")]
)
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        OnlineSettings(num_traces=8, **{name: value})


def test_rounding_does_not_choose_among_equals_of_the_threshold() -> None:
    """Later traces of the text that set the threshold, drawn in two batches: each with rounding errors of its own."""
    settings = replace(SETTINGS, num_traces=40, keep_share=0.0, stop_slack=1e-5)
    kept = []
    for seed in (0, 1):
        noise = np.random.default_rng(seed).uniform(-1e-6, 1e-6, (40, 3))
        clean = [(9.0, 7.0, 8.0) if index % 2 else (9.0, 5.0, 8.0) for index in range(40)]
        answers = "ab" * 20
        traces = [trace(i, answers[i], *(clean[i] + noise[i])) for i in range(40)]
        kept.append([t.sample_index for t in run(traces, settings).traces if not t.was_stopped])
    assert kept[0] == kept[1] == [0, 1, 2, 3, *range(5, 40, 2)]


def test_keeping_all_stops_nothing() -> None:
    unsure = [trace(index, "a", 0.25, 0.25) for index in range(4, 8)]
    result = run(WARMUP + unsure, replace(SETTINGS, keep_share=1.0))
    assert (result.threshold, result.num_stopped, result.tokens_saved_by_confidence) == (None, 0, 0)


def test_keeping_next_to_nothing_lets_only_the_equals_of_the_best_go_on() -> None:
    later = [trace(4, "a", 4.0, 4.0), trace(5, "b", 3.75, 9.0), trace(6, "a", 9.0), trace(7, "a", 4.0, 3.0)]
    result = run(WARMUP + later, replace(SETTINGS, keep_share=0.0))
    assert result.threshold == 4.0
    assert [t.was_stopped for t in result.traces[4:]] == [False, True, False, True]


# ------------------------------------------------------------------------------------------------------------
# Edges


@pytest.mark.parametrize("budget", [1, 3, 4])
def test_a_budget_within_the_warm_up_stops_nothing(budget: int) -> None:
    result = run(WARMUP + LATER, replace(SETTINGS, num_traces=budget))
    assert (result.num_traces, result.num_stopped, result.threshold) == (budget, 0, None)
    assert (result.tokens, result.ended_by) == (sum(t.num_tokens for t in WARMUP[:budget]), "budget")
    assert (result.tokens_saved_by_confidence, result.tokens_saved_by_consensus) == (0, 0)


def test_a_warm_up_that_agrees_ends_the_drawing() -> None:
    agreed = [replace(t, answer="a") for t in WARMUP]
    result = run(agreed + LATER, replace(SETTINGS, consensus_share=0.95))
    assert (result.num_traces, result.tokens, result.ended_by, result.consensus) == (4, 13, "consensus", 1.0)
    assert result.threshold == 2.5  # known, and never used
    assert (result.tokens_saved_by_confidence, result.tokens_saved_by_consensus) == (0, 4 * 13 / 4)


def test_agreement_at_the_share_exactly_is_consensus() -> None:
    # By lowest groups a has 1 + 3 of 10, b the rest: 0.6.
    split = [replace(t, answer=answer) for t, answer in zip(WARMUP, "abab", strict=True)]
    assert run(split + LATER, replace(SETTINGS, consensus_share=0.6)).num_traces == 4
    assert run(split + LATER, replace(SETTINGS, consensus_share=0.61)).num_traces > 4


def test_nineteen_votes_of_twenty_are_95_percent_whatever_they_weigh() -> None:
    """11 of these 5,000 weights round to a share below 0.95."""
    weights = np.random.default_rng(0).uniform(0.1, 30.0, 5000).tolist()
    rounded = [each for each in weights if math.fsum([each] * 19) / math.fsum([math.fsum([each] * 19), each]) < 0.95]
    assert rounded
    settings = OnlineSettings(num_traces=21, warmup_traces=20, wave_traces=1, consensus_share=0.95)
    for weight in rounded:
        vote = OnlineVote(settings)
        traces = [trace(index, "a", weight) for index in range(20)]
        for each in [replace(traces[0], answer="b"), *traces[1:]]:
            vote.ended(each)
        assert vote.finished, weight


def test_consensus_is_looked_for_between_waves_by_the_configured_score() -> None:
    """After the second wave a has 8 of 11.5 by the lowest group, and 4 votes of 6 by the majority."""
    later = [trace(4, "a", 2.5, 4.0), trace(5, "a", 9.0), trace(6, "b", 9.0), trace(7, "b", 9.0)]
    warmup = [trace(0, "a", 1.0), trace(1, "b", 2.0), trace(2, "a", 3.0), trace(3, None, 4.0)]
    settings = replace(SETTINGS, consensus_share=0.88)
    result = run(warmup + later, settings)  # a: 1 + 3 + 2.5 + 9 of 17.5
    assert (result.num_traces, result.ended_by, result.consensus) == (6, "consensus", 15.5 / 17.5)
    one_by_one = run(warmup + later, replace(settings, consensus_share=0.76, wave_traces=1))  # 6.5 of 8.5
    assert (one_by_one.num_traces, one_by_one.consensus) == (5, 6.5 / 8.5)


def test_agreement_that_comes_with_the_last_trace_leaves_nothing_to_save() -> None:
    agreed = [replace(t, answer="a") for t in WARMUP]
    result = run(agreed, replace(SETTINGS, num_traces=4, consensus_share=0.5))
    assert (result.ended_by, result.consensus, result.tokens_saved_by_consensus) == ("budget", 1.0, 0)


def test_no_answer_is_no_consensus() -> None:
    silent = [replace(t, answer=None, is_right=False) for t in WARMUP + LATER]
    result = run(silent, replace(SETTINGS, consensus_share=0.0))
    assert (result.num_traces, result.ended_by, result.consensus) == (8, "budget", 0.0)
    assert all((vote.winner, vote.right) == (None, 0.0) for vote in result.votes.values())


def test_where_all_later_traces_are_stopped_the_warm_up_decides() -> None:
    later = [trace(index, "b", 2.0, 9.0, 9.0) for index in range(4, 8)]
    result = run(WARMUP + later, SETTINGS)
    assert (result.num_stopped, result.tokens) == (4, 13 + 4)
    assert result.votes == run(WARMUP, replace(SETTINGS, num_traces=4)).votes


def test_a_tie_at_the_end_counts_as_its_expectation() -> None:
    tied = [trace(0, "b", 2.0), trace(1, "a", 2.0)]
    result = run(tied, OnlineSettings(num_traces=2, warmup_traces=2))
    vote = result.votes["lowest_group"]
    assert (vote.winner, vote.share, vote.right) == ("a", 0.5, 0.5)


def test_a_trace_without_a_token_costs_nothing_sets_no_threshold_and_is_not_stopped() -> None:
    empty = trace(0, None)
    result = run([empty, *WARMUP[1:], replace(empty, sample_index=4), *LATER[1:]], SETTINGS)
    assert result.threshold == 3.0  # the median of 2, 3, 4
    assert not result.traces[4].was_stopped
    assert result.tokens == 10 + 0 + 3 + 1 + 4
    all_empty = run([trace(index, None) for index in range(8)], SETTINGS)
    assert (all_empty.threshold, all_empty.tokens, all_empty.num_traces) == (None, 0, 8)


def test_a_trace_shorter_than_a_window_that_waits_counts_for_the_threshold_and_runs_on() -> None:
    def waiting(index: int, answer: str, *confidences: float) -> ScoredTrace:
        summary = summarise(np.array(confidences), WINDOW, "wait")
        return ScoredTrace(index, answer, len(confidences), False, {"top_k": summary}, True)

    traces = [waiting(0, "a", 6.0), waiting(1, "b", 1.0, 3.0), waiting(2, "b", 1.0), waiting(3, "a", 1.0, 4.0)]
    settings = OnlineSettings(num_traces=4, warmup_traces=2, wave_traces=2, keep_share=0.5)
    result = run(traces, settings)
    assert result.threshold == 4.0
    assert [t.was_stopped for t in result.traces] == [False, False, False, True]


# ------------------------------------------------------------------------------------------------------------
# Refusals and settings


def test_a_trace_that_is_not_waited_for_is_refused() -> None:
    vote = OnlineVote(SETTINGS)
    vote.ended(WARMUP[0])
    for unasked in (WARMUP[0], LATER[0]):
        with pytest.raises(ValueError, match="none of those to be drawn"):
            vote.ended(unasked)
    with pytest.raises(ValueError, match="no threshold"):
        vote.ended(replace(WARMUP[1], was_stopped=True))


def test_an_unfinished_vote_has_no_result() -> None:
    vote = OnlineVote(SETTINGS)
    vote.ended(WARMUP[0])
    with pytest.raises(ValueError, match=r"traces \[1, 2, 3\] have not ended"):
        vote.result()


def test_a_trace_that_was_not_measured_is_refused() -> None:
    vote = OnlineVote(replace(SETTINGS, measure="sampled"))
    with pytest.raises(ValueError, match="no confidence by the measure sampled"):
        for ended in WARMUP:
            vote.ended(ended)


def test_settings_are_the_configs_with_a_budget_of_their_own() -> None:
    config = ScalingConfig(num_traces=64, keep_share=0.9, measure="sampled", trace_score="tail", wave_traces=4)
    assert OnlineSettings.of(config) == OnlineSettings(
        num_traces=64, keep_share=0.9, measure="sampled", trace_score="tail", wave_traces=4, stop_slack=1e-5
    )
    assert OnlineSettings.of(config, 12).num_traces == 12
    assert OnlineSettings.of(config).consensus_share == config.consensus_share == 0.95
    with pytest.raises(ValueError, match="num_traces=0"):
        OnlineSettings.of(ScalingConfig())


def test_only_the_best_share_votes_at_the_end_but_all_have_to_agree() -> None:
    """The best trace alone would agree with itself after the warm-up."""
    result = run(WARMUP + LATER, replace(SETTINGS, vote_share=0.2))
    assert (result.num_traces, result.consensus) == (8, 6.5 / 12.5)
    assert result.votes["lowest_group"].shares == {"b": 1.0}
    assert result.votes["majority"].share == 3 / 5
