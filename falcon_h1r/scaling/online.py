"""DeepConf while the traces of one problem are drawn (arXiv 2508.15260): a state machine, no engine.

    1. Draw the warm-up traces to their ends.
    2. s = the percentile 100 * (1 - keep_share) of their lowest groups.
    3. Draw the next wave; end each of its traces at the first token whose group is below s.
    4. Stop where the leading answer holds `consensus_share` of the votes by `trace_score`, or the budget is spent;
       else go on at 3.
    5. Vote.

Whatever draws the traces asks for the next wave, draws it, and tells of each trace as it ends:

    vote = OnlineVote(settings)
    while wave := vote.next_wave():
        for trace in draw(wave, vote.stop):
            vote.ended(trace)
    vote.result()

The paper checks for consensus after every trace, its code draws the whole budget at once. Waves are both at their
ends, `wave_traces` 1 and the budget. Decisions fall between waves only, in the order of the indices, so the result
does not depend on who ended first: the same traces give the same result in any batch, on any number of ranks.

Where we differ:
- The same text comes out of two batches with confidences that differ by float32's rounding, and the threshold is often
  a trace's own lowest group. So a trace is stopped below s less `stop_slack`, which is wider than that rounding: a bare
  comparison would toss a coin for every later trace of that text.
- The code lets a warm-up trace vote only where its own lowest group reaches s. Here every warm-up trace votes, for its
  tokens are paid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.scaling.engine import Stop
from falcon_h1r.scaling.traces import MEASURES, SCORES, ConfidenceSummary, ScoredTrace
from falcon_h1r.scaling.voting import TIE, Vote, votes_side_by_side, weighted_vote


@dataclass(frozen=True, slots=True)
class OnlineSettings:
    """What the algorithm looks at; see ScalingConfig."""

    num_traces: int  # the budget
    warmup_traces: int = 16
    wave_traces: int = 16
    keep_share: float = 0.1
    measure: str = "top_k"
    trace_score: str = "lowest_group"
    vote_share: float = 1.0
    consensus_share: float = 0.95
    stop_slack: float = 0.0  # how far below the threshold a group has to be

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: where a budget, a warm-up or a wave has no trace, a share is none (10 for 10%, say), or a
                measure or a score is unknown.
        """
        for name in ("num_traces", "warmup_traces", "wave_traces"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: has to be at least 1")
        for name in ("keep_share", "vote_share", "consensus_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a share lies between 0 and 1")
        if not self.stop_slack >= 0:
            raise ValueError(f"stop_slack={self.stop_slack}: has to be at least 0")
        for name, known in (("measure", MEASURES), ("trace_score", SCORES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)}: has to be one of {', '.join(known)}")

    @classmethod
    def of(cls, config: ScalingConfig, num_traces: int | None = None) -> OnlineSettings:
        """As configured, with a budget of its own where one is given.

        Raises:
            ValueError: where a setting cannot be.
        """
        return cls(
            num_traces=config.num_traces if num_traces is None else num_traces,
            warmup_traces=config.warmup_traces,
            wave_traces=config.wave_traces,
            keep_share=config.keep_share,
            measure=config.measure,
            trace_score=config.trace_score,
            vote_share=config.vote_share,
            consensus_share=config.consensus_share,
            stop_slack=config.stop_slack,
        )


@dataclass(frozen=True, slots=True)
class OnlineResult:
    """One problem. The savings are estimates, by the mean length of the warm-up traces; `replay` knows them exactly.

    tokens + both savings is what the whole budget would have cost with every trace run to its end.
    """

    num_traces: int  # drawn
    num_stopped: int
    tokens: int  # drawn, those of stopped traces included
    threshold: float | None
    consensus: float  # the leader's share of all votes by `trace_score`, at the end
    ended_by: str  # consensus, where it left traces undrawn; else budget
    votes: Mapping[str, Vote]  # majority and each score's
    tokens_saved_by_confidence: float  # what stopped traces did not draw
    tokens_saved_by_consensus: float  # traces that were never drawn
    traces: tuple[ScoredTrace, ...]  # in the order of their indices


def stop_threshold(lowest_groups: list[float], keep_share: float) -> float | None:
    """The linear percentile 100 * (1 - keep_share) of the warm-up's lowest groups; None: nothing is to be stopped.

    keep_share 1 keeps everything. (The percentile, the least of the warm-up's, would stop what is below it.) At 0 it
    is the best of them. Traces without a token, NaN, are left out.
    """
    known = [lowest for lowest in lowest_groups if not math.isnan(lowest)]
    if not known or keep_share >= 1.0:
        return None
    percent = round(100 * (1 - keep_share), 9)  # 30, not 30.000000000000004, which stops what equals the threshold
    return float(np.percentile(known, percent))


class OnlineVote:
    """What to draw next for one problem, and what came of it."""

    def __init__(self, settings: OnlineSettings) -> None:
        self.settings = settings
        self.threshold: float | None = None  # of the wave that is to be drawn; None: its traces run to their ends
        self._wave = range(min(settings.warmup_traces, settings.num_traces))
        self._traces: dict[int, ScoredTrace] = {}

    @property
    def stop(self) -> Stop | None:
        """Where traces of this wave end; None: they run to their ends."""
        if self.threshold is None:
            return None
        return Stop(self.threshold, self.settings.measure, self.settings.stop_slack)

    @property
    def stop_below(self) -> float | None:
        """The group confidence below which that is."""
        return None if self.stop is None else self.stop.below

    @property
    def finished(self) -> bool:
        return not self.next_wave()

    def next_wave(self) -> list[int]:
        """The indices that are to be drawn now: those of this wave that have not ended; empty at the end of all."""
        return [index for index in self._wave if index not in self._traces]

    def ended(self, trace: ScoredTrace) -> None:
        """Take in a trace of this wave. One that got below `stop_below` counts as stopped, at its last token too.

        (An engine may see the stop token and the fall in the same step, or hear of both in one message.)

        Raises:
            ValueError: where the trace is none that the wave waits for, was not measured, or was stopped without
                a threshold.
        """
        if trace.sample_index not in self._wave or trace.sample_index in self._traces:
            raise ValueError(f"trace {trace.sample_index} is none of those to be drawn now: {self.next_wave()}")
        if self.threshold is None and trace.was_stopped:
            raise ValueError(f"trace {trace.sample_index} was stopped where there is no threshold")
        if self.stop_below is not None and not trace.was_stopped and self._falls_below(trace, self.stop_below):
            trace = replace(trace, was_stopped=True)
        self._traces[trace.sample_index] = trace
        if len(self._traces) == self._wave.stop:
            self._begin_wave()

    def result(self) -> OnlineResult:
        """
        Raises:
            ValueError: where traces are still to be drawn.
        """
        if not self.finished:
            raise ValueError(f"traces {self.next_wave()} have not ended")
        traces = self._in_order()
        stopped = [trace for trace in traces if trace.was_stopped]
        warmup = traces[: self.settings.warmup_traces]
        mean_tokens = sum(trace.num_tokens for trace in warmup) / len(warmup)
        num_undrawn = self.settings.num_traces - len(traces)
        return OnlineResult(
            num_traces=len(traces),
            num_stopped=len(stopped),
            tokens=sum(trace.num_tokens for trace in traces),
            threshold=self.threshold,
            consensus=self._agreement().share,
            ended_by="consensus" if num_undrawn else "budget",
            votes=votes_side_by_side(traces, self.settings.measure, self.settings.vote_share),
            tokens_saved_by_confidence=len(stopped) * mean_tokens - sum(trace.num_tokens for trace in stopped),
            tokens_saved_by_consensus=num_undrawn * mean_tokens,
            traces=traces,
        )

    def _begin_wave(self) -> None:
        settings, drawn = self.settings, len(self._traces)
        if drawn == settings.num_traces:
            return
        if drawn == settings.warmup_traces:
            lowest = [self._confidence(trace).lowest_group for trace in self._in_order()]
            self.threshold = stop_threshold(lowest, settings.keep_share)
        vote = self._agreement()
        if vote.winner is not None and vote.share >= settings.consensus_share * (
            1 - TIE
        ):  # 19 votes of 20 are 95%, of any weight
            return
        self._wave = range(drawn, min(drawn + settings.wave_traces, settings.num_traces))

    def _agreement(self) -> Vote:
        """All votes, whatever `vote_share` says: that the best few agree, or the one that is best, is no consensus."""
        return weighted_vote(self._in_order(), self.settings.trace_score, self.settings.measure)

    def _falls_below(self, trace: ScoredTrace, threshold: float) -> bool:
        return self._confidence(trace).tokens_until_below(threshold) is not None

    def _in_order(self) -> tuple[ScoredTrace, ...]:
        return tuple(self._traces[index] for index in sorted(self._traces))

    def _confidence(self, trace: ScoredTrace) -> ConfidenceSummary:
        if self.settings.measure not in trace.confidence:
            raise ValueError(f"trace {trace.sample_index} has no confidence by the measure {self.settings.measure}")
        return trace.confidence[self.settings.measure]
