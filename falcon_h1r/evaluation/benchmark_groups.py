"""Averages over groups of benchmarks, each benchmark counting once: ours, beside the published ones, never mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from falcon_h1r.config_evaluate import BenchmarkGroupConfig


@dataclass(frozen=True, slots=True)
class GroupAverage:
    """One group, as far as it was run."""

    name: str
    average: float | None  # of the benchmarks that were run, as shares; None: none was
    num_run: int
    missing: tuple[str, ...]  # benchmarks that were not run
    reference_score: float | None  # the published average over the whole group, in percent

    @property
    def is_complete(self) -> bool:
        """Only then may ours stand beside the published average."""
        return not self.missing


def group_averages(groups: Mapping[str, BenchmarkGroupConfig], scores: Mapping[str, float]) -> list[GroupAverage]:
    """Every group with its average over what was run.

    Args:
        scores: pass@1 by benchmark, as shares, of those that were run here.
    """
    averages = []
    for name, group in groups.items():
        found = [scores[benchmark] for benchmark in group.benchmarks if benchmark in scores]
        missing = tuple(benchmark for benchmark in group.benchmarks if benchmark not in scores)
        average = fmean(found) if found else None
        averages.append(GroupAverage(name, average, len(found), missing, group.reference_score))
    return averages
