"""The batch as GRPO scores it."""

from __future__ import annotations

from falcon_h1r.benchmark.verifier.batch import TRACE_CHARS, make_batch, measure_batch
from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.verifier import extract_boxed, verify

PAIRS = [
    Pair("a", r"\boxed{0.5}", "1/2", True, "fraction"),
    Pair("b", r"\boxed{0.6}", "1/2", False, "fraction"),
    Pair("c", r"\boxed{(x+1)^2}", "x^2+2x+1", True, "symbolic"),
    Pair("d", r"\boxed{9^{9^9}}", "7", False, "adversarial"),
    Pair("e", r"\boxed{1}", "8", False, "numeric", any_verdict=True),
]


def test_groups_share_a_gold_and_hold_long_traces() -> None:
    batch = make_batch(PAIRS, num_problems=6, num_rollouts=8, seed=0)
    assert len(batch.golds) == len(batch.responses) == 48
    assert all(len(set(batch.golds[start : start + 8])) == 1 for start in range(0, 48, 8))
    assert set(batch.golds) == {"1/2", "x^2+2x+1"}, "neither adversarial pairs nor those without a label"
    shortest, longest = TRACE_CHARS
    assert all(shortest <= len(response) <= longest + 200 for response in batch.responses)
    assert [extract_boxed(response, after_think=True) for response in batch.responses] == batch.answers


def test_answers_are_right_in_two_notations_and_wrong() -> None:
    batch = make_batch(PAIRS, num_problems=40, num_rollouts=8, seed=0)
    assert {"1/2", "0.5", "0.6", "x^2+2x+1", "(x+1)^2"} == set(batch.answers)
    right = [
        verify(f"\\boxed{{{answer}}}", gold).correct for answer, gold in zip(batch.answers, batch.golds, strict=True)
    ]
    assert 0.3 < sum(right) / len(right) < 0.7


def test_the_seed_decides() -> None:
    assert make_batch(PAIRS, 5, 4, seed=1) == make_batch(PAIRS, 5, 4, seed=1)
    assert make_batch(PAIRS, 5, 4, seed=1) != make_batch(PAIRS, 5, 4, seed=2)


def test_pairs_without_golds_make_no_batch() -> None:
    assert make_batch(PAIRS[3:], 5, 4, seed=0).golds == []


def test_the_cache_serves_what_repeats() -> None:
    batch = make_batch(PAIRS, num_problems=20, num_rollouts=8, seed=0)
    measured = measure_batch(batch, deadline_seconds=60.0, repeats=1)
    assert measured["num_verdicts"] == sum(measured["statuses"].values()) == 160
    assert measured["cached_share"] == measured["repeated_share"] > 0.9
