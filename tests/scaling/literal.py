"""The formulas of arXiv 2508.15260 as loops over lists: slow, and plainly right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from falcon_h1r.scaling.confidence import summarise
from falcon_h1r.scaling.online import OnlineSettings
from falcon_h1r.scaling.traces import ScoredTrace


@dataclass(frozen=True)
class FullTrace:
    """A trace with the confidence of every token, as it would go on if nobody stopped it."""

    answer: str | None
    confidences: list[float]
    right: bool = False


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def token_confidence(top_logprobs: list[float]) -> float:
    return -mean(top_logprobs)


def groups(confidences: list[float], window: int, partial_window: str) -> list[float | None]:
    """The group that ends at each token; None: there is none yet."""
    found: list[float | None] = []
    for token in range(len(confidences)):
        whole = token + 1 >= window
        inside = confidences[max(0, token + 1 - window) : token + 1]
        found.append(mean(inside) if whole or partial_window == "mean" else None)
    return found


def scores(confidences: list[float], window: int, partial_window: str) -> dict[str, float]:
    there = [group for group in groups(confidences, window, partial_window) if group is not None]
    there = there or [mean(confidences)]
    lowest = sorted(there)[: max(1, math.floor(len(there) / 10))]
    return {
        "mean": mean(confidences),
        "bottom_10": mean(lowest),
        "lowest_group": min(there),
        "tail": mean(confidences[-window:]),
    }


def tokens_until_stop(confidences: list[float], window: int, partial_window: str, threshold: float) -> int | None:
    for token, group in enumerate(groups(confidences, window, partial_window)):
        if group is not None and group < threshold:
            return token + 1
    return None


def votes(ballots: list[tuple[str, float]]) -> dict[str, float]:
    """Each answer's share of the weights."""
    total = math.fsum(weight for _, weight in ballots)
    answers = {answer for answer, _ in ballots}
    return {answer: math.fsum(weight for other, weight in ballots if other == answer) / total for answer in answers}


def percentile(values: list[float], percent: float) -> float:
    """Linear between the two neighbours."""
    ordered, rank = sorted(values), (len(values) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(values) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


@dataclass
class LiteralResult:
    threshold: float | None
    stops: dict[int, int]  # index -> tokens drawn
    tokens: int
    num_traces: int
    shares: dict[str, float]


def online(traces: list[FullTrace], settings: OnlineSettings, window: int, partial_window: str) -> LiteralResult:
    """The online algorithm, token by token, by the vote of `trace_score` without a `vote_share`."""
    result = LiteralResult(None, {}, 0, 0, {})
    ballots: list[tuple[str, float]] = []
    lowest: list[float] = []
    wave_end = min(settings.warmup_traces, settings.num_traces)
    for index, trace in enumerate(traces[: settings.num_traces]):
        stop = None
        if index >= settings.warmup_traces and result.threshold is not None:
            stop = tokens_until_stop(trace.confidences, window, partial_window, result.threshold)
        result.num_traces += 1
        result.tokens += len(trace.confidences) if stop is None else stop
        trace_scores = scores(trace.confidences, window, partial_window)
        lowest.append(trace_scores["lowest_group"])
        if stop is not None:
            result.stops[index] = stop
        elif trace.answer is not None:
            score = trace_scores[settings.trace_score]
            ballots.append((trace.answer, math.exp(score) if settings.measure == "sampled" else score))
        if index + 1 == wave_end:
            if wave_end == settings.warmup_traces < settings.num_traces and settings.keep_share < 1:
                result.threshold = percentile(lowest, 100 * (1 - settings.keep_share))
            result.shares = votes(ballots)
            if result.shares and max(result.shares.values()) >= settings.consensus_share:
                break
            wave_end = min(wave_end + settings.wave_traces, settings.num_traces)
    return result


def scored(
    traces: list[FullTrace], window: int, partial_window: str = "mean", measure: str = "top_k"
) -> list[ScoredTrace]:
    """The traces as an evaluation stores them, each drawn to its end."""
    return [
        ScoredTrace(
            sample_index=index,
            answer=trace.answer,
            num_tokens=len(trace.confidences),
            was_stopped=False,
            confidence={measure: summarise(np.array(trace.confidences, dtype=float), window, partial_window)},
            is_right=trace.right,
        )
        for index, trace in enumerate(traces)
    ]
