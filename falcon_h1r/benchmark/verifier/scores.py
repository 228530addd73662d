"""What a page says of judgements, as pure functions: counts against labels, latencies, disagreements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from falcon_h1r.benchmark.verifier.judges import HANG, Judgement
from falcon_h1r.benchmark.verifier.pairs import ADVERSARIAL, Pair

Judged = tuple[Pair, Judgement]


@dataclass(frozen=True, slots=True)
class Score:
    """One judge against the labels. What is undecided counts as no: right where the label says no."""

    num_pairs: int
    num_right: int
    num_true: int
    num_false: int
    false_negatives: int
    false_positives: int
    undecided: int

    @property
    def accuracy(self) -> float | None:
        return self.num_right / self.num_pairs if self.num_pairs else None


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of calls one after the other."""

    num_calls: int
    median: float
    p90: float
    p99: float
    longest: float
    calls_per_second: float
    steady_calls_per_second: float | None  # without the longest: what a single start or stall costs
    hangs: int
    crashes: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the same labelled pairs."""

    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int

    @property
    def differ(self) -> int:
        return self.only_first_right + self.only_second_right


def is_right(pair: Pair, judgement: Judgement) -> bool:
    return bool(judgement.verdict) == pair.expected


def score(judged: Iterable[Judged]) -> Score:
    """Of labelled pairs; those of which only the time counts are left out."""
    labelled = [(pair, judgement) for pair, judgement in judged if not pair.any_verdict]
    return Score(
        num_pairs=len(labelled),
        num_right=sum(is_right(pair, judgement) for pair, judgement in labelled),
        num_true=sum(pair.expected for pair, _ in labelled),
        num_false=sum(not pair.expected for pair, _ in labelled),
        false_negatives=sum(pair.expected and not judgement.verdict for pair, judgement in labelled),
        false_positives=sum(not pair.expected and bool(judgement.verdict) for pair, judgement in labelled),
        undecided=sum(judgement.verdict is None for _, judgement in labelled),
    )


def latency(judgements: Sequence[Judgement]) -> Latency | None:
    """Of all calls, hangs at their limit included; None where there are none."""
    if not judgements:
        return None
    seconds = sorted(judgement.seconds for judgement in judgements)
    return Latency(
        num_calls=len(seconds),
        median=percentile(seconds, 0.5),
        p90=percentile(seconds, 0.9),
        p99=percentile(seconds, 0.99),
        longest=seconds[-1],
        calls_per_second=len(seconds) / sum(seconds),
        steady_calls_per_second=(len(seconds) - 1) / sum(seconds[:-1]) if len(seconds) > 1 else None,
        hangs=sum(judgement.fault == HANG for judgement in judgements),
        crashes=sum(judgement.fault not in (None, HANG) for judgement in judgements),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank): one that occurred."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def agreement(labelled: Iterable[tuple[Pair, Judgement, Judgement]]) -> Agreement:
    counts = Counter((is_right(pair, first), is_right(pair, second)) for pair, first, second in labelled)
    return Agreement(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def kinds(pairs: Iterable[Pair]) -> list[str]:
    """Those with a label to judge by, in alphabetical order, the adversarial ones last."""
    found = {pair.kind for pair in pairs if not pair.any_verdict}
    return sorted(found, key=lambda kind: (kind == ADVERSARIAL, kind))
