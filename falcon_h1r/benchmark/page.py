"""The page of suite=model, drawn from its figures alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from falcon_h1r.benchmark.figures import Figures, figures_path, num_runs
from falcon_h1r.benchmark.plot import lengths_plot
from falcon_h1r.benchmark.sections import (
    lengths_section,
    loss_section,
    model_section,
    row_section,
    scan_alone_section,
    scan_section,
)
from falcon_h1r.benchmark.tables import table

PAGE_OF_GPU = "model_gpu.md"


def write_page(figures: Figures, path: Path) -> None:
    """The page, its figures beside it, and its plot where there is something to draw."""
    figures.write(figures_path(str(path)))
    plot = lengths_plot(figures)
    if plot is not None:
        path.with_suffix(".svg").write_text(plot)
    gpu = path.with_name(PAGE_OF_GPU)
    path.write_text(render(figures, path.with_suffix(".svg").name if plot else None, gpu.exists()))


def render(figures: Figures, plot: str | None, has_gpu_page: bool) -> str:
    """Markdown; parts without figures are left out."""
    sections: list[Callable[[Figures], list[str]]] = [
        lambda figures: _header(figures, has_gpu_page),
        scan_section,
        scan_alone_section,
        model_section,
        lambda figures: lengths_section(figures, plot),
        row_section,
        loss_section,
        _operations,
    ]
    lines = [line for section in sections for line in section(figures)]
    return "\n".join(lines).rstrip() + "\n"


def _header(figures: Figures, has_gpu_page: bool) -> list[str]:
    environment, shape, peak = figures.environment, figures.shape, figures.peak
    architecture = shape["architecture"]
    revisions = sorted({case["revision"] for case in figures.cases.values()})
    fewest, most = num_runs(figures)
    runs = str(most) if fewest == most else f"{fewest} to {most}"
    layers = "layer" if shape["num_layers"] == 1 else "layers"
    size = (
        f"{shape['num_layers']} {layers}, hidden {architecture['hidden_size']}, MLP {architecture['intermediate_size']}"
        f", {architecture['num_attention_heads']} attention heads and {architecture['num_key_value_heads']} KV heads, "
        f"{architecture['mamba_n_heads']} SSM heads of {architecture['mamba_d_head']} with state "
        f"{architecture['mamba_d_state']}, {shape['dtype']}, random weights"
    )
    if shape["num_layers"] < architecture["num_hidden_layers"]:
        size += f". **{shape['num_layers']} of the architecture's {architecture['num_hidden_layers']} layers**, to fit"
    lines = [
        "# Speed and memory of the model",
        "",
        *(f"    {command}" for command in figures.commands),
        "",
        f"- hardware: {environment['hardware']}",
        f"- torch {environment['torch']}, transformers {environment['transformers']}; revision {', '.join(revisions)}",
        f"- model: {size}",
        f"- peak: {peak['flops_per_second'] / 1e9:,.0f} GFLOP/s ({peak['source']}), the denominator of MFU",
        "",
        f"Seconds are medians of {runs} runs that take turns with the other side's, each side in a process of its own.",
        "Memory is the peak beyond weights and inputs, gradients included. transformers runs at its best",
        "`mamba_chunk_size`.",
        "",
    ]
    if environment["device"] == "cpu":
        lines += [
            f"Figures of a GPU: [{PAGE_OF_GPU}]({PAGE_OF_GPU})."
            if has_gpu_page
            else "Figures of a GPU are missing: none was measured. The command is "
            "`python recipes/benchmark.py suite=model_gpu`.",
            "",
        ]
    return lines


def _operations(figures: Figures) -> list[str]:
    case = next((case for part in ("model", "lengths", "row") for case in figures.of_part(part)), None)
    if case is None:
        return []
    flops = case["forward_flops"]
    total = sum(flops.values())
    return [
        "## What MFU counts",
        "",
        "Formulas: `falcon_h1r/benchmark/flops.py`. The scan counts as its recurrence, whatever a chunk costs on top;",
        "attention counts causal pairs within documents; the backward pass is twice the forward; recomputation and",
        "padding count nothing.",
        "",
        f"The forward pass over {case['num_tokens']:,} tokens in {len(case['lengths'])} documents:",
        "",
        *table(
            ("term", "MFLOP a token", "share"),
            [
                [name, f"{count / case['num_tokens'] / 1e6:.3f}", f"{count / total:.1%}"]
                for name, count in flops.items()
            ],
        ),
    ]
