"""suite=distributed: every layout's gradient and losses against one process in float64, and the page with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.layouts import (
    LAYOUTS,
    LENGTHS,
    REFERENCE,
    Layout,
    gradient_error,
    loss_error,
    naive_gradients,
    run_layout,
)
from falcon_h1r.benchmark.tables import NONE, table
from falcon_h1r.config import Config
from falcon_h1r.tracking import Tracker, environment_versions

NUM_STEPS = 20
BOUNDS = {"float64": (1e-10, 1e-9), "float32": (1e-5, 1e-5)}  # of the gradient's and the losses' errors


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a layout is from the reference."""

    name: str
    dtype: str
    gradient: float
    losses: float | None  # null: of a gradient alone


def run_layouts_suite(config: Config, folder: Path) -> None:
    """Measure every layout, one after the other, and write the page."""
    architecture = {**config.model.architecture, "vocab_size": config.model.tokenizer_vocab_size}
    layouts = [replace(layout, dtype=dtype) for layout in LAYOUTS for dtype in dtypes_of(layout)]
    with (
        Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker,
        tracker.progress(1 + len(layouts), "benchmark", "layouts") as progress,
    ):
        reference = run_layout(replace(REFERENCE, dtype="float64"), architecture, NUM_STEPS)
        progress.advance()
        agreements = []
        for layout in layouts:
            result = run_layout(layout, architecture, NUM_STEPS)
            gradient = gradient_error(result.gradients, reference.gradients)
            losses = loss_error(result.losses, reference.losses)
            agreements.append(Agreement(layout.name, layout.dtype, gradient, losses))
            progress.advance(1, gradient_error=gradient)
        naive = [
            Agreement(name, "float64", gradient_error(naive_gradients(architecture, *how), reference.gradients), None)
            for name, how in NAIVE
        ]
    Path(config.benchmark.page).write_text(render(agreements, naive))


def dtypes_of(layout: Layout) -> Sequence[str]:
    """DeepSpeed's optimizer computes in float32."""
    return ("float64", "float32") if layout.zero_stage is None else ("float32",)


NAIVE = (
    ("mean of 2 ranks' means", (2,)),
    ("mean of 4 ranks' means", (4,)),
    ("mean of 4 micro-batches' means, on any ranks", (1, True)),
)


def render(agreements: Sequence[Agreement], naive: Sequence[Agreement]) -> str:
    """Markdown."""
    ours = environment(torch.device("cpu"))
    lines = [
        "# A step's gradient, however it is spread",
        "",
        f"One step's {len(LENGTHS)} documents of {min(LENGTHS)} to {max(LENGTHS)} tokens, with difficulty weights from "
        "0.5 to 1.75, in four packed rows; every layout against one process in float64. Gradient: the largest relative "
        f"error of a parameter's gradient (Euclidean norms). Losses: the largest one over {NUM_STEPS} steps.",
        "",
        f"{ours['hardware']} a rank; torch {ours['torch']}, revision {environment_versions()['git_revision']}. Made by",
        "",
        f"    {command_line()}",
        "",
        "## Ours",
        "",
        *table(["layout", "dtype", "gradient", "bound", "losses", "bound"], map(_row, agreements)),
        "ZeRO updates float32 partitions, so float64 is measured without it. A sequence group's ranks share each row.",
        "",
        "## What is usually done",
        "",
        "Each rank, or each micro-batch, divides by its own weights, and the results are averaged. It is another "
        "gradient, in whatever precision: short batches count too much.",
        "",
        *table(["normalisation", "gradient"], ([one.name, f"{one.gradient:.2f}"] for one in naive)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(one: Agreement) -> list[str]:
    gradient_bound, loss_bound = BOUNDS[one.dtype]
    losses = NONE if one.losses is None else f"{one.losses:.1e}"
    return [one.name, one.dtype, f"{one.gradient:.1e}", f"{gradient_bound:.0e}", losses, f"{loss_bound:.0e}"]
