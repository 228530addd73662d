"""Accuracy with its cost: points from stored rows against hand-computed ones, intervals, and the front."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.scaling_curves import pareto_front, scaling_summary, scored_traces
from falcon_h1r.scaling.traces import SCORES

CONFIG = ScalingConfig(warmup_traces=2, wave_traces=2, budgets=[2, 4, 8], keep_shares=[0.5, 0.9], num_traces=4)


def sample(
    uid: str, index: int, answer: str | None, confidence: float, tokens: int = 10, **fields: Any
) -> dict[str, Any]:
    """A row whose every score is `confidence`, reached at its third token."""
    parts: dict[str, Any] = {score: confidence for score in SCORES}
    parts["minima"] = [[0, 20.0], [2, confidence]]
    row = {"problem_uid": uid, "greedy": False, "sample_index": index, "answer_key": answer}
    row |= {"status": "correct" if answer == "7" else "wrong", "response_tokens": tokens, "stop_reason": "stop"}
    return row | {"confidence": {"top_k": parts}} | fields


def samples(num_problems: int = 12, num_samples: int = 4) -> list[dict[str, Any]]:
    """Right traces are surer than wrong ones, most of the time."""
    generator, rows = np.random.default_rng(0), []
    for number in range(num_problems):
        for index in range(num_samples):
            is_right = generator.random() < 0.3 + 0.05 * number
            confidence = float(generator.normal(12.0 if is_right else 10.0, 1.5))
            answer = "7" if is_right else str(generator.choice(["5", "6"]))
            rows.append(sample(f"{number:02}", index, answer, confidence, int(generator.integers(5, 40))))
    return rows


def online_row(uid: str, right: bool, **fields: Any) -> dict[str, Any]:
    row = {"problem_uid": uid, "num_traces": 4, "num_stopped": 1, "tokens": 30, "threshold": 9.0, "ended_by": "budget"}
    row |= {"votes": {"lowest_group": {"answer": "7", "right": right}, "majority": {"answer": "8", "right": 0.5}}}
    return row | {"tokens_saved_by_confidence": 8.0, "tokens_saved_by_consensus": 2.0} | fields


def points_of(summary: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in summary["points"] if all(row[name] == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return scaling_summary(samples(), [], CONFIG, 4, seed=0)


def test_the_single_answer_is_the_mean_over_samples_and_its_tokens(summary: dict[str, Any]) -> None:
    rows = samples()
    (point,) = points_of(summary, method="single")
    assert point["accuracy"]["value"] == pytest.approx(np.mean([row["status"] == "correct" for row in rows]))
    assert point["tokens"] == pytest.approx(np.mean([row["response_tokens"] for row in rows]))
    assert point["accuracy"]["low"] < point["accuracy"]["value"] < point["accuracy"]["high"]


def test_the_whole_budget_s_majority_is_the_one_of_all_samples() -> None:
    rows = [sample("a", index, answer, 10.0) for index, answer in enumerate(["7", "7", "8", None])]
    rows += [sample("b", index, answer, 10.0) for index, answer in enumerate(["7", "8", "8", "7"])]
    (point,) = points_of(scaling_summary(rows, [], CONFIG, 4, seed=0), method="majority", budget=4)
    assert point["accuracy"]["value"] == pytest.approx((1 + 1 / 2) / 2)
    assert (point["tokens"], point["saved_by_confidence"], point["saved_by_consensus"]) == (40, 0, 0)


def test_every_setting_is_a_point_and_budgets_beyond_the_samples_are_left_out(summary: dict[str, Any]) -> None:
    assert (summary["num_traces"], summary["budgets"]) == (4, [2, 4])
    found = [(row["method"], row["budget"], row["keep_share"]) for row in summary["points"]]
    expected = {("single", 1, None)}
    for budget in (2, 4):
        expected |= {("majority", budget, None), *((score, budget, None) for score in SCORES)}
        expected |= {("online", budget, keep_share) for keep_share in (0.5, 0.9)}
    assert set(found) == expected and len(found) == len(expected)


def test_what_was_drawn_and_what_was_saved_is_the_whole_budget(summary: dict[str, Any]) -> None:
    for budget in (2, 4):
        (whole,) = points_of(summary, method="majority", budget=budget)
        for row in points_of(summary, method="online", budget=budget):
            kept_share = 1 - row["saved_by_confidence"] - row["saved_by_consensus"]
            assert row["tokens"] == pytest.approx(kept_share * whole["tokens"])
    assert any(row["saved_by_confidence"] > 0 for row in points_of(summary, method="online", budget=4))


def test_a_loss_against_the_majority_is_paired_at_the_same_budget(summary: dict[str, Any]) -> None:
    for row in summary["points"]:
        if row["method"] in ("single", "majority"):
            assert row["against_majority"] is None
            continue
        (majority,) = points_of(summary, method="majority", budget=row["budget"])
        loss = row["against_majority"]
        assert loss["value"] == pytest.approx(row["accuracy"]["value"] - majority["accuracy"]["value"])
        assert loss["low"] <= loss["value"] <= loss["high"]


def test_within_a_problem_the_auc_looks_at_confidence_alone() -> None:
    rows = [sample(uid, index, "7", 12.0 + index) for uid in "ab" for index in range(2)]
    rows += [sample(uid, 2 + index, "8", 9.0) for uid in "ab" for index in range(2)]
    rows += [sample("c", index, "8", 99.0) for index in range(4)]  # nothing to tell apart
    auc = scaling_summary(rows, [], CONFIG, 4, seed=0)["auc_within"]["top_k"]["mean"]
    assert auc == {"value": 1.0, "low": 1.0, "high": 1.0, "num_problems": 2}
    assert scaling_summary(rows[8:], [], CONFIG, 4, seed=0)["auc_within"]["top_k"]["mean"] is None


def test_rows_without_confidence_have_no_test_time_scaling() -> None:
    assert scaling_summary([row | {"confidence": {}} for row in samples()], [], CONFIG, 0, seed=0) == {}
    assert scaling_summary([], [], CONFIG, 0, seed=0) == {}


def test_a_measure_that_one_trace_lacks_is_left_out_and_said_to_be() -> None:
    rows = samples()
    for row in rows[1:]:
        row["confidence"]["sampled"] = row["confidence"]["top_k"]
    found = scaling_summary(rows, [], CONFIG, 4, seed=0)
    assert set(found["auc_within"]) == {"top_k"}
    assert found["lacking_traces"] == {"sampled": 1}
    assert found["points"] == scaling_summary(samples(), [], CONFIG, 4, seed=0)["points"]


def test_greedy_rows_are_no_traces_and_the_order_of_rows_is_nothing(summary: dict[str, Any]) -> None:
    rows = [*samples()[::-1], sample("00", 0, "8", 1.0, greedy=True)]
    assert scaling_summary(rows, [], CONFIG, 4, seed=0) == summary
    assert [len(traces) for traces in scored_traces(rows)] == [4] * 12


def test_a_summary_is_json(summary: dict[str, Any]) -> None:
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_online_run_is_a_measured_point_by_the_vote_that_decided() -> None:
    online = [online_row("a", True), online_row("b", False), online_row("c", True, ended_by="consensus", tokens=20)]
    found = scaling_summary(samples(), online, CONFIG, 4, seed=0)
    (point,) = points_of(found, is_measured=True)
    assert (point["method"], point["budget"], point["keep_share"]) == ("online", 4, CONFIG.keep_share)
    assert point["accuracy"]["value"] == pytest.approx(2 / 3)
    assert point["votes"]["majority"]["value"] == pytest.approx(0.5)
    assert point["tokens"] == pytest.approx(80 / 3)
    assert point["saved_by_confidence"] == pytest.approx(24 / 110)
    assert point["saved_by_consensus"] == pytest.approx(6 / 110)
    assert (point["num_stopped"], point["ended_by_consensus_share"]) == (3, pytest.approx(1 / 3))
    assert [row for row in found["points"] if not row["is_measured"]] == scaling_summary(samples(), [], CONFIG, 4, 0)[
        "points"
    ]


def test_an_online_run_alone_has_its_point() -> None:
    found = scaling_summary([], [online_row("a", True)], CONFIG, 4, seed=0)
    assert [row["is_measured"] for row in found["points"]] == [True]


# ------------------------------------------------------------------------------------------------------------
# The Pareto front


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12))
def test_the_front_holds_what_nothing_beats_and_beats_all_the_rest(costs: list[tuple[float, float]]) -> None:
    front = pareto_front(costs)

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return (a[0] <= b[0] and a[1] > b[1]) or (a[0] < b[0] and a[1] >= b[1])

    for index, cost in enumerate(costs):
        assert (index in front) == (not any(beats(other, cost) for other in costs))
        assert index in front or any(beats(costs[other], cost) for other in front)


def test_the_cheapest_and_the_best_are_on_the_front(summary: dict[str, Any]) -> None:
    front = [row for row in summary["points"] if row["on_front"]]
    best = max(row["accuracy"]["value"] for row in summary["points"])
    assert min(row["tokens"] for row in summary["points"]) == min(row["tokens"] for row in front)
    assert best == max(row["accuracy"]["value"] for row in front)
