"""The online algorithm on traces that were drawn to their ends and stored: what it would have done, and saved, exactly.

A stop depends on nothing but the records of the group confidence up to it (`ConfidenceSummary.minima`), so a stored
trace tells, for any threshold, after how many tokens it would have been stopped. One set of stored traces therefore
gives every budget and keep share: each is replayed on several random orders of the traces.

Shapes: P problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.scaling.online import OnlineResult, OnlineSettings, OnlineVote
from falcon_h1r.scaling.traces import MEASURES, SCORES, ScoredTrace
from falcon_h1r.scaling.voting import MAJORITY, majority, score_of, weighted_vote

FloatArray = NDArray[np.float64]


def replay(traces: Sequence[ScoredTrace], settings: OnlineSettings) -> OnlineResult:
    """What the online algorithm makes of one problem's traces, the first of them drawn first; savings are exact.

    Raises:
        ValueError: where there are fewer than the budget, one was stopped when it was drawn, or not measured.
    """
    if len(traces) < settings.num_traces:
        raise ValueError(f"a budget of {settings.num_traces} traces cannot be replayed with {len(traces)}")
    budget = _numbered(traces[: settings.num_traces])
    if any(trace.was_stopped for trace in budget):
        raise ValueError("a trace that was stopped cannot be replayed: nobody knows how it would have gone on")
    vote = OnlineVote(settings)
    while wave := vote.next_wave():
        threshold = vote.stop_below  # the last trace of the warm-up sets the next wave's
        for index in wave:
            vote.ended(stopped_below(budget[index], settings.measure, threshold))
    result = vote.result()
    whole = sum(trace.num_tokens for trace in budget[: result.num_traces])
    undrawn = sum(trace.num_tokens for trace in budget[result.num_traces :])
    return replace(result, tokens_saved_by_confidence=whole - result.tokens, tokens_saved_by_consensus=undrawn)


def stopped_below(trace: ScoredTrace, measure: str, threshold: float | None) -> ScoredTrace:
    """The trace as it would have been drawn under a threshold. A stopped one has said nothing yet.

    Raises:
        ValueError: where there is a threshold, and the trace was not measured.
    """
    if threshold is None:
        return trace
    if measure not in trace.confidence:
        raise ValueError(f"trace {trace.sample_index} has no confidence by the measure {measure}")
    tokens = trace.confidence[measure].tokens_until_below(threshold)
    if tokens is None:
        return trace
    return replace(trace, answer=None, num_tokens=tokens, was_stopped=True, confidence={}, is_right=None)


def _numbered(traces: Sequence[ScoredTrace]) -> list[ScoredTrace]:
    """The traces with their places as indices."""
    return [
        trace if trace.sample_index == index else replace(trace, sample_index=index)
        for index, trace in enumerate(traces)
    ]


# ------------------------------------------------------------------------------------------------------------
# Curves


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One way to answer at one budget: each problem's expected accuracy, and the tokens it took."""

    method: str  # single, majority, a trace score, or online
    budget: int  # traces a problem, at most
    measure: str | None  # None where no confidence is looked at
    keep_share: float | None  # of online alone
    accuracy: FloatArray  # (P)
    tokens: FloatArray  # (P) drawn
    saved_by_confidence: FloatArray  # (P) tokens
    saved_by_consensus: FloatArray  # (P) tokens


def curve(
    problems: Sequence[Sequence[ScoredTrace]],
    budgets: Sequence[int],
    keep_shares: Sequence[float],
    settings: OnlineSettings,  # its budget, keep share and measure are not looked at
    seed: int,
    num_orders: int = 16,
) -> list[CurvePoint]:
    """Accuracy against tokens of a single trace, and at each budget of the majority, weighted votes and DeepConf.

    Each value of a problem is its mean over `num_orders` random orders of its stored traces, the same orders for
    every method, so that differences are paired. They are orders of one set: how the set itself was drawn, an
    interval over problems has to cover.

    Raises:
        ValueError: where a problem has fewer traces than a budget, or one whose verdict is not known, or that was not
            measured as the others were.
    """
    if any(trace.is_right is None for traces in problems for trace in traces):
        raise ValueError("a curve needs the verdict of every trace")
    measures = [name for name in MEASURES if any(name in trace.confidence for traces in problems for trace in traces)]
    orders = [_orders(traces, (seed, number), num_orders) for number, traces in enumerate(problems)]
    points = [_single(problems)]
    for budget in budgets:
        drawn = [[order[:budget] for order in of_problem] for of_problem in orders]
        if any(len(order) < budget for of_problem in drawn for order in of_problem):
            raise ValueError(f"a budget of {budget} traces needs as many stored of every problem")
        points.append(_voted(drawn, MAJORITY, budget, None, settings.vote_share))
        for measure in measures:
            points += [_voted(drawn, score, budget, measure, settings.vote_share) for score in SCORES]
            for keep_share in keep_shares:
                point = replace(settings, num_traces=budget, measure=measure, keep_share=keep_share)
                points.append(_replayed(drawn, point))
    return points


def _orders(traces: Sequence[ScoredTrace], seed: tuple[int, int], num_orders: int) -> list[list[ScoredTrace]]:
    generator = np.random.default_rng(seed)
    return [_numbered([traces[index] for index in generator.permutation(len(traces))]) for _ in range(num_orders)]


def _single(problems: Sequence[Sequence[ScoredTrace]]) -> CurvePoint:
    """One trace, in expectation over those that are stored."""
    accuracy = np.array([np.mean([bool(trace.is_right) for trace in traces]) for traces in problems])
    tokens = np.array([np.mean([trace.num_tokens for trace in traces]) for traces in problems])
    nothing = np.zeros(len(problems))
    return CurvePoint("single", 1, None, None, accuracy, tokens, nothing, nothing)


def _voted(
    drawn: Sequence[Sequence[Sequence[ScoredTrace]]], method: str, budget: int, measure: str | None, vote_share: float
) -> CurvePoint:
    """A vote of traces that all ran to their ends. drawn: P problems x orders x budget."""
    right, tokens = np.zeros(len(drawn)), np.zeros(len(drawn))
    for number, orders in enumerate(drawn):
        for traces in orders:
            vote = majority(traces) if measure is None else weighted_vote(traces, method, measure, vote_share)
            right[number] += vote.right or 0.0
            tokens[number] += sum(trace.num_tokens for trace in traces)
    nothing = np.zeros(len(drawn))
    return CurvePoint(method, budget, measure, None, right / _each(drawn), tokens / _each(drawn), nothing, nothing)


def _replayed(drawn: Sequence[Sequence[Sequence[ScoredTrace]]], settings: OnlineSettings) -> CurvePoint:
    """DeepConf online. drawn: P problems x orders x budget."""
    sums = np.zeros((4, len(drawn)))
    for number, orders in enumerate(drawn):
        for traces in orders:
            result = replay(traces, settings)
            sums[:, number] += (
                result.votes[settings.trace_score].right or 0.0,
                result.tokens,
                result.tokens_saved_by_confidence,
                result.tokens_saved_by_consensus,
            )
    return CurvePoint("online", settings.num_traces, settings.measure, settings.keep_share, *(sums / _each(drawn)))


def _each(drawn: Sequence[Sequence[Sequence[ScoredTrace]]]) -> FloatArray:  # (P)
    return np.array([len(orders) for orders in drawn], dtype=np.float64)


# ------------------------------------------------------------------------------------------------------------
# Does confidence tell right from wrong?


@dataclass(frozen=True, slots=True)
class WithinAuc:
    """The chance that a right trace is scored above a wrong one of the same problem; 0.5 is no better than chance."""

    by_problem: FloatArray  # (P), NaN where a problem has no right trace or no wrong one
    num_pairs: NDArray[np.int64]  # (P)
    mean: float  # over the problems that have both; NaN where none has


def auc_within(problems: Sequence[Sequence[ScoredTrace]], score: str, measure: str) -> WithinAuc:
    """AUC of a trace score for right against wrong *within* a problem, ties half: what a stop lives on.

    Pooled over problems the AUC is flattering: a score that only tells easy problems from hard ones does well in
    it, and prunes nothing. Traces without an answer are wrong ones; those without a token or a verdict, or that
    were stopped, are left out.

    Raises:
        ValueError: where a trace has no such score.
    """
    aucs, num_pairs = np.full(len(problems), np.nan), np.zeros(len(problems), dtype=np.int64)
    for number, traces in enumerate(problems):
        known = [t for t in traces if t.is_right is not None and not t.was_stopped and t.num_tokens > 0]
        right = np.array([score_of(trace, score, measure) for trace in known if trace.is_right])[:, None]
        wrong = np.array([score_of(trace, score, measure) for trace in known if not trace.is_right])[None, :]
        num_pairs[number] = right.size * wrong.size
        if num_pairs[number]:
            aucs[number] = np.mean((right > wrong) + 0.5 * (right == wrong))
    both = num_pairs > 0
    if not both.any():
        return WithinAuc(aucs, num_pairs, np.nan)
    return WithinAuc(aucs, num_pairs, float(aucs[both].mean()))
