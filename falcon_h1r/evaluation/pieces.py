"""What an evaluation is cut into: pieces that one process does at a time, and what is missing of each.

A piece is a block of one problem's samples (with the first goes the greedy answer), so that they share the reading of
the prompt, or all that online DeepConf draws for one problem, since its waves follow from each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.rows import scored_trace
from falcon_h1r.evaluation.store import GREEDY, ONLINE, SAMPLES, RowKey, Store
from falcon_h1r.evaluation.tasks import Task
from falcon_h1r.scaling.engine import GREEDY_INDEX, ConfidenceSettings, TraceRequest
from falcon_h1r.scaling.online import OnlineSettings, OnlineVote
from falcon_h1r.types import Problem, content_hash, to_row

SHARED_BY_STAGES = ("budgets", "keep_shares", "measure_confidence", "num_traces")  # of scaling: change no trace


@dataclass(frozen=True, slots=True)
class Piece:
    """Named by the problem's place, for its uid may be no file name."""

    name: str
    problem: Problem
    keys: tuple[RowKey, ...] = ()  # empty: what online DeepConf draws for the problem


@dataclass(frozen=True, slots=True)
class Wanted:
    """A trace to be drawn, and what it is for."""

    piece: Piece
    key: RowKey
    request: TraceRequest


def pieces_of(task: Task, claim_traces: int) -> list[Piece]:
    """In the order in which they are begun."""
    pieces = []
    for place, problem in enumerate(task.problems):
        keys = [RowKey(SAMPLES, problem.uid, index) for index in range(task.settings.num_samples)]
        blocks = [keys[start : start + claim_traces] for start in range(0, len(keys), claim_traces)] or [[]]
        if task.greedy:
            blocks[0].append(RowKey(GREEDY, problem.uid, 0))
        for number, block in enumerate(filter(None, blocks)):
            pieces.append(Piece(f"{place:06d}-samples-{number:04d}", problem, tuple(block)))
    if task.num_traces:
        pieces += [Piece(f"{place:06d}-online", problem) for place, problem in enumerate(task.problems)]
    return pieces


def num_rows(task: Task) -> int:
    """How many there are in the end, or fewer where consensus ends online DeepConf early."""
    return len(task.problems) * (task.settings.num_samples + task.greedy + task.num_traces)


def replayed(rows: Mapping[int, Mapping[str, Any]], scaling: ScalingConfig, num_traces: int) -> OnlineVote:
    """Online DeepConf of one problem, as far as its rows (by sample index) lead."""
    vote = OnlineVote(OnlineSettings.of(scaling, num_traces))
    while ready := [index for index in vote.next_wave() if index in rows]:
        for index in ready:
            vote.ended(scored_trace(rows[index]))
    return vote


def missing_of(piece: Piece, task: Task, scaling: ScalingConfig, store: Store) -> list[Wanted]:
    """What can be drawn now of what the store does not have; empty: the piece is done."""
    if piece.keys:
        return [wanted_sample(piece, key, task) for key in piece.keys if key not in store]
    vote = replayed(store.online.get(piece.problem.uid, {}), scaling, task.num_traces)
    settings = replace(task.settings, temperature=scaling.temperature, top_p=scaling.top_p)
    # The seeds of samples: of one temperature they are the same traces, and the same replayed.
    request = TraceRequest(piece.problem, 0, settings, task.system_prompt, task.prompt, vote.stop)
    return [
        Wanted(piece, RowKey(ONLINE, piece.problem.uid, index), replace(request, sample_index=index))
        for index in vote.next_wave()
    ]


def wanted_sample(piece: Piece, key: RowKey, task: Task) -> Wanted:
    settings, index = task.settings, key.sample_index
    if key.kind == GREEDY:
        settings, index = replace(settings, temperature=0.0), GREEDY_INDEX
    return Wanted(piece, key, TraceRequest(piece.problem, index, settings, task.system_prompt, task.prompt))


def asked_of(
    task: Task,
    scaling: ScalingConfig,
    confidence: ConfidenceSettings | None,
    claim_traces: int,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the rows depend on: an evaluation goes on only as it was begun.

    Args:
        others: what a task does not know: the model and its weights, the settings of the verifier.
    """
    problems = [to_row(problem) for problem in task.problems]
    asked: dict[str, Any] = {
        **others,
        "problems": {"number": len(problems), "digest": content_hash(repr(problems))},
        "sampling": asdict(task.settings),
        "prompt": task.prompt,
        "system_prompt": task.system_prompt,
        "scorer": task.scorer,
        "greedy": task.greedy,
        "confidence": asdict(confidence) if confidence is not None else None,
        "num_traces": task.num_traces,
        "evaluate.work.claim_traces": claim_traces,
    }
    if task.num_traces:
        settings = {name: value for name, value in asdict(scaling).items() if name not in SHARED_BY_STAGES}
        asked["scaling"] = settings
    return asked
