"""suite=plan: train every configuration for two steps, and hold its measured peak beside the plan's."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.tables import table
from falcon_h1r.config import Config
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.measure import MeasuredRun, MeasurementFailed, measure, predicted
from falcon_h1r.tracking import Tracker, environment_versions
from falcon_h1r.types import InputError

BAR = 0.10  # how far a prediction may be from what is measured
MIB = 1 << 20


def measured_runs(settings: BenchmarkSuiteConfig, architecture: Mapping[str, Any]) -> list[MeasuredRun]:
    """Those of `benchmark.plan_runs`, in order; each may change fields of the architecture.

    Raises:
        InputError: where a run has a field that `MeasuredRun` does not know.
    """
    known = {item.name for item in fields(MeasuredRun)} - {"name"}
    common = dict(architecture)
    common |= {"vocab_size": settings.vocab_size} if settings.vocab_size else {}
    common |= {"num_hidden_layers": settings.num_layers} if settings.num_layers else {}
    runs = []
    for name, given in settings.plan_runs.items():
        if unknown := sorted(set(given) - known):
            raise InputError(f"benchmark.plan_runs.{name}.{unknown[0]}: not one of {', '.join(sorted(known))}")
        own = {**common, **given.get("architecture", {})}
        runs.append(MeasuredRun(name=name.replace("_", " "), **{**given, "architecture": own}))
    if not runs:
        raise InputError("benchmark.plan_runs is empty: name the configurations to measure")
    return runs


def run_plan_suite(config: Config, folder: Path, device: torch.device) -> None:
    """Measure, and write the page with its figures."""
    settings = config.benchmark
    runs = measured_runs(settings, config.model.architecture)
    figures: dict[str, Any] = {
        "environment": environment(device),
        "revision": environment_versions()["git_revision"],
        "command": command_line(),
        "runs": [],
    }
    with (
        Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker,
        tracker.progress(len(runs), "benchmark", "configurations") as progress,
    ):
        for run in runs:
            figures["runs"].append(_measured(run, device.type, settings.max_seconds))
            print(_line(figures["runs"][-1]), flush=True)
            progress.advance(1)
    path = Path(settings.page)
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    path.write_text(render_page(figures))


def _measured(run: MeasuredRun, backend: str, max_seconds: float) -> dict[str, Any]:
    estimate, started = predicted(run, backend), time.monotonic()
    row: dict[str, Any] = {"run": asdict(run), "moment": estimate.moment, "predicted_bytes": estimate.peak_bytes}
    row["parts"] = asdict(estimate.parts)
    try:
        row["measured_bytes"] = measure(run, max_seconds).peak_bytes
    except MeasurementFailed as failure:
        row["reason"] = str(failure)
    return row | {"seconds": time.monotonic() - started}


def ratio(row: Mapping[str, Any]) -> float | None:
    """Predicted over measured; None where nothing was measured."""
    return row["predicted_bytes"] / row["measured_bytes"] if "measured_bytes" in row else None


def _line(row: Mapping[str, Any]) -> str:
    share = ratio(row)
    name, seconds = row["run"]["name"], row["seconds"]
    if share is None:
        return f"{name}: {row['reason']}"
    return f"{name}: predicted {row['predicted_bytes'] / MIB:.0f} MiB, {share:.3f} of measured, {seconds:.0f} s"


# -----------------------------------------------------------------------------
# The page


def render_page(figures: Mapping[str, Any]) -> str:
    """Markdown, from the figures alone."""
    rows, ran_on = figures["runs"], figures["environment"]
    ratios = [share for row in rows if (share := ratio(row)) is not None]
    off = [abs(share - 1) for share in ratios]
    within = sum(distance <= BAR for distance in off)
    verdict = "met" if within == len(rows) else "**missed**"
    lines = [
        "# Memory as planned, and as measured",
        "",
        f"    {figures['command']}",
        "",
        f"- hardware: {ran_on['hardware']}",
        f"- torch {ran_on['torch']}, transformers {ran_on['transformers']}; revision {figures['revision']}",
        f"- {within} of {len(rows)} configurations within {BAR:.0%} (bar: all of them: {verdict})",
    ]
    if off:
        lines.append(f"- furthest off: {max(off):.1%}; on average: {sum(off) / len(off):.1%}")
    how = {
        "cpu": "Peaks are of the resident set beyond what a process held before the model, of the fullest rank.",
        "cuda": "Peaks are torch's count of bytes in tensors beyond what was there before the model, of the fullest.",
    }[ran_on["device"]]
    lines += [
        "",
        how,
        "Two real optimizer steps each, random weights and tokens, in fresh processes",
        "(`falcon_h1r/planning/measure.py`); the formulas are in [plan.md](../plan.md). MiB:",
        "",
        *table(
            ("configuration", "row", "layout", "highest at", "planned", "measured", "planned / measured"),
            [_cells(row) for row in rows],
        ),
        "By part, as planned, MiB at the peak:",
        "",
        *table(
            ("configuration", *rows[0]["parts"]),
            [[row["run"]["name"], *(f"{part / MIB:,.0f}" for part in row["parts"].values())] for row in rows],
        ),
    ]
    if ran_on["device"] == "cpu":
        lines += [
            "**Not measured: a GPU.** Its kernels' working memory, its buckets and what NCCL takes are reckoned, not",
            "checked; `python recipes/benchmark.py suite=plan_gpu` checks the first, on one GPU.",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    run, share = row["run"], ratio(row)
    documents = f"{run['num_documents']} {'mixed' if run['mixed'] else 'equal'}" if run["num_documents"] > 1 else "1"
    measured = f"{row['measured_bytes'] / MIB:,.0f}" if share is not None else row["reason"]
    shown = "–" if share is None else (f"{share:.3f}" if abs(share - 1) <= BAR else f"**{share:.3f}**")
    return [
        run["name"],
        f"{run['row_tokens']:,} ({documents})",
        _layout_of(run),
        row["moment"],
        f"{row['predicted_bytes'] / MIB:,.0f}",
        measured,
        shown,
    ]


def _layout_of(run: Mapping[str, Any]) -> str:
    layout = Layout(
        num_gpus=run["num_ranks"],
        row_tokens=run["row_tokens"],
        engine=run["engine"],
        zero_stage=run["zero_stage"],
        sequence_parallel=run["sequence_parallel"],
        checkpointing=run["checkpointing"],
    )
    ranks = "1 rank" if run["num_ranks"] == 1 else f"{run['num_ranks']} ranks"
    lora = f", LoRA {run['lora_rank']}" if run["lora_rank"] else ""
    return f"{ranks}, {run['dtype']}, {layout.describe()}{lora}"
