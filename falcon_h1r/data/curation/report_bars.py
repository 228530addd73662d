"""Charts of the report page of a curation that are tables, too: bars with the exact numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from falcon_h1r.page import ABSENT, format_decimal, format_number, format_percent, format_points, format_share

MAX_BARS = 25  # of a chart whose names the data brings; the others are one bar
MAX_FILLED_BINS = 40  # histograms with more bins show those alone that have something
LONGEST_NAME = 80  # characters
WEIGHT_STEP = 0.125

Counts = Mapping[str, int]

FUNNEL_STEPS = {
    "traces": "Read",
    "of_the_teacher": "Of the teacher kept",
    "complete": "Complete, fitting",
    "uncontaminated": "Not of an evaluation",
    "correct": "Right",
    "distinct": "Distinct",
    "kept": "Kept",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of a chart: the bar, in parts that have a tone each, and the numbers beside it."""

    name: str
    parts: list[tuple[str, float]]  # tone, share of the chart's width
    cells: list[str]
    mark: float | None = None  # where the bar was to end


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars with their numbers: a chart that is a table."""

    title: str
    columns: list[str]  # of the names, then of the cells
    bars: list[Bar]
    facts: dict[str, str] = field(default_factory=dict)


def funnel_chart(funnel: Counts) -> Chart | None:
    """What each step left of the step before it, and, faint, what it took away."""
    total = max(funnel.values(), default=0)
    if not total:
        return None
    bars: list[Bar] = []
    before = total
    for step, count in funnel.items():
        parts = [("kept", count / total), ("lost", (before - count) / total)]
        of_before = format_share(count, before) if bars else ABSENT
        cells = [format_number(count), of_before, format_share(count, total)]
        bars.append(Bar(FUNNEL_STEPS.get(step, _words(step)), parts, cells))
        before = count
    return Chart("Rows after each step", ["Step", "Rows", "Of step before", "Of all"], bars)


def sides_chart(summary: Mapping[str, Any], column: str, title: str, in_order: Sequence[str] = ()) -> Chart | None:
    """Kept and dropped rows of each kind, the most frequent kinds first; or those `in_order`, others after them."""
    kept, dropped = summary.get(f"kept_by_{column}", {}), summary.get(f"dropped_by_{column}", {})
    both = {name: (kept.get(name, 0), dropped.get(name, 0)) for name in [*kept, *dropped]}
    rank = {name: place for place, name in enumerate(in_order)}
    names = sorted(both, key=lambda name: (rank.get(name, len(rank)), 0 if in_order else -sum(both[name]), name))
    lines = [(short_name(name) or "(none)", *both[name]) for name in names[:MAX_BARS]]
    if names[MAX_BARS:]:
        rest = [both[name] for name in names[MAX_BARS:]]
        lines.append((f"{len(rest):,} others", sum(one for one, _ in rest), sum(other for _, other in rest)))
    largest = max((one + other for _, one, other in lines), default=0)
    if not largest:
        return None
    bars = [
        Bar(
            name,
            [("kept", one / largest), ("dropped", other / largest)],
            [format_number(one), format_number(other), format_share(one, one + other)],
        )
        for name, one, other in lines
    ]
    return Chart(title, [column.capitalize(), "Kept", "Dropped", "Kept share"], bars)


def counts_chart(
    title: str, columns: list[str], counts: Counts, tones: Mapping[str, str] | None = None
) -> Chart | None:
    """Bars as long as the counts, with the counts and their shares."""
    total, largest = sum(counts.values()), max(counts.values(), default=0)
    if not largest:
        return None
    tones = tones or {}
    bars = [
        Bar(
            name,
            [(tones.get(name, "kept"), count / largest)],
            [format_number(count), format_share(count, total)],
        )
        for name, count in counts.items()
    ]
    return Chart(title, columns, bars)


def lengths_chart(name: str, part: Mapping[str, Any]) -> Chart | None:
    """Bins that double, those between them that nothing fell into included."""
    uppers = sorted(int(upper) for upper in part.get("bins", {}))
    if not uppers:
        return None
    exponents = range(uppers[0].bit_length() - 1, uppers[-1].bit_length())
    counts = {_bin(1 << exponent): part["bins"].get(str(1 << exponent), 0) for exponent in exponents}
    chart = counts_chart(f"{_words(name)} tokens", ["Tokens", "Rows", "Share"], counts)
    if chart is not None:
        chart.facts.update(
            {label: format_decimal(part[label]) for label in ("median", "mean", "p99", "max") if label in part}
        )
    return chart


def _bin(upper: int) -> str:
    return f"{upper // 2 + 1:,}–{upper:,}" if upper > 2 else f"{'0–' if upper == 1 else ''}{upper}"


def shares_chart(shares: Mapping[str, Mapping[str, float]]) -> Chart | None:
    """Each domain's share of the tokens, and a mark where it was to be."""
    if not shares:
        return None
    with_targets = any("target" in part for part in shares.values())
    largest = max([1e-9, *(share for part in shares.values() for share in (part["share"], part.get("target", 0.0)))])
    bars = []
    for domain, part in sorted(shares.items(), key=lambda item: (-item[1]["share"], item[0])):
        cells, target = [format_number(part["tokens"]), format_percent(part["share"])], part.get("target")
        if with_targets:
            cells += [format_percent(target), ABSENT if target is None else _points_off(part["share"], target)]
        mark = None if target is None else target / largest
        bars.append(Bar(short_name(domain), [("kept", part["share"] / largest)], cells, mark))
    columns = ["Domain", "Tokens", "Share", *(["Target", "Points off"] if with_targets else [])]
    return Chart("Tokens by domain", columns, bars)


def _points_off(share: float, target: float) -> str:
    return format_points(round(share - target, 3) or 0.0)  # no minus before a zero


def pass_rates_chart(counts: Counts) -> Chart | None:
    """All eleven tenths, whether or not a problem has them."""
    if not counts:
        return None
    tenths = [f"{tenth / 10:.1f}" for tenth in range(11)]
    others = {key: count for key, count in counts.items() if key not in tenths}
    named = {key: counts.get(key, 0) for key in tenths} if len(others) < len(counts) else {}
    return counts_chart(
        "Problems by pass rate", ["Pass rate", "Problems", "Share"], named | others, {"unknown": "dropped"}
    )


def weights_chart(counts: Counts) -> Chart | None:
    """In steps of an eighth, as they were counted."""
    by_step = {round(float(weight) / WEIGHT_STEP): count for weight, count in counts.items()}
    steps = sorted(by_step)
    if steps and steps[-1] - steps[0] < MAX_FILLED_BINS:
        steps = list(range(steps[0], steps[-1] + 1))
    named = {f"{step * WEIGHT_STEP:g}": by_step.get(step, 0) for step in steps}
    return counts_chart("Rows by loss weight", ["Weight", "Rows", "Share"], named)


def coverage_chart(teacher: Mapping[str, Any]) -> Chart | None:
    solved = sorted(teacher.get("solved_problems", {}).items(), key=lambda item: (-item[1], item[0]))
    largest = max((count for _, count in solved), default=0)
    if not largest:
        return None
    bars = [
        Bar(short_name(name), [("kept", count / largest)], [format_number(count)]) for name, count in solved[:MAX_BARS]
    ]
    if solved[MAX_BARS:]:
        bars.append(Bar(f"{len(solved) - MAX_BARS:,} others, each at most", bars[-1].parts, bars[-1].cells))
    return Chart("Problems solved", ["Teacher", "Problems"], bars)


# -----------------------------------------------------------------------------
# Names


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def short_name(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
