"""Votes against literal sums, by hand, in any order, with ties and with nobody voting."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.scaling.traces import SCORES, ConfidenceSummary, ScoredTrace
from falcon_h1r.scaling.voting import VOTES, majority, vote_weight, votes_side_by_side, weighted_vote
from tests.scaling import literal

Ballot = tuple[str | None, float]


def traces_of(*ballots: Ballot, measure: str = "top_k", gold: str = "a") -> list[ScoredTrace]:
    """One trace a ballot, with the same value for every score."""
    return [
        ScoredTrace(
            sample_index=index,
            answer=answer,
            num_tokens=10,
            was_stopped=False,
            confidence={measure: ConfidenceSummary(score, score, score, score, ((0, score),))},
            is_right=answer == gold,
        )
        for index, (answer, score) in enumerate(ballots)
    ]


def stopped(trace: ScoredTrace) -> ScoredTrace:
    return ScoredTrace(trace.sample_index, trace.answer, trace.num_tokens, True, trace.confidence, trace.is_right)


def test_confidence_can_outvote_a_majority() -> None:
    traces = traces_of(("a", 9.0), ("b", 4.0), ("b", 3.0))
    assert (majority(traces).winner, majority(traces).share) == ("b", 2 / 3)
    vote = weighted_vote(traces, "mean", "top_k")
    assert (vote.winner, vote.share, vote.shares, vote.num_votes, vote.right) == ("a", 9 / 16, vote.shares, 3, 1.0)
    assert list(vote.shares.items()) == [("a", 9 / 16), ("b", 7 / 16)]


def test_each_weighted_vote_counts_its_own_score() -> None:
    """By its mean the first trace is the surer one, by each other score the second."""
    sure = {"top_k": ConfidenceSummary(mean=5.0, bottom_10=1.0, lowest_group=1.0, tail=1.0, minima=())}
    unsure = {"top_k": ConfidenceSummary(mean=4.0, bottom_10=2.0, lowest_group=3.0, tail=4.0, minima=())}
    traces = [ScoredTrace(0, "a", 5, False, sure, True), ScoredTrace(1, "b", 5, False, unsure, False)]
    votes = votes_side_by_side(traces, "top_k")
    assert tuple(votes) == VOTES
    assert {name: vote.shares["b"] for name, vote in votes.items()} == pytest.approx(
        {"majority": 1 / 2, "mean": 4 / 9, "bottom_10": 2 / 3, "lowest_group": 3 / 4, "tail": 4 / 5}, abs=1e-12
    )
    assert {name: vote.right for name, vote in votes.items()} == {
        "majority": 0.5,
        "mean": 1.0,
        "bottom_10": 0.0,
        "lowest_group": 0.0,
        "tail": 0.0,
    }


@pytest.mark.parametrize("measure", ["top_k", "sampled"])
@settings(max_examples=40)
@given(ballots=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.125, 16)), min_size=1, max_size=20))
def test_shares_equal_the_literal_ones(measure: str, ballots: list[tuple[str, float]]) -> None:
    scores = [-score if measure == "sampled" else score for _, score in ballots]
    weights = [math.exp(score) if measure == "sampled" else score for score in scores]
    answers = [answer for answer, _ in ballots]
    vote = weighted_vote(traces_of(*zip(answers, scores, strict=True), measure=measure), "tail", measure)
    assert vote.shares == pytest.approx(literal.votes(list(zip(answers, weights, strict=True))), abs=1e-9)
    assert vote.share == max(vote.shares.values()) or vote.share == pytest.approx(max(vote.shares.values()), abs=1e-11)


def test_a_surer_trace_weighs_more_by_either_measure_and_never_less_than_nothing() -> None:
    for measure, scores in (("top_k", (0.0, 3.0, 17.5)), ("sampled", (-30.0, -0.5, 0.0))):
        weights = [vote_weight(score, measure) for score in scores]
        assert weights == sorted(weights) and weights[0] >= 0
    assert vote_weight(math.log(0.25), "sampled") == pytest.approx(0.25, abs=1e-12)


@settings(max_examples=40)
@given(
    ballots=st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.floats(0.1, 9)), min_size=1, max_size=12),
    vote_share=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_order_of_the_traces_changes_no_bit(ballots: list[Ballot], vote_share: float, seed: int) -> None:
    traces = traces_of(*ballots)
    shuffled = random.Random(seed).sample(traces, len(traces))
    assert votes_side_by_side(shuffled, "top_k", vote_share) == votes_side_by_side(traces, "top_k", vote_share)


def test_sums_that_floating_point_would_order_are_equal_in_every_order() -> None:
    traces = traces_of(("a", 1e16), ("a", 1.0), ("a", 1.0), ("b", 1e16))
    assert {weighted_vote(order, "mean", "top_k").shares["a"] for order in itertools.permutations(traces)} == {
        (1e16 + 2) / (2e16 + 2)
    }


# ------------------------------------------------------------------------------------------------------------
# Who votes


def test_stopped_traces_and_traces_without_an_answer_do_not_vote() -> None:
    first, *rest = traces_of(("a", 9.0), ("b", 1.0), (None, 99.0))
    for vote in votes_side_by_side([stopped(first), *rest], "top_k").values():
        assert (vote.winner, vote.share, vote.num_votes, vote.right) == ("b", 1.0, 1, 0.0)


def test_a_vote_that_nobody_casts_is_lost() -> None:
    for traces in ([], traces_of((None, 3.0)), [stopped(trace) for trace in traces_of(("a", 3.0))]):
        for vote in votes_side_by_side(traces, "top_k").values():
            assert (vote.winner, vote.share, vote.shares, vote.num_votes, vote.right) == (None, 0.0, {}, 0, 0.0)


def test_only_the_best_share_votes() -> None:
    traces = traces_of(("a", 9.0), ("b", 8.0), ("b", 7.0), ("b", 6.0), (None, 99.0))
    assert weighted_vote(traces, "mean", "top_k", 0.25).shares == {"a": 1.0}
    assert weighted_vote(traces, "mean", "top_k", 0.26).shares == {"a": 9 / 17, "b": 8 / 17}  # rounded up
    assert weighted_vote(traces, "mean", "top_k", 0.0).shares == {"a": 1.0}  # one at least


def test_a_share_that_floating_point_puts_above_a_whole_number_is_that_number() -> None:
    traces = traces_of(*(("a", float(25 - index)) for index in range(25)))
    assert 0.28 * 25 > 7
    assert weighted_vote(traces, "mean", "top_k", 0.28).num_votes == 7


def test_whoever_is_as_good_as_the_last_of_the_best_votes_too() -> None:
    traces = traces_of(("a", 9.0), ("b", 5.0), ("c", 5.0), ("d", 4.0))
    assert set(weighted_vote(traces, "mean", "top_k", 0.5).shares) == {"a", "b", "c"}


# ------------------------------------------------------------------------------------------------------------
# Ties


def test_a_tie_counts_as_its_expectation_and_has_one_winner() -> None:
    traces = traces_of(("b", 2.0), ("a", 1.0), ("a", 1.0), ("c", 2.0), gold="a")
    vote = weighted_vote(traces, "mean", "top_k")
    assert (vote.winner, vote.share, vote.right) == ("a", 1 / 3, pytest.approx(1 / 3, abs=1e-12))
    assert majority(traces).right == 1.0


def test_sums_that_differ_by_rounding_are_tied() -> None:
    assert 0.1 + 0.2 != 0.3
    vote = weighted_vote(traces_of(("b", 0.1), ("b", 0.2), ("a", 0.3)), "mean", "top_k")
    assert (vote.winner, vote.right) == ("a", 0.5)
    assert list(vote.shares) == ["a", "b"] or vote.shares["b"] == pytest.approx(vote.shares["a"], abs=1e-12)


def test_weights_of_nothing_tie_every_answer() -> None:
    vote = weighted_vote(traces_of(("b", 0.0), ("a", 0.0), ("b", 0.0)), "mean", "top_k")
    assert (vote.winner, vote.share, vote.right, vote.num_votes) == ("a", 0.5, 0.5, 3)


def test_verdicts_that_disagree_on_one_answer_are_averaged() -> None:
    right, wrong = traces_of(("a", 2.0), ("a", 2.0))
    wrong = ScoredTrace(1, "a", 10, False, wrong.confidence, is_right=False)
    assert majority([right, wrong]).right == 0.5


def test_an_unknown_verdict_of_a_leader_leaves_the_vote_unjudged() -> None:
    right, other = traces_of(("a", 2.0), ("b", 1.0))
    unknown = ScoredTrace(1, "b", 10, False, other.confidence, is_right=None)
    assert weighted_vote([right, unknown], "mean", "top_k").right == 1.0
    assert majority([right, unknown]).right is None


# ------------------------------------------------------------------------------------------------------------
# Refusals


def test_a_voter_without_the_score_is_refused() -> None:
    traces = traces_of(("a", 1.0))
    with pytest.raises(ValueError, match="no confidence by the measure sampled"):
        weighted_vote(traces, "mean", "sampled")
    with pytest.raises(ValueError, match="trace score median"):
        weighted_vote(traces, "median", "top_k")
    with pytest.raises(ValueError, match="no tokens"):
        weighted_vote(traces_of(("a", math.nan)), SCORES[0], "top_k")
