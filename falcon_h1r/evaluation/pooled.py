"""Several seeds of the pipeline in one table: what one seed's interval does not say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from falcon_h1r.evaluation.metrics import VOTES, differences, votes_of
from falcon_h1r.evaluation.run_folder import read_rows
from falcon_h1r.types import InputError

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
        tuple(read_rows(Path(run) / "evaluate" / model / "samples.jsonl") for model in ("grpo", "sft")) for run in runs
    ]
    votes = min(VOTES, *(votes_of(rows) for pair in pairs for rows in pair))
    pooled = differences([(after, before) for after, before in pairs], k=votes, seed=0)
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
    return "\n".join(lines) + "\n"
