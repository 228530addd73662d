"""One response as a row of samples.jsonl or online.jsonl, and back to what a vote needs of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from falcon_h1r.evaluation.tasks import Judged
from falcon_h1r.scaling.confidence import summarise
from falcon_h1r.scaling.engine import GREEDY_INDEX, ConfidenceSettings, DrawnTrace
from falcon_h1r.scaling.traces import ConfidenceSummary, ScoredTrace
from falcon_h1r.types import Problem, Verdict

Row = dict[str, Any]
Confidence = Mapping[str, ConfidenceSummary]  # by measure
# Of a trace that was stopped for its confidence. It does not vote, so nobody asks.
NOT_JUDGED = Judged(Verdict("undecided", "stopped", "stopped for its confidence, and not judged"), None, None)


def sample_row(problem: Problem, trace: DrawnTrace, judged: Judged, confidence: Confidence) -> Row:
    """One judged response, as it stands in samples.jsonl."""
    is_greedy = trace.sample_index == GREEDY_INDEX
    row: Row = {
        "problem_uid": problem.uid,
        "question": problem.question,
        "gold": problem.answer,
        "family": problem.family,
        "difficulty": problem.difficulty,
        "greedy": is_greedy,
        "sample_index": 0 if is_greedy else trace.sample_index,
        "response": trace.text,
        "prediction": judged.prediction,
        "answer_key": judged.answer_key,
        "status": judged.verdict.status,
        "stage": judged.verdict.stage,
        "reason": judged.verdict.reason,
        "response_tokens": trace.num_tokens,
        "stop_reason": trace.stop_reason,
    }
    if confidence:
        row["confidence"] = {measure: _summary_row(summary) for measure, summary in confidence.items()}
    return row


def online_row(
    problem: Problem, trace: DrawnTrace, judged: Judged, confidence: Confidence, threshold: float | None, stopped: bool
) -> Row:
    """The same of a trace that the online algorithm drew: what it was held to, and whether it fell below."""
    return {**sample_row(problem, trace, judged, confidence), "was_stopped": stopped, "threshold": threshold}


def confidence_of(trace: DrawnTrace, settings: ConfidenceSettings | None) -> Confidence:
    """Empty where nothing was measured."""
    if settings is None:
        return {}
    return {
        measure: summarise(values, settings.window_tokens, settings.partial_window)
        for measure, values in trace.confidences.items()
    }


def _summary_row(summary: ConfidenceSummary) -> Row:
    scores = {name: getattr(summary, name) for name in ("mean", "bottom_10", "lowest_group", "tail")}
    # A trace of no tokens has NaN for every score, which JSON lacks.
    return {
        **{name: None if math.isnan(score) else float(score) for name, score in scores.items()},
        "minima": [[int(token), float(lowest)] for token, lowest in summary.minima],
    }


def scored_trace(row: Mapping[str, Any]) -> ScoredTrace:
    """What votes and stops look at, bit for bit as it was written."""
    was_stopped = row.get("was_stopped", False)
    return ScoredTrace(
        sample_index=row["sample_index"],
        answer=row["answer_key"],
        num_tokens=row["response_tokens"],
        was_stopped=was_stopped,
        confidence={measure: _summary_of(values) for measure, values in row.get("confidence", {}).items()},
        is_right=None if was_stopped else row["status"] == "correct",
    )


def _summary_of(values: Mapping[str, Any]) -> ConfidenceSummary:
    scores = {name: math.nan if value is None else value for name, value in values.items() if name != "minima"}
    return ConfidenceSummary(**scores, minima=tuple((token, lowest) for token, lowest in values["minima"]))
