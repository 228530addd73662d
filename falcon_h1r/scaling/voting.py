"""What a problem's traces agree on, each counted once or by its confidence (DeepConf, arXiv 2508.15260).

    V(a) = sum over traces that answer a of w(trace),   majority: w = 1,   weighted: w = the trace's score

Answers are the same where the verifier's canonical keys are. A trace that was stopped, or that gave no answer, does
not vote. Nothing here depends on the order of the traces: sums are exact before they are rounded (`math.fsum`), and
of several leaders the winner is the first by its key.

A score by the measure `top_k` is positive and is the weight as it is. One by `sampled` is a mean logprob, 0 at best,
and no weight: a vote would count for less the surer it was in sum. Its exponential is, the geometric mean of the
tokens' probabilities, in (0, 1] and in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from falcon_h1r.scaling.traces import SCORES, ScoredTrace

MAJORITY = "majority"
VOTES = (MAJORITY, *SCORES)
TIE = 1e-12  # relative to the leader's votes: what is closer differs by rounding, not by evidence


@dataclass(frozen=True, slots=True)
class Vote:
    """What became of one vote. `right` is an expectation: of tied leaders each is as likely to be taken."""

    winner: str | None  # None: nobody voted
    share: float  # of all votes, that fell to the winner; 0 where nobody voted
    shares: Mapping[str, float]  # of every answer, most votes first; they sum to 1
    num_votes: int
    right: float | None  # the mean over the leaders; 0 where nobody voted; None where it is not known


def majority(traces: Sequence[ScoredTrace]) -> Vote:
    """Every trace with an answer has one vote."""
    voters = _voters(traces)
    return _count(voters, [1.0] * len(voters))


def weighted_vote(traces: Sequence[ScoredTrace], score: str, measure: str, vote_share: float = 1.0) -> Vote:
    """Every trace that is among the best by its score votes with that score.

    Of n traces that could vote the best ceil(vote_share * n), and at least one, do; traces that are as good as the
    last of them do too, however many, so that the cut never falls to an order.

    Raises:
        ValueError: where a trace that could vote has no such score.
    """
    voters = _voters(traces)
    scores = [score_of(trace, score, measure) for trace in voters]
    if voters and vote_share < 1.0:
        num_best = max(1, math.ceil(vote_share * len(voters) - 1e-9))  # 0.28 * 25 is above 7 in floating point
        cut = sorted(scores, reverse=True)[num_best - 1]
        voters = [trace for trace, value in zip(voters, scores, strict=True) if value >= cut]
        scores = [value for value in scores if value >= cut]
    return _count(voters, [vote_weight(value, measure) for value in scores])


def votes_side_by_side(traces: Sequence[ScoredTrace], measure: str, vote_share: float = 1.0) -> dict[str, Vote]:
    """The majority of all traces, and each weighted vote of the best `vote_share` by its own score.

    Raises:
        ValueError: where a trace that could vote has no confidence by this measure.
    """
    weighted = {score: weighted_vote(traces, score, measure, vote_share) for score in SCORES}
    return {MAJORITY: majority(traces), **weighted}


def score_of(trace: ScoredTrace, score: str, measure: str) -> float:
    """One of SCORES, of one trace; higher is surer.

    Raises:
        ValueError: where it was not measured, or the trace has no tokens.
    """
    if score not in SCORES:
        raise ValueError(f"trace score {score}: has to be one of {', '.join(SCORES)}")
    if measure not in trace.confidence:
        raise ValueError(f"trace {trace.sample_index} has no confidence by the measure {measure}")
    value: float = getattr(trace.confidence[measure], score)
    if math.isnan(value):
        raise ValueError(f"trace {trace.sample_index} has no tokens, so no {score} to vote with")
    return value


def vote_weight(score: float, measure: str) -> float:
    """What a score counts for in a vote; never negative."""
    return math.exp(score) if measure == "sampled" else score


def _voters(traces: Sequence[ScoredTrace]) -> list[ScoredTrace]:
    return [trace for trace in traces if trace.answer is not None and not trace.was_stopped]


def _count(voters: Sequence[ScoredTrace], weights: Sequence[float]) -> Vote:
    ballots: dict[str, list[float]] = {}
    for trace, weight in zip(voters, weights, strict=True):
        if trace.answer is not None:
            ballots.setdefault(trace.answer, []).append(weight)
    if not ballots:
        return Vote(None, 0.0, {}, 0, 0.0)
    totals = {answer: math.fsum(ballot) for answer, ballot in ballots.items()}
    total, most = math.fsum(totals.values()), max(totals.values())
    leaders = {answer for answer, votes in totals.items() if votes >= most * (1 - TIE)}
    ranked = sorted(totals, key=lambda answer: (answer not in leaders, -totals[answer], answer))
    winner = min(leaders)
    # Where every weight is 0 (a model that is certain of each token, at k = 1) all answers are tied.
    shares = {answer: totals[answer] / total if total else 1 / len(totals) for answer in ranked}
    return Vote(winner, shares[winner], shares, len(voters), _expected_right(voters, leaders))


def _expected_right(voters: Sequence[ScoredTrace], leaders: set[str]) -> float | None:
    """The mean over the leaders of the share of their traces that are right (all or none, where verdicts agree)."""
    verdicts: dict[str, list[bool]] = {answer: [] for answer in leaders}
    for trace in voters:
        if trace.answer in verdicts:
            if trace.is_right is None:
                return None
            verdicts[trace.answer].append(trace.is_right)
    return math.fsum(sum(ballot) / len(ballot) for ballot in verdicts.values()) / len(verdicts)
