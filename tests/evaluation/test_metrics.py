"""pass@k against enumeration, votes against a slow twin, intervals against simulated truth."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.benchmark.intervals import Setting, coverage
from falcon_h1r.evaluation.intervals import estimate_mean, estimate_means, paired_difference
from falcon_h1r.evaluation.metrics import (
    NO_ANSWER,
    curves,
    differences,
    ks_of_curves,
    maj_at_k_by_problem,
    pass_at_k_by_problem,
    summarise,
)


def sample_row(uid: str, answer: str | None, gold: str = "7", **fields: Any) -> dict[str, Any]:
    correct = answer == gold
    row = {"problem_uid": uid, "question": f"question {uid}", "gold": gold, "family": "addition"}
    row |= {"difficulty": "easy", "greedy": False, "sample_index": 0, "response": f"\\boxed{{{answer}}}"}
    row |= {"prediction": answer, "answer_key": answer, "status": "correct" if correct else "wrong"}
    return row | {"stage": "string", "reason": "", "response_tokens": 10, "stop_reason": "stop"} | fields


def problem_rows(uid: str, answers: list[str | None], greedy: str | None, **fields: Any) -> list[dict[str, Any]]:
    sampled = [sample_row(uid, answer, sample_index=index, **fields) for index, answer in enumerate(answers)]
    return [sample_row(uid, greedy, greedy=True, **fields), *sampled]


# ------------------------------------------------------------------------------------------------------------
# One value a problem


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample() -> None:
    """Every n to 12, every count of correct ones, every k, by going through all subsets."""
    for n in range(1, 13):
        subsets = np.arange(2**n)
        sizes = np.array([int(subset).bit_count() for subset in subsets])
        for num_correct in range(n + 1):
            holds_one = (subsets & (2**num_correct - 1)) != 0  # the correct ones are the first bits
            correct = np.arange(n)[None] < num_correct
            for k in range(1, n + 1):
                enumerated = holds_one[sizes == k].mean()
                assert pass_at_k_by_problem(correct, k)[0] == pytest.approx(enumerated, abs=1e-12)


def test_pass_at_k_stays_exact_where_binomials_overflow_floats() -> None:
    correct = np.zeros((1, 2000), dtype=bool)
    correct[0, 0] = True
    assert pass_at_k_by_problem(correct, 500)[0] == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_samples_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"@{k} needs"):
        pass_at_k_by_problem(np.ones((2, 4), dtype=bool), k)
    with pytest.raises(ValueError, match=f"@{k} needs"):
        maj_at_k_by_problem(np.zeros((2, 4), dtype=np.int64), np.ones((2, 4), dtype=bool), k)


def majority_slowly(answers: list[int], right_answers: set[int], k: int) -> float:
    """Counter by Counter: the readable twin."""
    won = []
    for start in range(0, len(answers) - k + 1, k):
        votes = Counter(answer for answer in answers[start : start + k] if answer != NO_ANSWER)
        leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
        won.append(sum(answer in right_answers for answer in leaders) / len(leaders) if leaders else 0.0)
    return float(np.mean(won))


@given(st.lists(st.integers(NO_ANSWER, 3), min_size=1, max_size=12), st.sets(st.integers(0, 3)), st.data())
def test_majority_equals_its_slow_twin(answers: list[int], right: set[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    correct = np.array([[answer in right for answer in answers]])
    fast = maj_at_k_by_problem(np.array([answers]), correct, k)[0]
    assert fast == pytest.approx(majority_slowly(answers, right, k))


def test_a_tie_counts_as_the_chance_to_draw_the_right_answer() -> None:
    answers = np.array([[0, 0, 1, 1, 2, NO_ANSWER], [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 2]])
    right_is_first = answers == 0
    assert maj_at_k_by_problem(answers, right_is_first, 6).tolist() == pytest.approx([1 / 2, 1 / 6, 1.0])


def test_a_sample_without_an_answer_does_not_vote_and_no_votes_lose() -> None:
    silent = [NO_ANSWER] * 7
    answers = np.array([[0, *silent], [*silent, NO_ANSWER]])
    correct = np.array([[True, *[False] * 7], [False] * 8])
    assert maj_at_k_by_problem(answers, correct, 8).tolist() == [1.0, 0.0]


def test_more_samples_than_k_are_several_votes() -> None:
    answers = np.array([[0, 0, 1, 1, 1, 0, 0]])  # votes of 3: right, wrong; the seventh is left out
    assert maj_at_k_by_problem(answers, answers == 0, 3).tolist() == [0.5]


# ------------------------------------------------------------------------------------------------------------
# Intervals


@pytest.mark.parametrize(
    ("num_problems", "num_samples", "alpha", "beta"),
    [(200, 8, 0.5, 1.0), (200, 1, 0.5, 1.0), (30, 16, 0.5, 1.0), (200, 16, 4.0, 0.5), (500, 4, 0.3, 1.5)],
)
def test_intervals_cover_the_truth_in_simulation(
    num_problems: int, num_samples: int, alpha: float, beta: float
) -> None:
    """1,000 benchmarks of Beta-distributed difficulty: 30 problems as AIME has, easy ones, hard ones, one sample."""
    setting = Setting("", alpha, beta, num_samples)
    assert 0.93 <= coverage(setting, num_problems, rounds=1, seed=0) <= 0.97


@pytest.mark.parametrize(("alpha", "beta"), [(4.0, 0.5), (0.2, 2.0)])
def test_near_the_bounds_few_problems_have_intervals_that_are_rather_too_wide(alpha: float, beta: float) -> None:
    assert coverage(Setting("", alpha, beta, 16), 30, rounds=1, seed=0) >= 0.95


def test_a_difference_s_interval_covers_it_in_simulation() -> None:
    """Both models are better at the same problems, one by 5 points."""
    generator = np.random.default_rng(0)
    chances = generator.beta(1.0, 1.0, size=(100, 1000))
    after = generator.binomial(8, 0.1 + 0.85 * chances) / 8
    before = generator.binomial(8, 0.05 + 0.85 * chances) / 8
    estimates = estimate_means(after - before, 0, bounds=(-1.0, 1.0))
    assert 0.93 <= np.mean([estimate.low <= 0.05 <= estimate.high for estimate in estimates]) <= 0.97


def test_intervals_of_many_quantities_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    values, clusters = generator.random((40, 3)), generator.integers(0, 15, 40)
    for own in (None, clusters):
        together = estimate_means(values, 5, clusters=own)
        for column, estimate in zip(values.T, together, strict=True):
            alone = estimate_mean(column, 5, clusters=own)
            assert astuple(estimate) == pytest.approx(astuple(alone), abs=1e-12)


def test_few_problems_widen_the_interval_beyond_the_plain_percentiles() -> None:
    """Its half width is Student's with the sample's deviation, where the values are symmetric."""
    values = np.linspace(0.3, 0.7, 12)
    estimate = estimate_mean(values, seed=0, bounds=(0.28, 0.72))
    student = 2.201 * values.std(ddof=1) / np.sqrt(12)  # t at 97.5% with 11 degrees of freedom
    assert (estimate.high - estimate.low) / 2 == pytest.approx(student, rel=0.04)


def test_resampling_samples_instead_of_problems_would_be_overconfident() -> None:
    chances = np.random.default_rng(0).beta(0.3, 0.3, size=(60, 1))
    correct = np.random.default_rng(1).random((60, 16)) < chances
    by_problem = estimate_mean(pass_at_k_by_problem(correct, 1), seed=0)
    by_sample = estimate_mean(correct.ravel().astype(float), seed=0)
    assert by_problem.high - by_problem.low > 1.5 * (by_sample.high - by_sample.low)


def test_nothing_right_still_leaves_room_above_zero() -> None:
    estimate = estimate_mean(np.zeros(100), seed=0)
    assert (estimate.value, estimate.low, estimate.n) == (0.0, 0.0, 100)
    assert estimate.high == pytest.approx(0.0362, abs=1e-4)  # Clopper-Pearson, 0 of 100


def test_everything_right_still_leaves_room_below_one() -> None:
    estimate = estimate_mean(np.ones(100), seed=0)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(1 - 0.0362, abs=1e-4)


def test_one_lucky_sample_does_not_make_a_narrower_interval_than_none() -> None:
    nothing = np.zeros((26, 8), dtype=bool)
    one = nothing.copy()
    one[0, 0] = True
    lucky, unlucky = (estimate_mean(pass_at_k_by_problem(correct, 1), seed=0) for correct in (one, nothing))
    assert lucky.high > unlucky.high


def test_with_many_mixed_problems_the_interval_is_the_bootstrap_s() -> None:
    values = np.random.default_rng(0).random(200)
    estimate = estimate_mean(values, seed=0)
    half_width = 1.96 * values.std() / np.sqrt(200)
    assert estimate.high - estimate.value == pytest.approx(half_width, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half_width, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=20), st.integers(0, 5))
def test_an_interval_is_ordered_within_bounds_and_reproducible(rows: list[list[bool]], seed: int) -> None:
    correct = np.array(rows)
    estimate = estimate_mean(pass_at_k_by_problem(correct, 2), seed)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate == estimate_mean(pass_at_k_by_problem(correct, 2), seed)


def test_pairing_narrows_the_difference_of_two_models_on_hard_and_easy_problems() -> None:
    generator = np.random.default_rng(0)
    chances = generator.choice([0.1, 0.8], size=(200, 1))
    before = (generator.random((200, 8)) < chances).mean(axis=1)
    after = (generator.random((200, 8)) < chances + 0.1).mean(axis=1)
    paired = paired_difference(after, before, seed=0)
    unpaired_width = np.hypot(*(estimate_mean(v, 0).high - estimate_mean(v, 0).low for v in (after, before)))
    assert paired.low < 0.1 < paired.high
    assert paired.high - paired.low < 0.6 * unpaired_width


def test_seeds_that_share_problems_are_resampled_by_problem() -> None:
    """Three copies of one comparison say no more than one of them; three independent ones do."""
    generator = np.random.default_rng(0)
    after, before = generator.random(100), generator.random(100)
    once = paired_difference(after, before, seed=0)
    copies = paired_difference(np.tile(after, 3), np.tile(before, 3), 0, problems=np.tile(np.arange(100), 3))
    assert (copies.low, copies.high, copies.n) == pytest.approx((once.low, once.high, 100))
    independent = paired_difference(np.tile(after, 3), np.tile(before, 3), 0)
    assert independent.high - independent.low < 0.7 * (once.high - once.low)


def test_a_difference_of_different_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="same problems"):
        paired_difference(np.zeros(3), np.zeros(4), seed=0)
    with pytest.raises(ValueError, match="same problems"):
        differences([(problem_rows("a", ["7"], "7"), problem_rows("b", ["7"], "7"))], k=1, seed=0)


# ------------------------------------------------------------------------------------------------------------
# From sample rows to the summary


def two_problems() -> list[dict[str, Any]]:
    easy = problem_rows("a", ["7", "7", "7", "8"], greedy="7", family="addition", difficulty="easy")
    hard = problem_rows("b", ["1", "2", None, "7"], greedy="1", family="modular", difficulty="hard")
    hard[3] |= {"stop_reason": "length", "response_tokens": 50, "status": "undecided"}
    return easy + hard


def test_a_summary_holds_the_agreed_keys_and_values() -> None:
    summary = summarise(two_problems(), k=4, seed=0)
    metrics = ["pass_at_1", "greedy", "pass_at_4", "maj_at_4"]
    counts = ["num_problems", "num_samples", "tokens_generated", "mean_response_tokens", "tokens_per_correct"]
    counts += ["truncated_share", "undecided_share", "unverifiable_gold_share"]
    intervals = [f"{name}_interval" for name in metrics]
    assert set(summary) == {*metrics, *intervals, *counts, "curves", "by_family", "by_difficulty"}
    assert [summary[name] for name in metrics] == pytest.approx([0.5, 0.5, 1.0, (1 + 1 / 3) / 2])
    assert [summary[name] for name in counts] == pytest.approx([2, 8, 140, 15, 30, 1 / 8, 1 / 8, 0])
    for name in metrics:
        low, high = summary[f"{name}_interval"]
        assert low <= summary[name] <= high


def test_breakdowns_add_up_and_run_from_easy_to_hard() -> None:
    summary = summarise(two_problems(), k=4, seed=0)
    assert list(summary["by_difficulty"]) == ["easy", "hard"]
    assert summary["by_family"]["addition"]["pass_at_1"] == 0.75
    assert summary["by_family"]["modular"]["num_samples"] == 4
    assert sum(kind["num_problems"] for kind in summary["by_family"].values()) == summary["num_problems"]


def test_the_order_of_rows_does_not_matter() -> None:
    rows = two_problems()
    assert summarise(rows[::-1], k=2, seed=3) == summarise(rows, k=2, seed=3)


def test_without_greedy_rows_the_greedy_accuracy_is_left_out() -> None:
    summary = summarise([row for row in two_problems() if not row["greedy"]], k=4, seed=0)
    assert "greedy" not in summary
    assert summary["pass_at_1"] == 0.5


def test_a_missing_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="same number of samples"):
        summarise(two_problems()[:-1], k=2, seed=0)


def test_differences_report_each_shared_metric() -> None:
    before = two_problems()
    after = problem_rows("a", ["7"] * 4, greedy="7") + problem_rows("b", ["7"] * 4, greedy="7")
    result = differences([(after, before), (after, before)], k=4, seed=0)
    assert result["pass_at_1"]["value"] == pytest.approx(0.5)
    assert result["greedy"]["value"] == pytest.approx(0.5)
    assert set(result) == {"pass_at_1", "greedy", "pass_at_4", "maj_at_4"}
    assert set(result["greedy"]) == {"value", "low", "high"}


def test_tokens_per_correct_answer_count_the_wrong_ones_and_leave_greedy_rows_out() -> None:
    rows = problem_rows("a", ["7", "8", "8", "7"], greedy="7")
    rows[0]["response_tokens"] = 1000  # the greedy one
    rows[2]["response_tokens"] = 70
    assert summarise(rows, k=1, seed=0)["tokens_per_correct"] == (10 + 70 + 10 + 10) / 2
    assert summarise(problem_rows("a", ["8", "8"], greedy="8"), k=1, seed=0)["tokens_per_correct"] is None


@pytest.mark.parametrize(
    ("num_samples", "ks"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_curves_double_k_and_end_at_the_samples_there_are(num_samples: int, ks: list[int]) -> None:
    assert ks_of_curves(num_samples) == ks


def test_curves_are_the_metrics_at_every_k() -> None:
    rows = two_problems()
    found = curves([row for row in rows if not row["greedy"]], seed=0)
    assert [point["k"] for point in found["pass_at_k"]] == [1, 2, 4]
    for k in (1, 2, 4):
        summary = summarise(rows, k=k, seed=0)
        for name in ("pass", "maj"):
            metric = f"{name}_at_{k}" if k > 1 else "pass_at_1"  # the majority of one is that one
            point = next(point for point in found[f"{name}_at_k"] if point["k"] == k)
            bounds = summary[f"{metric}_interval"]
            assert [point["value"], point["low"], point["high"]] == pytest.approx([summary[metric], *bounds])


def test_one_sample_a_problem_has_no_curves() -> None:
    assert curves([sample_row("a", "7"), sample_row("b", "7")], seed=0) == {}
    assert curves([], seed=0) == {}
