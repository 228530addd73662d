"""From the rows of all processes to the files of an evaluation: the same whoever drew what, and in which order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.evaluation.pieces import replayed
from falcon_h1r.evaluation.store import GREEDY, ONLINE, PARTS, SAMPLES, RowKey, Store
from falcon_h1r.evaluation.tasks import Task
from falcon_h1r.scaling.online import OnlineResult

Row = dict[str, Any]
SAMPLES_FILE, ONLINE_FILE, ONLINE_SUMMARY_FILE = "samples.jsonl", "online.jsonl", "online_summary.jsonl"


def merge_task(folder: Path, task: Task, scaling: ScalingConfig) -> None:
    """Write samples.jsonl, and with a budget online.jsonl and online_summary.jsonl, of a task that misses nothing.

    Rows are ordered by problem, samples before the greedy answer.
    """
    with Store(folder / PARTS, "merge") as store:
        store.refresh()
        write_jsonl(folder / SAMPLES_FILE, (store.row(key) for key in _sample_keys(task)))
        if task.num_traces:
            results = {
                problem.uid: replayed(store.online[problem.uid], scaling, task.num_traces).result()
                for problem in task.problems
            }
            keys = (
                RowKey(ONLINE, uid, trace.sample_index) for uid, result in results.items() for trace in result.traces
            )
            write_jsonl(folder / ONLINE_FILE, (store.row(key) for key in keys))
            write_jsonl(folder / ONLINE_SUMMARY_FILE, (_result_row(uid, result) for uid, result in results.items()))


def _sample_keys(task: Task) -> Iterator[RowKey]:
    for problem in task.problems:
        for index in range(task.settings.num_samples):
            yield RowKey(SAMPLES, problem.uid, index)
        if task.greedy:
            yield RowKey(GREEDY, problem.uid, 0)


def _result_row(uid: str, result: OnlineResult) -> Row:
    return {
        "problem_uid": uid,
        "num_traces": result.num_traces,
        "num_stopped": result.num_stopped,
        "tokens": result.tokens,
        "threshold": result.threshold,
        "consensus": result.consensus,
        "ended_by": result.ended_by,
        "votes": {name: {"answer": vote.winner, "right": vote.right} for name, vote in result.votes.items()},
        "tokens_saved_by_confidence": result.tokens_saved_by_confidence,
        "tokens_saved_by_consensus": result.tokens_saved_by_consensus,
    }


def remove_parts(folder: Path) -> None:
    """What was merged. Renamed first, so that a process that comes late finds all of it or nothing."""
    aside = folder / f".{PARTS}.merged"
    with suppress(FileNotFoundError):
        (folder / PARTS).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
