"""An evaluation from tasks to summaries: every process draws, and the main one writes what all of them have drawn.

FOLDER/samples.jsonl           one row a response: the samples, and the greedy answers
FOLDER/online.jsonl            the traces of online DeepConf; online_summary.jsonl: one row a problem
FOLDER/summary.json            accuracies and costs; written last, so where it is the evaluation has ended
FOLDER/page.html               the same to look at
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from falcon_h1r.checkpoint.stopping import gather_unless_stopped
from falcon_h1r.config import Config
from falcon_h1r.config_evaluate import BenchmarkConfig
from falcon_h1r.data.jsonl import new_file, read_jsonl
from falcon_h1r.evaluation.benchmark_groups import group_averages
from falcon_h1r.evaluation.benchmarks import bridges
from falcon_h1r.evaluation.merge import ONLINE_SUMMARY_FILE, SAMPLES_FILE, merge_task, remove_parts
from falcon_h1r.evaluation.metrics import VOTES, differences, summarise, votes_of
from falcon_h1r.evaluation.run import run_task
from falcon_h1r.evaluation.scaling_curves import scaling_summary
from falcon_h1r.evaluation.scorers import open_scorer
from falcon_h1r.evaluation.store import SUMMARY_FILE, TEXTS, is_ended
from falcon_h1r.evaluation.tasks import Task, TaskScorer
from falcon_h1r.scaling.engine import TraceEngine
from falcon_h1r.tracking import Tracker
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World

Row = dict[str, Any]
Ended = Callable[[Path, Task], None]


def evaluate_tasks(
    config: Config,
    tasks: Mapping[Path, Task],
    engine: TraceEngine,
    others: Mapping[str, Any],
    world: World,
    tracker: Tracker,
    ended: Ended,
) -> None:
    """Draw what is missing of each task into its folder, together with whoever else does.

    Several tasks are gone through twice: first whatever nobody has claimed, so that no process waits for another while
    there is work in a later task; then the rest is waited for, or taken over from those that are gone.

    Args:
        others: see `what_draws_and_judges`.
        ended: called on the main process, unless `evaluate.work.merge` is off, with each task that misses nothing.

    Raises:
        StopRequested: on every rank.
    """
    work = config.evaluate.work
    passes = [False] * (not work.merge or len(tasks) > 1) + [True] * work.merge  # whether it waits

    def own_part() -> None:
        with ExitStack() as stack:
            scorers: dict[str, TaskScorer] = {}
            for wait in passes:
                for folder, task in tasks.items():
                    if is_ended(folder):
                        continue
                    if task.scorer not in scorers:
                        scorers[task.scorer] = open_scorer(task.scorer, config.verifier)
                        stack.callback(scorers[task.scorer].close)
                    is_whole = run_task(
                        engine,
                        scorers[task.scorer],
                        task,
                        config.scaling,
                        folder,
                        work,
                        others=others,
                        wait=wait,
                        num_processes=world.size,
                        watch=world.watch,
                        show=lambda total, done, name=task.name: tracker.progress(  # type: ignore[misc]
                            total, f"evaluate {name}", "answers", done
                        ),
                    )
                    if is_whole and work.merge and world.is_main:
                        with world.watch.long("summarising"):
                            ended(folder, task)

    gather_unless_stopped(world, own_part)


# -----------------------------------------------------------------------------
# What a task ends with


def finish_task(config: Config, folder: Path, task: Task, description: str) -> dict[str, Any]:
    """Merge the rows and write the summary. Another process may have been faster: then its own is read.

    Args:
        description: of the engine.
    """
    try:
        merge_task(folder, task, config.scaling)
    except FileNotFoundError:
        if not is_ended(folder):
            raise
    if not is_ended(folder):
        summary = summarise_task(config, folder, task, description)
        write_summary(folder, summary)
    return read_summary(folder)


def summarise_task(config: Config, folder: Path, task: Task, description: str) -> dict[str, Any]:
    """Accuracies with intervals, costs, scaling, differences, and beside them what is published."""
    samples = list(light_rows(folder / SAMPLES_FILE))
    votes = list(light_rows(folder / ONLINE_SUMMARY_FILE)) if task.num_traces else []
    summary: dict[str, Any] = {}
    if samples:
        summary |= summarise(samples, k=min(VOTES, votes_of(samples)), seed=config.seed)
    if scaling := scaling_summary(samples, votes, config.scaling, task.num_traces, config.seed):
        summary["scaling"] = scaling
    if config.evaluate.compare_with is not None:
        other = compared_folder(config, task) / SAMPLES_FILE
        summary["compared_with"] = config.evaluate.compare_with
        summary["differences"] = _differences(samples, list(light_rows(other)), config.seed)
    summary["engine"] = description
    if task.notes:
        summary["notes"] = list(task.notes)
    for name in ("reference_score", "reference_scaled_score", "reference_scaled_tokens"):
        if (published := getattr(task, name)) is not None:
            summary[name] = published
    return summary


def light_rows(path: Path) -> Iterator[Row]:
    """Rows without their texts, which are most of them."""
    for _, row in read_jsonl(path):
        yield {name: value for name, value in row.items() if name not in TEXTS}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Whole or not at all, whoever else writes it."""
    with new_file(folder / SUMMARY_FILE) as file:
        file.write((json.dumps(summary, indent=2) + "\n").encode())


def read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    return summary


# -----------------------------------------------------------------------------
# Against another evaluation


def compared_folder(config: Config, task: Task) -> Path:
    """Where the other evaluation has this task."""
    assert config.evaluate.compare_with is not None
    other = Path(config.evaluate.compare_with)
    return other / task.name if config.evaluate.benchmarks else other


def check_comparison(config: Config, tasks: Mapping[Path, Task]) -> None:
    """Before anything is drawn.

    Raises:
        InputError: where the other evaluation has not ended, or was one of other problems.
    """
    if config.evaluate.compare_with is None:
        return
    for task in tasks.values():
        folder = compared_folder(config, task)
        for file in (SUMMARY_FILE, SAMPLES_FILE):
            if not (folder / file).is_file():
                raise InputError(f"evaluate.compare_with={config.evaluate.compare_with}: {folder} holds no {file}")
        found = {row["problem_uid"] for row in light_rows(folder / SAMPLES_FILE)}
        if found != (wanted := {problem.uid for problem in task.problems}):
            raise InputError(
                f"evaluate.compare_with={config.evaluate.compare_with}: {task.name} has {len(wanted)} problems, "
                f"{len(wanted & found)} of them among the {len(found)} there; differences are paired by problem"
            )


def _differences(samples: list[Row], others: list[Row], seed: int) -> dict[str, dict[str, float]]:
    if not samples or not others:
        return {}
    return differences([(samples, others)], k=min(VOTES, votes_of(samples), votes_of(others)), seed=seed)


# -----------------------------------------------------------------------------
# What a run ends with


def finish_run(config: Config, folder: Path) -> None:
    """Write the page, and of several benchmarks the summary over all that have ended; remove what was merged."""
    from falcon_h1r.evaluation.evaluation_page import write_page

    if config.evaluate.benchmarks:
        chosen = {name: folder / name for name in config.evaluate.benchmarks if is_ended(folder / name)}
        for path in chosen.values():
            write_page(path)
            remove_parts(path)
        write_summary(folder, summarise_run(config, {name: read_summary(path) for name, path in chosen.items()}))
    write_page(folder)
    remove_parts(folder)


def _is_cut(benchmark: BenchmarkConfig, summary: Mapping[str, Any]) -> bool:
    """Whether only its first problems were asked: no score to average beside published ones."""
    return benchmark.num_problems is not None and summary["num_problems"] >= benchmark.num_problems


def summarise_run(config: Config, summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of all benchmarks, what is published of those asked for that are bridged, and averages over groups.

    A benchmark of which only the first problems were asked counts in no group.
    """
    benchmarks: dict[str, dict[str, Any]] = {}
    commands = bridges(config.evaluate)
    for name, benchmark in config.evaluate.benchmarks.items():
        if name in summaries:
            benchmarks[name] = dict(summaries[name])
        elif name in commands:
            benchmarks[name] = {"bridge": commands[name], "reference_score": benchmark.reference_score}
    scores = {
        name: found["pass_at_1"]
        for name, found in summaries.items()
        if "pass_at_1" in found and not _is_cut(config.evaluate.benchmarks[name], found)
    }
    groups = [
        {
            "name": group.name,
            "num_run": group.num_run,
            "num_all": group.num_run + len(group.missing),
            "ours": None if group.average is None or not group.is_complete else 100 * group.average,
            "reference": group.reference_score,
        }
        for group in group_averages(config.evaluate.groups, scores)
    ]
    engines = list(dict.fromkeys(found["engine"] for found in summaries.values()))
    return {"benchmarks": benchmarks, "groups": groups, "engine": "; ".join(engines)}
