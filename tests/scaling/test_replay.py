"""Online equals offline: the replay against a literal, token by token run, and the curves against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.scaling.confidence import PARTIAL_WINDOWS
from falcon_h1r.scaling.online import OnlineSettings
from falcon_h1r.scaling.replay import CurvePoint, auc_within, curve, replay
from falcon_h1r.scaling.traces import SCORES, ConfidenceSummary, ScoredTrace
from falcon_h1r.scaling.voting import majority, weighted_vote
from tests.scaling import literal
from tests.scaling.literal import FullTrace, scored

PARTIAL = pytest.mark.parametrize("partial_window", PARTIAL_WINDOWS)


def random_traces(seed: int, num_traces: int, measure: str = "top_k", longest: int = 40) -> list[FullTrace]:
    """Traces of many lengths; right ones are a little surer."""
    generator = np.random.default_rng(seed)
    traces = []
    for _ in range(num_traces):
        answer = [None, "a", "a", "b", "c"][int(generator.integers(5))]
        surer = 1.2 if answer == "a" else 1.0
        confidences = generator.gamma(3, 4 * surer, int(generator.integers(1, longest)))
        if measure == "sampled":
            confidences = -confidences / 40
        traces.append(FullTrace(answer, confidences.tolist(), right=answer == "a"))
    return traces


# ------------------------------------------------------------------------------------------------------------
# One problem


def assert_replays_literally(traces: list[FullTrace], point: OnlineSettings, window: int, partial_window: str) -> None:
    result = replay(scored(traces, window, partial_window, point.measure), point)
    expected = literal.online(traces, point, window, partial_window)
    assert result.threshold == pytest.approx(expected.threshold, abs=1e-9)
    assert {t.sample_index: t.num_tokens for t in result.traces if t.was_stopped} == expected.stops
    assert (result.num_traces, result.tokens) == (expected.num_traces, expected.tokens)
    assert result.votes[point.trace_score].shares == pytest.approx(expected.shares, abs=1e-9)
    lengths = [len(trace.confidences) for trace in traces[: point.num_traces]]
    assert result.tokens_saved_by_confidence == sum(lengths[: result.num_traces]) - result.tokens
    assert result.tokens_saved_by_consensus == sum(lengths[result.num_traces :])


@PARTIAL
@pytest.mark.parametrize("measure", ["top_k", "sampled"])
@pytest.mark.parametrize("seed", range(6))
def test_a_replay_equals_a_literal_run(partial_window: str, measure: str, seed: int) -> None:
    point = OnlineSettings(
        num_traces=24,
        warmup_traces=8,
        wave_traces=[1, 5, 16][seed % 3],
        keep_share=[0.1, 0.5, 0.9, 1.0][seed % 4],
        measure=measure,
        trace_score=SCORES[seed % 4],
        consensus_share=[0.6, 0.95][seed % 2],
    )
    assert_replays_literally(random_traces(seed, 30, measure), point, 8, partial_window)


@PARTIAL
@settings(max_examples=80)
@given(
    traces=st.lists(
        st.builds(
            FullTrace,
            st.sampled_from(["a", "b", None]),
            st.lists(st.integers(1, 6).map(float), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=9,
    ),
    window=st.integers(1, 4),
    warmup_traces=st.integers(1, 10),
    wave_traces=st.integers(1, 4),
    keep_share=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    consensus_share=st.sampled_from([0.5, 0.75, 1.0]),
)
def test_small_whole_numbers_with_ties_everywhere_replay_literally(
    partial_window: str, traces: list[FullTrace], window: int, **choices: float
) -> None:
    """Whole confidences make groups of equal value equal on both sides, so that `<` decides alike."""
    point = OnlineSettings(num_traces=len(traces), **choices)  # type: ignore[arg-type]
    assert_replays_literally(traces, point, window, partial_window)


@PARTIAL
@pytest.mark.parametrize("seed", range(3))
def test_what_a_stopped_trace_would_have_gone_on_to_say_changes_nothing(partial_window: str, seed: int) -> None:
    traces = random_traces(seed, 20)
    point = OnlineSettings(num_traces=20, warmup_traces=6, wave_traces=4, keep_share=0.1, consensus_share=1.0)
    result = replay(scored(traces, 4, partial_window), point)
    stops = {t.sample_index: t.num_tokens for t in result.traces if t.was_stopped}
    assert len(stops) > 2
    altered = list(traces)
    for number, (index, tokens) in enumerate(stops.items()):
        rest = [[], [0.0] * 9, [99.0] * 50][number % 3]
        altered[index] = FullTrace("z", traces[index].confidences[:tokens] + rest, right=True)
    again = replay(scored(altered, 4, partial_window), point)
    assert again.traces == result.traces
    assert (again.votes, again.tokens, again.threshold) == (result.votes, result.tokens, result.threshold)


def test_everything_that_was_not_drawn_is_accounted_for() -> None:
    for seed, keep_share in itertools.product(range(4), (0.1, 0.5, 1.0)):
        traces = scored(random_traces(seed, 16), 4)
        point = OnlineSettings(num_traces=16, warmup_traces=4, wave_traces=3, keep_share=keep_share)
        result = replay(traces, replace(point, consensus_share=0.6))
        whole = sum(trace.num_tokens for trace in traces)
        assert result.tokens + result.tokens_saved_by_confidence + result.tokens_saved_by_consensus == whole


def test_what_cannot_be_replayed_is_refused() -> None:
    traces = scored(random_traces(0, 4), 4)
    with pytest.raises(ValueError, match="budget of 5 traces cannot be replayed with 4"):
        replay(traces, OnlineSettings(num_traces=5))
    with pytest.raises(ValueError, match="stopped cannot be replayed"):
        replay([replace(traces[0], was_stopped=True), *traces[1:]], OnlineSettings(num_traces=4))
    point = OnlineSettings(num_traces=4, warmup_traces=1, consensus_share=1.0)
    unmeasured = [FullTrace("a", [5.0]), FullTrace("b", [5.0])]
    bare = replace(scored(unmeasured, 4)[1], confidence={})
    with pytest.raises(ValueError, match="trace 1 has no confidence by the measure top_k"):
        replay([scored([FullTrace(None, [5.0])], 4)[0], bare], replace(point, num_traces=2, keep_share=0.5))


# ------------------------------------------------------------------------------------------------------------
# Curves


def both_measures(seed: int, num_traces: int) -> list[ScoredTrace]:
    by_tails, by_tokens = (
        scored(random_traces(seed, num_traces, name), 4, measure=name) for name in ("top_k", "sampled")
    )
    return [
        replace(trace, confidence={**trace.confidence, **other.confidence})
        for trace, other in zip(by_tails, by_tokens, strict=True)
    ]


PROBLEMS = [both_measures(seed, 12) for seed in range(5)]
POINT = OnlineSettings(num_traces=1, warmup_traces=4, wave_traces=2, consensus_share=0.8)


def pick(points: list[CurvePoint], **wanted: object) -> CurvePoint:
    [found] = [p for p in points if all(getattr(p, name) == value for name, value in wanted.items())]
    return found


def test_a_curve_has_every_method_at_every_budget() -> None:
    points = curve(PROBLEMS, [4, 8], [0.1, 0.9], POINT, seed=0, num_orders=2)
    methods = [("majority", None, None)]
    for measure in ("top_k", "sampled"):
        methods += [(score, measure, None) for score in SCORES]
        methods += [("online", measure, keep_share) for keep_share in (0.1, 0.9)]
    expected = [("single", 1, None, None)]
    expected += [(method, budget, measure, keep) for budget in (4, 8) for method, measure, keep in methods]
    assert [(p.method, p.budget, p.measure, p.keep_share) for p in points] == expected
    assert all(p.accuracy.shape == p.tokens.shape == (5,) for p in points)


def test_a_single_trace_is_the_mean_over_the_stored_ones() -> None:
    single = curve(PROBLEMS, [], [], POINT, seed=0)[0]
    for number, traces in enumerate(PROBLEMS):
        assert single.accuracy[number] == pytest.approx(literal.mean([float(bool(t.is_right)) for t in traces]))
        assert single.tokens[number] == pytest.approx(literal.mean([float(t.num_tokens) for t in traces]))


def test_the_whole_set_is_voted_on_in_one_way_whatever_the_orders() -> None:
    points = curve(PROBLEMS, [12], [], POINT, seed=3, num_orders=3)
    for number, traces in enumerate(PROBLEMS):
        assert pick(points, method="majority").accuracy[number] == pytest.approx(majority(traces).right)
        for score, measure in itertools.product(SCORES, ("top_k", "sampled")):
            expected = weighted_vote(traces, score, measure).right
            assert pick(points, method=score, measure=measure).accuracy[number] == pytest.approx(expected)


def test_many_orders_come_to_the_expectation_over_subsets() -> None:
    subsets = [majority(list(subset)) for subset in itertools.combinations(PROBLEMS[0], 3)]
    expected = literal.mean([vote.right or 0.0 for vote in subsets])
    found = pick(curve(PROBLEMS[:1], [3], [], POINT, seed=0, num_orders=1000), method="majority")
    standard_error = math.sqrt(0.25 / 1000)
    assert found.accuracy[0] == pytest.approx(expected, abs=4 * standard_error)


def test_all_methods_of_a_budget_see_the_same_traces() -> None:
    """So DeepConf's tokens and savings add up to the majority's cost, problem by problem."""
    points = curve(PROBLEMS, [8], [0.1, 0.9], POINT, seed=1, num_orders=4)
    cost = pick(points, method="majority").tokens
    online = [p for p in points if p.method == "online"]
    for point in online:
        assert point.tokens + point.saved_by_confidence + point.saved_by_consensus == pytest.approx(cost)
    assert any(point.saved_by_confidence.sum() > 0 for point in online)
    assert any(point.saved_by_consensus.sum() > 0 for point in online)


def test_where_nothing_is_stopped_and_all_is_drawn_online_is_the_weighted_vote() -> None:
    never = replace(POINT, consensus_share=1.0)
    undecided = [
        [t for t in traces if t.answer is not None] for traces in (both_measures(seed, 24) for seed in range(4))
    ]
    points = curve([traces[:12] for traces in undecided], [12], [1.0], never, seed=0, num_orders=2)
    online, vote = (pick(points, method=method, measure="top_k") for method in ("online", never.trace_score))
    drawn_to_the_end = online.saved_by_consensus == 0
    assert drawn_to_the_end.any()
    assert online.accuracy[drawn_to_the_end] == pytest.approx(vote.accuracy[drawn_to_the_end])
    assert online.saved_by_confidence.tolist() == [0, 0, 0, 0]


def test_a_seed_gives_the_same_curve_and_problems_do_not_depend_on_those_after_them() -> None:
    first, again = (curve(PROBLEMS, [4], [0.5], POINT, seed=7, num_orders=3) for _ in range(2))
    fewer = curve(PROBLEMS[:3], [4], [0.5], POINT, seed=7, num_orders=3)
    other = curve(PROBLEMS, [4], [0.5], POINT, seed=8, num_orders=3)
    for point, same, part in zip(first, again, fewer, strict=True):
        assert point.tokens.tolist() == same.tokens.tolist() and point.accuracy.tolist() == same.accuracy.tolist()
        assert point.tokens[:3].tolist() == part.tokens.tolist()
    assert pick(first, method="majority").tokens.tolist() != pick(other, method="majority").tokens.tolist()


def test_a_curve_without_verdicts_traces_or_measures_is_refused() -> None:
    with pytest.raises(ValueError, match="budget of 13"):
        curve(PROBLEMS, [13], [0.5], POINT, seed=0)
    unjudged = [[replace(PROBLEMS[0][0], is_right=None), *PROBLEMS[0][1:]]]
    with pytest.raises(ValueError, match="verdict"):
        curve(unjudged, [4], [0.5], POINT, seed=0)
    partly = [[replace(trace, answer="a", confidence={}) for trace in PROBLEMS[0]], PROBLEMS[1]]
    with pytest.raises(ValueError, match="no confidence by the measure"):
        curve(partly, [4], [0.5], POINT, seed=0)


def test_without_confidence_there_are_single_and_majority_only() -> None:
    bare = [[replace(trace, confidence={}) for trace in traces] for traces in PROBLEMS]
    assert [p.method for p in curve(bare, [4], [0.5], POINT, seed=0)] == ["single", "majority"]


# ------------------------------------------------------------------------------------------------------------
# AUC


def judged(index: int, right: bool | None, score: float, num_tokens: int = 5) -> ScoredTrace:
    summary = ConfidenceSummary(score, score, score, score, ())
    return ScoredTrace(index, "a" if right else None, num_tokens, False, {"top_k": summary}, right)


def test_auc_by_hand() -> None:
    mixed = [judged(0, True, 3.0), judged(1, True, 1.0), judged(2, False, 1.0), judged(3, False, 0.0)]
    sure_and_wrong = [judged(0, True, 1.0), judged(1, False, 2.0)]
    all_right = [judged(0, True, 9.0)]
    auc = auc_within([mixed, sure_and_wrong, all_right], "mean", "top_k")
    # 3 > 1, 3 > 0, 1 = 1 (half), 1 > 0: 3.5 of 4 pairs. Then 0 of 1.
    assert auc.by_problem == pytest.approx([3.5 / 4, 0.0, math.nan], nan_ok=True)
    assert auc.num_pairs.tolist() == [4, 1, 0]
    assert auc.mean == 3.5 / 8


def test_a_score_that_ranks_problems_only_has_no_auc_within_them() -> None:
    easy = [judged(index, index > 0, 9.0) for index in range(4)]
    hard = [judged(index, index == 0, 1.0) for index in range(4)]
    assert auc_within([easy, hard], "mean", "top_k").mean == 0.5


def test_auc_leaves_out_what_cannot_be_compared() -> None:
    known = [judged(0, True, 3.0), judged(1, False, 1.0)]
    others = [
        judged(2, None, 9.0),
        judged(3, False, math.nan, num_tokens=0),
        replace(judged(4, False, 9.0), was_stopped=True),
    ]
    assert auc_within([known + others], "tail", "top_k").mean == 1.0


def test_without_a_pair_there_is_no_auc() -> None:
    auc = auc_within([[judged(0, True, 1.0)], []], "mean", "top_k")
    assert math.isnan(auc.mean)


@pytest.mark.parametrize("score", SCORES)
def test_auc_equals_counting_pairs(score: str) -> None:
    auc = auc_within(PROBLEMS, score, "sampled")
    for number, traces in enumerate(PROBLEMS):
        value = {t.sample_index: getattr(t.confidence["sampled"], score) for t in traces}
        pairs = [
            (value[r.sample_index], value[w.sample_index])
            for r in traces
            for w in traces
            if r.is_right and not w.is_right
        ]
        assert auc.by_problem[number] == pytest.approx(literal.mean([(r > w) + (r == w) / 2 for r, w in pairs]))
