"""What the report page shows of a run: charts, tables and transcripts, ready for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from falcon_h1r.evaluation.charts import DENSE_POINTS, Curve, Interval, curve_chart, interval_chart
from falcon_h1r.evaluation.evaluation_page_content import cost_plots
from falcon_h1r.evaluation.metrics import differences, summarise
from falcon_h1r.evaluation.report_grpo import TABLED, alarm_rows, family_rows, gradient_rows, grpo_panels
from falcon_h1r.evaluation.run_folder import STAGE_ORDER, Row, RunFolder, stage_order
from falcon_h1r.evaluation.transcripts import pick_rollouts, pick_transcripts
from falcon_h1r.progress import format_duration

STAGE_NAMES = {"base": "Base", "sft": "SFT", "grpo": "GRPO"}

# (title, keys drawn together); keys not listed here get a plot of their own, below.
SFT_PANELS = (
    ("Loss", ("loss", "dev_loss")),
    ("Dev accuracy", ("dev_pass_at_1", "dev_greedy")),
    ("Learning rate", ("learning_rate",)),
    ("Tokens per second", ("tokens_per_second",)),
    ("Gradient norm", ("grad_norm",)),
)


def build_content(run: RunFolder) -> dict[str, Any]:
    """Everything the template needs; empty where the run has nothing."""
    summaries = _summaries(run)
    stages = sorted(summaries, key=stage_order)
    series = {stage: STAGE_ORDER.get(stage, 3 + index) for index, stage in enumerate(stages)}
    metrics = list(dict.fromkeys(name for stage in stages for name in _metric_names(summaries[stage])))
    deltas = _differences(run, stages)
    wall_seconds = {name: value for name, value in run.summary.get("wall_seconds", {}).items() if value is not None}
    return {
        "run": run,
        "stages": stages,
        "stage_names": {stage: STAGE_NAMES.get(stage, stage) for stage in stages},
        "series": series,
        "summaries": summaries,
        "metrics": metrics,
        "accuracy_chart": _accuracy_chart(summaries, metrics, series),
        "differences": deltas,
        "difference_chart": _difference_chart(deltas, metrics),
        "breakdowns": [
            breakdown
            for key, title in (("by_family", "By family"), ("by_difficulty", "By difficulty"))
            if (breakdown := _breakdown(summaries, stages, series, key, title))
        ],
        "curves": {
            stage: _curves(rows, SFT_PANELS if stage == "sft" else grpo_panels(rows), STAGE_ORDER[stage])
            for stage, rows in run.metrics.items()
        },
        "alarms": alarm_rows(run.metrics.get("grpo", [])),
        "families": family_rows(run.metrics.get("grpo", [])),
        "gradients": gradient_rows(run.metrics.get("grpo", [])),
        "costs": [
            plot
            for stage in stages
            for plot in cost_plots(STAGE_NAMES.get(stage, stage), summaries[stage].get("scaling", {}))
        ],
        "funnel": _funnel(run.curation),
        "curation_facts": _flatten({key: run.curation[key] for key in run.curation if key != "funnel"}),
        "transcripts": pick_transcripts(run.evaluations),
        "rollouts": pick_rollouts(run.rollouts),
        "total_seconds": wall_seconds.pop("total", sum(wall_seconds.values())),
        "stage_times": _stage_times(wall_seconds),
        "versions": run.summary.get("versions", {}),
    }


def _summaries(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Each evaluated model's summary: as written by the run, else computed from its samples."""
    written = {key: value for key, value in run.summary.items() if isinstance(value, dict) and _metric_names(value)}
    missing = [stage for stage in run.evaluations if stage not in written]
    k = _votes(run)
    return written | {stage: summarise(run.evaluations[stage], k, seed=0) for stage in missing}


def _votes(run: RunFolder) -> int:
    """k of pass@k where only samples are left: 8, or as many samples as every problem has."""
    counts: dict[tuple[str, str], int] = {}
    for stage, rows in run.evaluations.items():
        for row in rows:
            if not row["greedy"]:
                counts[stage, row["problem_uid"]] = counts.get((stage, row["problem_uid"]), 0) + 1
    return min([8, *counts.values()])


def _metric_names(summary: Mapping[str, Any]) -> list[str]:
    return [key.removesuffix("_interval") for key in summary if key.endswith("_interval")]


def _differences(run: RunFolder, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Title -> {"series", "estimates"}: as written by the run, else of neighbouring stages' samples.

    A difference takes the colour of the later model.
    """
    written = run.summary.get("differences")
    if not written:
        pairs = [(a, b) for a, b in zip(stages[1:], stages, strict=False) if {a, b} <= set(run.evaluations)]
        k = _votes(run)
        written = {
            f"{after}_minus_{before}": differences([(run.evaluations[after], run.evaluations[before])], k, seed=0)
            for after, before in pairs
        }
    named = {}
    for index, (key, estimates) in enumerate(written.items()):
        after, _, before = key.partition("_minus_")
        title = f"{STAGE_NAMES.get(after, after)} − {STAGE_NAMES.get(before, before)}"
        named[title] = {"series": STAGE_ORDER.get(after, 3 + index), "estimates": estimates}
    return named


def _interval(summary: Mapping[str, Any], name: str) -> Interval | None:
    """The metric as a point to plot, if the summary has all of it."""
    value, bounds = summary.get(name), summary.get(f"{name}_interval") or [None, None]
    return None if value is None or None in bounds else Interval(value, bounds[0], bounds[1])


def _accuracy_chart(
    summaries: Mapping[str, Mapping[str, Any]], metrics: Sequence[str], series: Mapping[str, int]
) -> Markup:
    rows: dict[str, dict[int, Interval]] = {}
    for name in metrics:
        points = {series[stage]: _interval(summary, name) for stage, summary in summaries.items()}
        rows[metric_name(name)] = {index: point for index, point in points.items() if point is not None}
    if not any(rows.values()):
        return Markup()
    return Markup(interval_chart(rows, "Accuracy of each model with 95% intervals", width_inches=5.2))


def _difference_chart(deltas: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> Markup:
    rows: dict[str, dict[int, Interval]] = {metric_name(name): {} for name in metrics}
    for part in deltas.values():
        for name, estimate in part["estimates"].items():
            point = Interval(estimate["value"], estimate["low"], estimate["high"])
            rows.setdefault(metric_name(name), {})[part["series"]] = point
    if not any(rows.values()):
        return Markup()
    label = "Paired differences in percentage points with 95% intervals"
    return Markup(interval_chart(rows, label, width_inches=5.2, as_points=True))


def _breakdown(
    summaries: Mapping[str, Mapping[str, Any]],
    stages: Sequence[str],
    series: Mapping[str, int],
    key: str,
    title: str,
) -> dict[str, Any]:
    """pass@1 (greedy where nothing was sampled) of each kind of problem: chart and table rows."""
    parts = {stage: summaries[stage][key] for stage in stages if summaries[stage].get(key)}
    kinds = list(dict.fromkeys(kind for part in parts.values() for kind in part))
    if not kinds:
        return {}
    metric = "pass_at_1" if "pass_at_1" in next(iter(parts.values()))[kinds[0]] else "greedy"
    last = parts[list(parts)[-1]]
    if key == "by_family":
        kinds.sort(key=lambda kind: -last.get(kind, {}).get(metric, 0.0))
    rows, points = [], {}
    for kind in kinds:
        found = {stage: _interval(part.get(kind, {}), metric) for stage, part in parts.items()}
        label = str(kind).replace("_", " ")
        points[label] = {series[stage]: point for stage, point in found.items() if point is not None}
        num_problems = next(part[kind]["num_problems"] for part in parts.values() if kind in part)
        rows.append({"kind": label, "num_problems": num_problems, "values": found})
    chart = interval_chart(points, f"{metric_name(metric)} {title.lower()}", width_inches=5.2)
    return {
        "title": title,
        "metric": metric_name(metric),
        "stages": list(parts),
        "rows": rows,
        "chart": Markup(chart),
    }


def _curves(rows: Sequence[Row], panels: Sequence[tuple[str, tuple[str, ...]]], series: int) -> dict[str, Any]:
    """The plots of a stage's metrics: the known ones first, all others under "other"."""
    found: dict[str, Curve] = {}
    keys = dict.fromkeys(key for row in rows for key in row)
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if _is_number(row.get(key)) and "step" in row]
        if points and key not in ("step", "seconds"):
            found[key] = Curve(key, [step for step, _ in points], [value for _, value in points])
    known = {key for _, panel_keys in panels for key in panel_keys}
    other = [(_words(key), (key,)) for key in found if key not in known and not _has_another_place(key)]

    def draw(chosen: Sequence[tuple[str, tuple[str, ...]]]) -> list[dict[str, Any]]:
        plots = []
        for title, panel_keys in chosen:
            curves = [found[key] for key in panel_keys if key in found]
            if curves:
                is_share, smooth = _is_share(curves[0].name), curves[0].name != "learning_rate"
                svg = curve_chart(curves, title, series=series, is_share=is_share, smooth=smooth)
                plots.append({"title": title, "svg": Markup(svg), "last": _last_value(curves[0])})
        return plots

    return {"main": draw(panels), "other": draw(other), "dense": len(rows) >= DENSE_POINTS}


def _has_another_place(key: str) -> bool:
    """Whether a metric is not plotted by itself: times by phase, and what stands in tables."""
    return key.endswith("_seconds") or key.startswith(TABLED)


def _last_value(curve: Curve) -> str:
    value = curve.values[-1]
    return f"{100 * value:.1f}%" if _is_share(curve.name) else f"{value:,.4g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(key: str) -> bool:
    return key.endswith(("_share", "greedy")) or "pass_at_" in key or "maj_at_" in key


def metric_name(key: str) -> str:
    """`pass_at_8` as pass@8."""
    return key.replace("_at_", "@")


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _funnel(curation: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """The counts from source to training set, in the order written: curate's "funnel", else its num_ counts.

    Each as name, text and share of the largest.
    """
    steps = curation.get("funnel", {key: value for key, value in curation.items() if key.startswith("num_")})
    if isinstance(steps, Mapping):
        steps = list(steps.items())
    pairs = [tuple(step.values()) if isinstance(step, Mapping) else tuple(step) for step in steps]
    counts = {str(name): count for name, count, *_ in pairs if isinstance(count, int)}
    largest = max([1, *counts.values()])
    return [(_words(name.removeprefix("num_")), f"{count:,}", count / largest) for name, count in counts.items()]


def _stage_times(wall_seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Each as name, text and share of the longest."""
    longest = max([1e-9, *wall_seconds.values()])
    return [
        (STAGE_NAMES.get(name, _words(name)), format_duration(seconds), seconds / longest)
        for name, seconds in wall_seconds.items()
    ]


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted keys; lists stay out."""
    flat: list[tuple[str, Any]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            flat.append((f"{prefix}{key}", value))
    return flat
