"""Several seeds of the pipeline in one table: what one seed's interval does not say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from falcon_h1r.data.teachers import LEAP
from falcon_h1r.evaluation.intervals import estimate_mean
from falcon_h1r.evaluation.metrics import VOTES, differences, votes_of
from falcon_h1r.evaluation.run_folder import read_rows
from falcon_h1r.types import InputError

Row = dict[str, Any]
MODELS = ("base", "sft", "grpo")


def read_summaries(runs: Sequence[str]) -> list[dict[str, Any]]:
    """The summary.json of every run.

    Raises:
        InputError: where a folder holds no finished pipeline run.
    """
    summaries = []
    for run in runs:
        path = Path(run) / "summary.json"
        if not path.is_file():
            raise InputError(f"benchmark.runs: {run} holds no summary.json, so it is no finished pipeline run")
        summaries.append(json.loads(path.read_text()))
    return summaries


def pooled_page(runs: Sequence[str]) -> str:
    """A Markdown page: each seed's accuracies, and GRPO's paired gains over all seeds together with intervals."""
    summaries = read_summaries(runs)
    pairs = [
        (
            read_rows(Path(run) / "evaluate" / "grpo" / "samples.jsonl"),
            read_rows(Path(run) / "evaluate" / "sft" / "samples.jsonl"),
        )
        for run in runs
    ]
    votes = min(VOTES, *(votes_of(rows) for pair in pairs for rows in pair))
    pooled = differences(pairs, k=votes, seed=0)
    metrics = [name for name in pooled if f"{name}_interval" in summaries[0]["sft"]]
    versions = summaries[0]["versions"]
    lines = [
        "# The quickstart, several seeds",
        "",
        f"`python recipes/benchmark.py benchmark.runs=[{','.join(runs)}]`, from runs of "
        "`python recipes/pipeline.py experiment=quickstart seed=N`.",
        f"Hardware: {versions['processor']}; torch {versions['torch']}, transformers {versions['transformers']}.",
        "",
        "| seed | " + " | ".join(f"{model} {name}" for name in metrics for model in MODELS) + " | seconds | GiB |",
        "|" + "---|" * (3 + len(metrics) * len(MODELS)),
    ]
    for summary in summaries:
        cells = [f"{summary[model][name]:.1%}" for name in metrics for model in MODELS]
        total, peak = summary["wall_seconds"]["total"], summary["peak_memory_gib"]
        lines.append(f"| {summary['seed']} | {' | '.join(cells)} | {total:.0f} | {peak:.2f} |")
    lines += [
        "",
        f"GRPO minus SFT, paired by problem, {len(runs)} seeds together, 95% interval (bootstrap over problems):",
        "",
        "| metric | points | interval |",
        "|---|---|---|",
    ]
    for name in metrics:
        value, low, high = (100 * pooled[name][part] for part in ("value", "low", "high"))
        lines.append(f"| {name} | {value:+.1f} | {low:+.1f} to {high:+.1f} |")
    return "\n".join([*lines, "", *leap_lines(pairs)]) + "\n"


def leap_lines(pairs: Sequence[tuple[list[Row], list[Row]]]) -> list[str]:
    """What of the gain is a habit dropped: shares of answers that leap, and accuracy where working is shown.

    Args:
        pairs: samples (after, before) GRPO, by seed.
    """

    def leaps(row: Row) -> bool:
        return LEAP in row["response"]

    def share(rows: Sequence[Row], holds: Callable[[Row], bool]) -> str:
        return f"{sum(map(holds, rows)) / max(1, len(rows)):.1%}"

    def is_right(row: Row) -> bool:
        return bool(row["status"] == "correct")

    lines = [f"How much of this is dropping the teacher's habit to leap (`{LEAP} ...`), all seeds together:", ""]
    lines += ["| | SFT | GRPO |", "|---|---|---|"]
    after, before = ([row for pair in pairs for row in pair[side]] for side in (0, 1))
    for label, greedy in (("sampled", False), ("greedy", True)):
        own = [[row for row in rows if row["greedy"] is greedy] for rows in (before, after)]
        worked = [[row for row in rows if not leaps(row)] for rows in own]
        lines.append(f"| {label} answers that leap | {share(own[0], leaps)} | {share(own[1], leaps)} |")
        lines.append(
            f"| {label} answers that work: right | {share(worked[0], is_right)} | {share(worked[1], is_right)} |"
        )
    gains = []
    for rows_after, rows_before in pairs:
        greedy_before = {row["problem_uid"]: row for row in rows_before if row["greedy"] and not leaps(row)}
        for row in rows_after:
            if row["greedy"] and not leaps(row) and row["problem_uid"] in greedy_before:
                gains.append(is_right(row) - is_right(greedy_before[row["problem_uid"]]))
    gain = estimate_mean(np.array(gains, dtype=np.float64), seed=0, bounds=(-1.0, 1.0))
    value, low, high = (100 * bound for bound in (gain.value, gain.low, gain.high))
    interval = f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
    return [*lines, "", f"Greedy, paired, on the {len(gains)} problems that both work out: {interval}."]
