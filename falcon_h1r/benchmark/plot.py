"""Tokens per second over row lengths, as SVG beside the page."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from falcon_h1r.benchmark.figures import Figures, Result, paths_of, result_of

TITLES = {"one": "one document", "eight": "eight documents", "mixed": "log-normal mix"}
COLOURS = ("#1f5fa8", "#c0562f")  # ours, transformers
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "falcon_h1r",
    "svg.fonttype": "none",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def lengths_plot(figures: Figures) -> str | None:
    """One panel a layout; None where fewer than two lengths were measured."""
    curves = {layout: _curves(figures, layout) for layout in TITLES}
    curves = {layout: found for layout, found in curves.items() if any(len(points) > 1 for points in found.values())}
    if not curves:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(curves), 2.5), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axes, (layout, found) in zip(panels, curves.items(), strict=True):
            _draw(axes, TITLES[layout], found)
        highest = max(speed for found in curves.values() for points in found.values() for _, speed in points)
        panels[0].set_ylim(0.0, 1.05 * highest)  # of all panels: they share the axis
        panels[0].set_ylabel("tokens/s, forward and backward")
        return svg_of(figure)


def svg_of(figure: Figure) -> str:
    """The same text for the same figure, within `STYLE`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _curves(figures: Figures, layout: str) -> dict[str, list[tuple[int, float]]]:
    """path -> (tokens of the row, tokens a second)."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for case in figures.of_part("lengths"):
        for path in paths_of(case) if case["layout"] == layout else []:
            result = result_of(case, path)
            if isinstance(result, Result):
                tokens = case["num_tokens"]
                curves.setdefault(path, []).append((tokens, tokens / result.training_seconds))
    return curves


def _draw(axes: Axes, title: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    for index, (path, points) in enumerate(curves.items()):
        name = path if index == 0 else f"transformers, {path}"
        axes.plot(*zip(*points, strict=True), marker="os"[index], markersize=3.5, color=COLOURS[index], label=name)
    lengths = sorted({length for points in curves.values() for length, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length / 1024:g}k" for length in lengths], rotation=60)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", linewidth=0.4)
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False, fontsize=7.5)
