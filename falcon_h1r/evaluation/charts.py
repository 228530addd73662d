"""The report's plots as inline SVG, coloured by the page's CSS variables: light and dark both apply."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# matplotlib draws with stand-in colours; each becomes its CSS variable in the SVG.
INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
RIGHT, WRONG, OPEN = "#060601", "#060602", "#060603"  # verdicts
SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505")
CSS_VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"},
    **{RIGHT: "--right", WRONG: "--wrong", OPEN: "--open"},
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
}
MARKERS = ("s", "D", "o", "^", "v")  # stages differ in shape, too, not in colour alone
MAX_POINTS = 400
DENSE_POINTS = 30  # from here on a curve is drawn faint under its moving average

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "svg.hashsalt": "falcon_h1r",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 8.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """A point to plot with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a learning curve: logged at every step, or at some (evaluations)."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def interval_chart(
    rows: Mapping[str, Mapping[int, Interval]], label: str, *, width_inches: float, as_points: bool = False
) -> str:
    """Dots with intervals: one line of the chart for each row, one dot for each series, by its number.

    Accuracies run from 0 to 100%; `as_points` draws differences, in percentage points around a zero line.
    """
    num_series = 1 + max((max(row, default=0) for row in rows.values()), default=0)
    spacing = 0.19
    height = 0.32 + len(rows) * (0.16 + 0.115 * num_series)
    label_inches = 0.12 + 0.066 * max(map(len, rows), default=0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width_inches, height))
        axes = figure.add_subplot()
        figure.subplots_adjust(
            left=label_inches / width_inches,
            right=1 - 0.2 / width_inches,
            bottom=0.3 / height,
            top=1 - 0.02 / height,
        )
        for line, row in enumerate(rows.values()):
            for position, (series, point) in enumerate(sorted(row.items())):
                y = line + spacing * (position - (len(row) - 1) / 2)
                colour = SERIES[series % len(SERIES)]
                axes.plot([point.low, point.high], [y, y], color=colour, linewidth=1.6, alpha=0.55)
                marker = MARKERS[series % len(MARKERS)]
                axes.plot(point.value, y, marker, color=colour, markersize=5.2, markeredgecolor=PAPER, zorder=3)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), list(rows), color=INK)
        axes.tick_params(length=0)
        axes.xaxis.grid(True, color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["left", "bottom"]].set_visible(False)
        if as_points:
            axes.axvline(0, color=MUTED, linewidth=1)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:+.0f}" if x else "0"))
        else:
            axes.set_xlim(-0.015, 1.015)
            axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        return to_svg(figure, label)


def curve_chart(curves: Sequence[Curve], label: str, *, series: int, is_share: bool, smooth: bool = True) -> str:
    """Learning curves over steps; with `smooth`, dense ones are faint under their moving average.

    The first curve takes the colour of the stage's series, the others the ones that no stage has, then all others.
    """
    own = SERIES[series % len(SERIES)]
    colours = list(dict.fromkeys([own, *SERIES[3:], *SERIES]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.35, 1.9))
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.14, right=0.985, bottom=0.235, top=0.965)
        for index, curve in enumerate(curves):
            _draw_curve(axes, curve, colours[index % len(colours)], smooth)
        axes.margins(x=0.02)
        axes.yaxis.grid(True, color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick if is_share else _number_tick))
        axes.set_xlabel("step")
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8, handlelength=1.2, borderaxespad=0.2)
        return to_svg(figure, label)


def _draw_curve(axes: Axes, curve: Curve, colour: str, smooth: bool) -> None:
    steps, values = _thin(np.asarray(curve.steps, float)), _thin(np.asarray(curve.values, float))
    name, dense = curve.name.replace("_at_", "@").replace("_", " "), len(values) >= DENSE_POINTS
    if dense and smooth:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        values = _moving_average(values, len(values) // 40)
    marker = "" if dense else "o"
    axes.plot(steps, values, color=colour, linewidth=1.7, marker=marker, markersize=3, label=name)


def _thin(values: np.ndarray) -> np.ndarray:
    """At most MAX_POINTS values, each the mean of a run of neighbours."""
    if len(values) <= MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])


def _moving_average(values: np.ndarray, half_width: int) -> np.ndarray:
    """Centred; at the ends over the neighbours that there are."""
    kernel = np.ones(2 * half_width + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def percent_tick(value: float, _: object = None) -> str:
    return f"{100 * value:.3g}%"


def _number_tick(value: float, _: object = None) -> str:
    if value != 0 and abs(value) < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.6g}"


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element for an HTML page: no metadata, no outside reference, no fixed size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<(metadata|style).*?</\1>\s*", "", svg, flags=re.DOTALL)  # the page's style sheet has it
    view_box = re.findall(r'viewBox="[^"]*"', svg)[0]
    content = svg[svg.index(">", svg.index("<svg")) + 1 :]
    content = content.replace("xlink:href", "href")
    content = re.sub(r"font-family: [^;\"]*;? ?", "", content)
    content = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", content)  # figure_1, axes_1, ...: the same in every plot
    for colour, variable in CSS_VARIABLES.items():
        content = content.replace(colour, f"var({variable})")
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box}>{content}'
