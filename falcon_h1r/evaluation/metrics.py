"""Accuracy with intervals: pass@1, greedy, pass@k, maj@k, and paired differences between two models.

Everything here is a pure function of arrays or of the evaluation's sample rows, seeded, without I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.evaluation.intervals import estimate_mean, estimate_means, paired_difference, point
from falcon_h1r.types import DIFFICULTIES

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
SampleRow = Mapping[str, Any]

NO_ANSWER = -1
VOTES = 8  # pass@8 and maj@8, where there are as many samples


# ------------------------------------------------------------------------------------------------------------
# One value a problem


def pass_at_k_by_problem(correct: BoolArray, k: int) -> FloatArray:  # (P, n) -> (P)
    """The chance that k of the n samples, drawn without replacement, hold a correct one.

    1 - C(n-c, k) / C(n, k), the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, eq. 1), in exact
    integers. At k = 1 it is c / n.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, there are {n}")
    by_num_correct = np.array([1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)])
    values: FloatArray = by_num_correct[correct.sum(axis=1)]
    return values


def maj_at_k_by_problem(answers: IntArray, correct: BoolArray, k: int) -> FloatArray:  # (P, n), (P, n) -> (P)
    """Accuracy of the majority of k samples, averaged over the n // k disjoint runs of k samples.

    `answers` numbers each problem's canonical answers from 0; NO_ANSWER does not vote, and a vote that nobody
    casts is lost. Equal answers are expected to be equally correct. Of tied answers one is drawn in
    expectation: two tied, one right, is 0.5. (Leaders all have the same count, so the mean over the samples
    that gave a leading answer is the mean over the leading answers.) The last n mod k samples are left out.
    """
    num_problems, n = answers.shape
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} needs at least {k} samples a problem, there are {n}")
    num_votes = n // k
    ballots = answers[:, : num_votes * k].reshape(-1, k)  # (P * num_votes, k)
    right = correct[:, : num_votes * k].reshape(-1, k)
    cast = ballots != NO_ANSWER
    counts = np.zeros((len(ballots), int(answers.max(initial=0)) + 1), dtype=np.int64)
    rows, columns = np.nonzero(cast)
    np.add.at(counts, (rows, ballots[rows, columns]), 1)
    support = np.where(cast, np.take_along_axis(counts, np.maximum(ballots, 0), axis=1), 0)
    leads = cast & (support == support.max(axis=1, keepdims=True))
    won = (leads & right).sum(axis=1) / np.maximum(leads.sum(axis=1), 1)
    values: FloatArray = won.reshape(num_problems, num_votes).mean(axis=1)
    return values


def ks_of_curves(num_samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples."""
    return [*(2**power for power in range((num_samples - 1).bit_length())), num_samples]


# ------------------------------------------------------------------------------------------------------------
# From sample rows to the summary


def problem_values(samples: Sequence[SampleRow], k: int) -> tuple[list[str], dict[str, FloatArray]]:
    """The problems, sorted by uid, and each metric's value on each: {"pass_at_1": (P), "greedy": (P), ...}.

    Metrics that the rows cannot give (no greedy rows, no sampled ones) are left out. Whatever the verifier
    did not call correct counts as wrong, undecided verdicts too.
    """
    uids = sorted({row["problem_uid"] for row in samples})
    sampled = _group_by_problem([row for row in samples if not row["greedy"]])
    greedy = _group_by_problem([row for row in samples if row["greedy"]])
    values: dict[str, FloatArray] = {}
    if sampled:
        correct, answers = _sample_matrices(uids, sampled)
        values["pass_at_1"] = pass_at_k_by_problem(correct, 1)
    if greedy:
        values["greedy"] = _sample_matrices(uids, greedy)[0].mean(axis=1)
    if sampled and k > 1:  # else both are pass@1
        values[f"pass_at_{k}"] = pass_at_k_by_problem(correct, k)
        values[f"maj_at_{k}"] = maj_at_k_by_problem(answers, correct, k)
    return uids, values


def _group_by_problem(rows: Sequence[SampleRow]) -> dict[str, list[SampleRow]]:
    groups: dict[str, list[SampleRow]] = {}
    for row in sorted(rows, key=lambda row: row["sample_index"]):
        groups.setdefault(row["problem_uid"], []).append(row)
    return groups


def _sample_matrices(uids: Sequence[str], groups: Mapping[str, list[SampleRow]]) -> tuple[BoolArray, IntArray]:
    """Correctness and numbered answers, (P, n) each."""
    sizes = {len(groups.get(uid, ())) for uid in uids}
    if len(sizes) != 1:
        raise ValueError(f"every problem needs the same number of samples, found {sorted(sizes)}")
    correct = np.array([[row["status"] == "correct" for row in groups[uid]] for uid in uids])
    answers = np.full(correct.shape, NO_ANSWER, dtype=np.int64)
    for position, uid in enumerate(uids):
        numbers: dict[str, int] = {}
        for index, row in enumerate(groups[uid]):
            if row["answer_key"] is not None:
                answers[position, index] = numbers.setdefault(row["answer_key"], len(numbers))
    return correct, answers


def votes_of(samples: Sequence[SampleRow]) -> int:
    """How many samples a problem has, which bounds the k of pass@k and maj@k."""
    return 1 + max(row["sample_index"] for row in samples)


def summarise(samples: Sequence[SampleRow], k: int, seed: int) -> dict[str, Any]:
    """The summary of one model's evaluation: each metric with its interval, tokens, curves and the breakdowns.

    `num_samples`, `mean_response_tokens`, `tokens_per_correct` and the shares speak of the sampled responses (of the
    greedy ones where nothing was sampled); `tokens_generated` counts both. `tokens_per_correct` is all that these
    cost, over the right ones; None where none is right.
    """
    if not samples:
        raise ValueError("no samples to summarise")
    counted = [row for row in samples if not row["greedy"]] or list(samples)
    num_right = sum(row["status"] == "correct" for row in counted)
    return {
        **_accuracies(samples, k, seed),
        "num_problems": len({row["problem_uid"] for row in samples}),
        "num_samples": len(counted),
        "tokens_generated": int(sum(row["response_tokens"] for row in samples)),
        "mean_response_tokens": float(np.mean([row["response_tokens"] for row in counted])),
        "tokens_per_correct": sum(row["response_tokens"] for row in counted) / num_right if num_right else None,
        "truncated_share": float(np.mean([row["stop_reason"] == "length" for row in counted])),
        "undecided_share": float(np.mean([row["status"] == "undecided" for row in counted])),
        "unverifiable_gold_share": float(np.mean([row["status"] == "unverifiable_gold" for row in counted])),
        "curves": curves([row for row in samples if not row["greedy"]], seed),
        "by_family": breakdown(samples, lambda row: row["family"] or "unknown", k, seed),
        "by_difficulty": breakdown(samples, lambda row: row["difficulty"] or "unknown", k, seed),
    }


def curves(sampled: Sequence[SampleRow], seed: int) -> dict[str, list[dict[str, float]]]:
    """pass@k and maj@k at every k of `ks_of_curves`: {"pass_at_k": [{"k", "value", "low", "high"}], "maj_at_k": ...}.

    Empty where there are no two samples of a problem.
    """
    uids = sorted({row["problem_uid"] for row in sampled})
    if len(sampled) < 2 * max(1, len(uids)):
        return {}
    correct, answers = _sample_matrices(uids, _group_by_problem(sampled))
    ks = ks_of_curves(correct.shape[1])
    by_name = {
        "pass_at_k": np.stack([pass_at_k_by_problem(correct, k) for k in ks], axis=1),
        "maj_at_k": np.stack([maj_at_k_by_problem(answers, correct, k) for k in ks], axis=1),
    }
    return {
        name: [{"k": k, **point(estimate)} for k, estimate in zip(ks, estimate_means(values, seed), strict=True)]
        for name, values in by_name.items()
    }


def breakdown(
    samples: Sequence[SampleRow], key: Callable[[SampleRow], str], k: int, seed: int
) -> dict[str, dict[str, Any]]:
    """The metrics of each kind of problem, with counts; difficulties from easy to hard, others by name."""
    kinds: dict[str, list[SampleRow]] = {}
    for row in samples:
        kinds.setdefault(key(row), []).append(row)
    rank: dict[str, int] = {name: position for position, name in enumerate(DIFFICULTIES)}
    return {
        kind: {
            **_accuracies(kinds[kind], k, seed),
            "num_problems": len({row["problem_uid"] for row in kinds[kind]}),
            "num_samples": sum(not row["greedy"] for row in kinds[kind]),
        }
        for kind in sorted(kinds, key=lambda kind: (rank.get(kind, len(rank)), kind))
    }


def _accuracies(samples: Sequence[SampleRow], k: int, seed: int) -> dict[str, Any]:
    accuracies: dict[str, Any] = {}
    for name, values in problem_values(samples, k)[1].items():
        estimate = estimate_mean(values, seed)
        accuracies[name] = estimate.value
        accuracies[f"{name}_interval"] = [estimate.low, estimate.high]
    return accuracies


def differences(
    pairs: Sequence[tuple[Sequence[SampleRow], Sequence[SampleRow]]], k: int, seed: int
) -> dict[str, dict[str, float]]:
    """Each metric's paired difference, after - before, as {"value", "low", "high"}.

    `pairs` holds (samples after, samples before) of one run, or of several seeds to pool. Before and after
    must have been evaluated on the same problems; the seeds may share problems or not.
    """
    collected: dict[str, list[tuple[list[str], FloatArray, FloatArray]]] = {}
    for after, before in pairs:
        uids, values_after = problem_values(after, k)
        uids_before, values_before = problem_values(before, k)
        if uids != uids_before:
            raise ValueError("a paired difference needs both models evaluated on the same problems")
        for name in values_after:
            if name in values_before:
                collected.setdefault(name, []).append((uids, values_after[name], values_before[name]))
    result = {}
    for name, runs in collected.items():
        _, problems = np.unique([uid for uids, _, _ in runs for uid in uids], return_inverse=True)
        values_a, values_b = (np.concatenate([run[side] for run in runs]) for side in (1, 2))
        result[name] = point(paired_difference(values_a, values_b, seed, problems))
    return result
