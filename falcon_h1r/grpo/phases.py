"""What ranks add up at the end of a step: seconds by phase, tokens, and transcripts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from falcon_h1r.types import RolloutGroup


class PhaseClock:
    """A rank's seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens meanwhile belongs to this phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @property
    def all_seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._started


def phase_metrics(by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every phase the seconds of the rank that took longest, and how much longer than the shortest that was."""
    metrics = {}
    for name in by_rank[0]:
        seconds = [phases[name] for phases in by_rank]
        metrics[f"{name}_seconds"] = max(seconds)
        metrics[f"{name}_skew_seconds"] = max(seconds) - min(seconds)
    return metrics


def summed(by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums over ranks of what each has, by name."""
    return {name: sum(own[name] for own in by_rank) for name in by_rank[0]}


def version_lags(groups: Sequence[RolloutGroup], policy_version: int) -> dict[str, float]:
    """How far behind the policy that learns from them the policies were that drew these groups' tokens.

    Returns:
        Sums over response tokens, `lagging` (tokens times versions) and `lag_tokens`, to be added over ranks.
    """
    lagging = tokens = 0
    for group in groups:
        for rollout in group.rollouts:
            starts = [(0, rollout.policy_version), *rollout.later_versions]
            ends = [start for start, _ in starts[1:]] + [len(rollout.response_ids)]
            lagging += sum(
                (end - start) * (policy_version - version) for (start, version), end in zip(starts, ends, strict=True)
            )
            tokens += len(rollout.response_ids)
    return {"lagging": float(lagging), "lag_tokens": float(tokens)}


def oldest_lag(groups: Sequence[RolloutGroup], policy_version: int) -> int:
    """Of the oldest token that is learnt from."""
    return max((policy_version - rollout.policy_version for group in groups for rollout in group.rollouts), default=0)
