"""How many pairs each judge has settled within how long, as SVG beside the page."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from falcon_h1r.benchmark.plot import COLOURS, STYLE, svg_of

Curves = dict[str, Sequence[float]]  # judge -> seconds


def latency_plot(panels: dict[str, Curves]) -> str | None:
    """One panel a kind of pairs; None where nothing was measured."""
    panels = {title: curves for title, curves in panels.items() if any(curves.values())}
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 2.6), layout="constrained")
        drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, curves) in zip(drawn, panels.items(), strict=True):
            _draw(axes, title, curves)
        drawn[0].set_ylabel("share of pairs settled")
        return svg_of(figure)


def _draw(axes: Axes, title: str, curves: Curves) -> None:
    """Cumulative shares over milliseconds."""
    for (name, seconds), colour in zip(curves.items(), COLOURS, strict=False):
        if seconds:
            axes.ecdf([1000 * value for value in seconds], color=colour, label=name, linewidth=1.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("ms")
    axes.grid(linewidth=0.4)
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False, fontsize=7.5, loc="lower right")
