"""Accuracy with its cost in tokens, from the rows of one evaluation: what stands in its summary under `scaling`.

Points of stored traces are replayed (falcon_h1r.scaling.replay): every budget and keep share from one set of samples.
Points of online.jsonl are measured: the traces were stopped while they were drawn. The two are told apart by
`is_measured`, as a replay knows exactly what was saved, and a measurement only by the warm-up's mean length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.intervals import Estimate, FloatArray, estimate_mean, estimate_means, point
from falcon_h1r.evaluation.rows import scored_trace
from falcon_h1r.scaling.online import OnlineSettings
from falcon_h1r.scaling.replay import CurvePoint, auc_within, curve
from falcon_h1r.scaling.traces import MEASURES, SCORES, ScoredTrace
from falcon_h1r.scaling.voting import MAJORITY

Row = Mapping[str, Any]


def scaling_summary(
    samples: Sequence[Row], online: Sequence[Row], config: ScalingConfig, num_traces: int, seed: int
) -> dict[str, Any]:
    """What summary.json holds under `scaling`; empty where no confidence was measured.

    Args:
        samples: rows of samples.jsonl; greedy ones are not looked at.
        online: rows of online_summary.jsonl, one a problem.
        num_traces: the budget that `online` was drawn with.

    Returns:
        The settings that a reader needs; `lacking_traces`, of measures left out as some traces (so many) lack them;
        `num_traces` stored of each problem, and `budgets`, those of the config that so many are enough for; `points`,
        see `_point_row`; and `auc_within`, {measure: {score: value, low, high, num_problems}}.
    """
    settings = OnlineSettings.of(config, max(1, num_traces))
    summary: dict[str, Any] = {"trace_score": config.trace_score, "warmup_traces": config.warmup_traces}
    summary |= {"num_traces": 0, "budgets": [], "points": [], "auc_within": {}}
    problems, summary["lacking_traces"] = _measured_alike(scored_traces(samples))
    measures = list(problems[0][0].confidence) if problems else []
    if measures:
        summary["num_traces"] = min(map(len, problems))
        summary["budgets"] = [budget for budget in config.budgets if budget <= summary["num_traces"]]
        points = curve(problems, summary["budgets"], config.keep_shares, settings, seed)
        summary["points"] = _replayed_rows(points, seed)
        summary["auc_within"] = {
            measure: {score: _within(problems, score, measure, seed) for score in SCORES} for measure in measures
        }
    if online:
        summary["points"].append(measured_point(online, settings, seed))
    return summary if summary["points"] else {}


def scored_traces(samples: Sequence[Row]) -> list[list[ScoredTrace]]:
    """The samples as a vote sees them: a list for each problem, by uid, in the order of their indices."""
    problems: dict[str, list[ScoredTrace]] = {}
    for row in sorted(samples, key=lambda row: (row["problem_uid"], row["sample_index"])):
        if not row["greedy"]:
            problems.setdefault(row["problem_uid"], []).append(scored_trace(row))
    return list(problems.values())


def _measured_alike(problems: Sequence[Sequence[ScoredTrace]]) -> tuple[list[list[ScoredTrace]], dict[str, int]]:
    """The traces with the measures that all of them have, and how many traces lack each of the others."""
    traces = [trace for of_problem in problems for trace in of_problem]
    lacking = {name: sum(name not in trace.confidence for trace in traces) for name in MEASURES}
    shared = [name for name, count in lacking.items() if traces and count == 0]
    alike = [
        [replace(trace, confidence={name: trace.confidence[name] for name in shared}) for trace in of_problem]
        for of_problem in problems
    ]
    return alike, {name: count for name, count in lacking.items() if 0 < count < len(traces)}


# ------------------------------------------------------------------------------------------------------------
# Points


def _replayed_rows(points: Sequence[CurvePoint], seed: int) -> list[dict[str, Any]]:
    """All points with intervals, those of the Pareto front marked."""
    accuracies = np.stack([found.accuracy for found in points], axis=1)  # (P, points)
    majorities = {found.budget: found.accuracy for found in points if found.method == MAJORITY}
    losses = np.stack([found.accuracy - majorities.get(found.budget, found.accuracy) for found in points], axis=1)
    rows = [
        _point_row(found, accuracy, loss)
        for found, accuracy, loss in zip(
            points, estimate_means(accuracies, seed), estimate_means(losses, seed, (-1.0, 1.0)), strict=True
        )
    ]
    costs = [(row["tokens"], row["accuracy"]["value"]) for row in rows]
    front = pareto_front(costs)
    return [row | {"on_front": index in front} for index, row in enumerate(rows)]


def _point_row(found: CurvePoint, accuracy: Estimate, loss: Estimate) -> dict[str, Any]:
    """One point: tokens are means over problems; `against_majority` is paired, at the same budget."""
    compared = found.method not in ("single", MAJORITY)
    return {
        "method": found.method,
        "budget": found.budget,
        "measure": found.measure,
        "keep_share": found.keep_share,
        "is_measured": False,
        "accuracy": point(accuracy),
        "against_majority": point(loss) if compared else None,
        **_costs(found.tokens, found.saved_by_confidence, found.saved_by_consensus),
    }


def _costs(tokens: FloatArray, by_confidence: FloatArray, by_consensus: FloatArray) -> dict[str, float]:
    """Mean tokens a problem, and the shares that were saved of what the whole budget would have cost."""
    whole = max(1e-9, float((tokens + by_confidence + by_consensus).sum()))
    return {
        "tokens": float(tokens.mean()),
        "saved_by_confidence": float(by_confidence.sum()) / whole,
        "saved_by_consensus": float(by_consensus.sum()) / whole,
    }


def measured_point(online: Sequence[Row], settings: OnlineSettings, seed: int) -> dict[str, Any]:
    """The online run as it was: accuracy of the vote that decided, and under `votes` of each other."""
    names = list(online[0]["votes"])
    right = np.array([[float(row["votes"][name]["right"]) for name in names] for row in online])  # (P, votes)
    votes = {name: point(found) for name, found in zip(names, estimate_means(right, seed), strict=True)}
    columns = ("tokens", "tokens_saved_by_confidence", "tokens_saved_by_consensus")
    tokens, by_confidence, by_consensus = (np.array([row[key] for row in online], dtype=float) for key in columns)
    return {
        "method": "online",
        "budget": settings.num_traces,
        "measure": settings.measure,
        "keep_share": settings.keep_share,
        "is_measured": True,
        "accuracy": votes[settings.trace_score],
        "against_majority": None,
        **_costs(tokens, by_confidence, by_consensus),
        "on_front": False,
        "votes": votes,
        "num_problems": len(online),
        "num_stopped": int(sum(row["num_stopped"] for row in online)),
        "ended_by_consensus_share": float(np.mean([row["ended_by"] == "consensus" for row in online])),
    }


def pareto_front(costs: Sequence[tuple[float, float]]) -> set[int]:
    """Which of (tokens, accuracy) no other beats: none is as cheap and better, or as good and cheaper.

    Of equals all are on it.
    """
    return {
        index
        for index, (tokens, accuracy) in enumerate(costs)
        if not any(
            other_tokens <= tokens and other >= accuracy and (other_tokens, other) != (tokens, accuracy)
            for other_tokens, other in costs
        )
    }


def _within(problems: Sequence[Sequence[ScoredTrace]], score: str, measure: str, seed: int) -> dict[str, Any] | None:
    """AUC within a problem, its mean over the problems that have right and wrong traces; None where none has."""
    aucs = auc_within(problems, score, measure).by_problem
    known = aucs[~np.isnan(aucs)]
    if not known.size:
        return None
    bounds = float(known.min()), float(known.max())  # a kind of problem not seen is no stranger than those that are
    return point(estimate_mean(known, seed, bounds)) | {"num_problems": len(known)}
