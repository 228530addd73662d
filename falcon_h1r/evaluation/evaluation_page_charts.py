"""The plots of the evaluation page: accuracy against tokens, curves over k, distributions. See charts.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from falcon_h1r.evaluation.charts import INK, MUTED, PAPER, RULE, SERIES, STYLE, Interval, percent_tick, to_svg

NUM_BINS = 32
LEGEND_ROW_INCHES = 0.17


@dataclass(frozen=True, slots=True)
class CostSeries:
    """One method at its budgets: mean tokens a problem, and accuracy."""

    name: str
    tokens: Sequence[float]
    accuracies: Sequence[Interval]
    series: int  # of the page's colours
    marker: str
    line: str = "-"  # matplotlib's style; "" draws none
    is_measured: bool = False  # drawn larger, above what is replayed

    @property
    def costs(self) -> list[tuple[float, float]]:
        return [(tokens, found.value) for tokens, found in zip(self.tokens, self.accuracies, strict=True)]


@dataclass(frozen=True, slots=True)
class Values:
    """What a distribution is drawn of."""

    name: str
    colour: str
    values: NDArray[np.float64]


def cost_chart(methods: Sequence[CostSeries], front: Sequence[tuple[float, float]], label: str) -> str:
    """Accuracy against generated tokens, a logarithmic axis, with intervals; the Pareto front as steps.

    Methods that cost the same are drawn side by side, a hundredth of the axis apart.
    """
    names = len(methods) + bool(front)
    legend_inches = LEGEND_ROW_INCHES * -(-names // 3) + 0.08
    height = 3.1 + legend_inches
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, height))
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.085, right=0.985, bottom=(0.45 + legend_inches) / height, top=0.985)
        axes.set_xscale("log")
        if front:
            steps = sorted(front)
            axes.step(
                *zip(*steps, strict=True), where="post", color=INK, linewidth=1.1, alpha=0.5, label="Pareto front"
            )
        every_token = [tokens for method in methods for tokens in method.tokens]
        apart = max(1.002, (max(every_token) / max(1.0, min(every_token))) ** 0.01) if every_token else 1.0
        taken: set[float] = set()
        for method in methods:
            _draw_costs(axes, method, apart, taken)
        _cost_axes(axes)
        figure.legend(
            loc="lower center",
            ncol=3,
            frameon=False,
            fontsize=8,
            handlelength=1.9,
            columnspacing=1.6,
            borderaxespad=0.1,
        )
        return to_svg(figure, label)


def _draw_costs(axes: Axes, method: CostSeries, apart: float, taken: set[float]) -> None:
    colour = SERIES[method.series % len(SERIES)]
    places = []
    for tokens in method.tokens:
        place = max(1.0, tokens)
        while round(place, 6) in taken:
            place *= apart
        taken.add(round(place, 6))
        places.append(place)
    for place, accuracy in zip(places, method.accuracies, strict=True):
        axes.plot([place, place], [accuracy.low, accuracy.high], color=colour, linewidth=1.3, alpha=0.4)
    axes.plot(
        places,
        [accuracy.value for accuracy in method.accuracies],
        method.marker,
        linestyle=method.line or "none",
        linewidth=1.2,
        color=colour,
        markersize=11 if method.is_measured else 5.2,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        zorder=5 if method.is_measured else 3,
        label=method.name,
    )


def _cost_axes(axes: Axes) -> None:
    axes.margins(x=0.05, y=0.06)
    axes.yaxis.grid(True, color=RULE, linewidth=0.6)
    axes.xaxis.grid(True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.015), min(high, 1.015))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    _token_axis(axes)
    axes.set_xlabel("tokens generated, a problem")


def _token_axis(axes: Axes) -> None:
    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    if decades < 0.8:  # too little for ticks at 1, 2 and 5 alone
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        subs = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 4 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(10, subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(token_tick))


def token_tick(value: float, _: object = None) -> str:
    """12,000 as 12k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def k_chart(curves: Mapping[str, Sequence[Mapping[str, Any]]], label: str) -> str:
    """pass@k and maj@k over k, doubling, with bands for the intervals. curves: name -> rows of k, value, low, high."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.35, 2.2))
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.135, right=0.985, bottom=0.2, top=0.965)
        axes.set_xscale("log", base=2)
        ks = sorted({row["k"] for rows in curves.values() for row in rows})
        for index, (name, rows) in enumerate(curves.items(), start=1):
            colour = SERIES[index % len(SERIES)]
            at = [row["k"] for row in rows]
            lows, highs = [row["low"] for row in rows], [row["high"] for row in rows]
            axes.fill_between(at, lows, highs, color=colour, alpha=0.16, linewidth=0)
            axes.plot(at, [row["value"] for row in rows], "o-", color=colour, linewidth=1.6, markersize=3.2, label=name)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        _bare(axes)
        axes.set_xlabel("k")
        axes.legend(frameon=False, fontsize=8, handlelength=1.4, borderaxespad=0.2)
        return to_svg(figure, label)


def distribution_chart(
    groups: Sequence[Values], label: str, axis: str, *, log_axis: bool = False, of_all: bool = False
) -> str:
    """Histograms over each other, in shares of each group (ten are as tall as a thousand) or, `of_all`, of them all."""
    shown = [group for group in groups if group.values.size]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.35, 2.0))
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.115, right=0.985, bottom=0.225, top=0.965)
        edges = _edges(np.concatenate([group.values for group in shown]), log_axis)
        if log_axis:
            axes.set_xscale("log")
        for group in shown:
            counts, _ = np.histogram(group.values, edges)
            shares = counts / (sum(other.values.size for other in shown) if of_all else group.values.size)
            axes.stairs(shares, edges, fill=True, color=group.colour, alpha=0.17)
            axes.stairs(shares, edges, color=group.colour, linewidth=1.3)
        if log_axis:
            _token_axis(axes)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        _bare(axes)
        axes.set_xlabel(axis)
        return to_svg(figure, label)


def _edges(values: NDArray[np.float64], log_axis: bool) -> NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    if log_axis:
        low, high = max(low, 1.0), max(high, 1.0)
        return np.geomspace(low, high * 1.0001 if high > low else low * 1.5, NUM_BINS + 1)
    return np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1)


def _bare(axes: Axes) -> None:
    axes.margins(x=0.02)
    axes.yaxis.grid(True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelcolor=MUTED)
