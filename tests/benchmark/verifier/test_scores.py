"""Counts against labels, latencies, disagreements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.benchmark.verifier.judges import HANG, Judgement
from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.benchmark.verifier.scores import Agreement, Score, agreement, kinds, latency, percentile, score


def pair(expected: bool, *, kind: str = "numeric", any_verdict: bool = False) -> Pair:
    return Pair("id", r"\boxed{1}", "1", expected, kind, any_verdict)


def says(verdict: bool | None, seconds: float = 0.001, fault: str | None = None) -> Judgement:
    return Judgement(verdict, seconds, fault=fault)


def test_undecided_counts_as_no() -> None:
    judged = [
        (pair(True), says(True)),
        (pair(True), says(False)),
        (pair(True), says(None)),
        (pair(False), says(False)),
        (pair(False), says(None)),
        (pair(False), says(True)),
    ]
    found = score(judged)
    assert found == Score(6, 3, num_true=3, num_false=3, false_negatives=2, false_positives=1, undecided=2)
    assert found.accuracy == 0.5


def test_pairs_without_a_label_are_not_scored() -> None:
    found = score([(pair(False, any_verdict=True), says(True)), (pair(True), says(True))])
    assert (found.num_pairs, found.false_positives) == (1, 0)
    assert score([]).accuracy is None
    assert kinds([pair(True, kind="timed", any_verdict=True)]) == []


def test_adversarial_pairs_come_last() -> None:
    assert kinds([pair(True, kind=kind) for kind in ("units", "adversarial", "set", "units")]) == [
        "set",
        "units",
        "adversarial",
    ]


def test_a_hang_counts_with_its_limit() -> None:
    found = latency([says(True, 1.0), says(None, 10.0, HANG), says(None, 1.0, "killed by signal 9")])
    assert found is not None
    assert (found.median, found.longest, found.hangs, found.crashes) == (1.0, 10.0, 1, 1)
    assert found.calls_per_second == pytest.approx(3 / 12)
    assert found.steady_calls_per_second == pytest.approx(2 / 2), "without the longest"
    assert latency([]) is None


def test_percentiles_of_a_hundred() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.0, 0.5, 0.9, 0.99, 1.0)] == [1, 50, 90, 99, 100]


@given(values=st.lists(st.floats(0, 10), min_size=1), share=st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_the_smallest_value_that_a_share_does_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in values
    assert sum(value <= found for value in ordered) >= share * len(ordered)
    assert sum(value < found for value in ordered) < share * len(ordered)


def test_judges_are_compared_pair_by_pair() -> None:
    labelled = [
        (pair(True), says(True), says(False)),
        (pair(False), says(False), says(None)),
        (pair(False), says(True), says(False)),
        (pair(True), says(None), says(False)),
    ]
    found = agreement(labelled)
    assert found == Agreement(both_right=1, only_first_right=1, only_second_right=1, both_wrong=1)
    assert found.differ == 2
