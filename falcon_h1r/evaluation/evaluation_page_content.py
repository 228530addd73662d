"""What the evaluation page shows: scores beside published ones, plots, and the browser's transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from falcon_h1r.evaluation.charts import CSS_VARIABLES, OPEN, RIGHT, SERIES, WRONG, Interval
from falcon_h1r.evaluation.evaluation_page_browser import Shelf, browser_data, script_json
from falcon_h1r.evaluation.evaluation_page_charts import (
    CostSeries,
    Values,
    cost_chart,
    distribution_chart,
    k_chart,
    token_tick,
)
from falcon_h1r.evaluation.scaling_curves import pareto_front
from falcon_h1r.scaling.traces import SCORES

Row = Mapping[str, Any]
RIGHT_ANSWER, WRONG_ANSWER, CUT, STOPPED = "right", "wrong", "cut at the limit", "stopped"
OUTCOMES = {RIGHT_ANSWER: RIGHT, WRONG_ANSWER: WRONG, CUT: OPEN, STOPPED: SERIES[4]}  # with the colour of each
MEASURE_NAMES = {"top_k": "top-k", "sampled": "sampled-token"}
MARKERS = ("o", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")


@dataclass
class Facts:
    """The numbers of some rows, a value each."""

    outcomes: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scores: dict[tuple[str, str], list[tuple[bool, float]]] = field(default_factory=dict)  # (measure, score) -> right

    def put(self, row: Row) -> None:
        is_right = row["status"] == "correct"
        if row["stop_reason"] == "confidence" or row.get("was_stopped"):
            outcome = STOPPED
        elif is_right:
            outcome = RIGHT_ANSWER
        else:
            outcome = CUT if row["stop_reason"] == "length" else WRONG_ANSWER
        self.outcomes.append(outcome)
        self.tokens.append(row["response_tokens"])
        for measure, parts in (row.get("confidence") or {}).items():
            for score in SCORES:
                if parts[score] is not None:
                    self.scores.setdefault((measure, score), []).append((is_right, parts[score]))

    def tokens_of(self, outcome: str) -> NDArray[np.float64]:
        pairs = zip(self.outcomes, self.tokens, strict=True)
        return np.array([tokens for own, tokens in pairs if own == outcome], dtype=np.float64)


@dataclass
class Part:
    """One benchmark: its summary, the numbers of its rows, and the rows that the browser may show."""

    name: str
    summary: Mapping[str, Any]
    shelf: Shelf = field(default_factory=Shelf)
    sampled: Facts = field(default_factory=Facts)
    online: Facts = field(default_factory=Facts)

    def put(self, row: Row, kind: str) -> None:
        self.shelf.put(row, kind)
        if kind == "sampled":
            self.sampled.put(row)
        elif kind == "online":
            self.online.put(row)


def build_content(name: str, overall: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Everything the template needs; empty where the evaluation has nothing."""
    data = browser_data({part.name: part.shelf for part in parts})
    return {
        "name": name,
        "scores": [score_row(part) for part in parts],
        "groups": overall.get("groups") or [],
        "differences": [
            {"name": part.name, "other": part.summary.get("compared_with"), "estimates": part.summary["differences"]}
            for part in parts
            if part.summary.get("differences")
        ],
        "notes": [(part.name, note) for part in parts for note in notes_of(part)],
        "costs": [plot for part in parts for plot in cost_plots(part.name, _scaling(part))],
        "cost_tables": [table for part in parts if (table := cost_table(part))],
        "confidences": [plot for part in parts for plot in confidence_plots(part)],
        "aucs": [(part.name, found) for part in parts if (found := _scaling(part).get("auc_within"))],
        "lengths": [plot for part in parts for plot in length_plots(part)],
        "k_curves": [plot for part in parts for plot in k_plots(part)],
        "num_shown": len(data["rows"]),
        "num_seen": data["num_seen"],
        "browser_data": Markup(script_json(data)),  # escaped for a script element there
        "description": overall.get("engine"),
        "measure_names": MEASURE_NAMES,
        "score_names": {score: score_name(score) for score in SCORES},
    }


def _scaling(part: Part) -> Mapping[str, Any]:
    found: Mapping[str, Any] = part.summary.get("scaling") or {}
    return found


# ------------------------------------------------------------------------------------------------------------
# Tables


def score_row(part: Part) -> dict[str, Any]:
    """One line of the table: ours with intervals, what it cost, and what is published."""
    summary = part.summary
    headline = "pass_at_1" if summary.get("pass_at_1") is not None else "greedy"
    most_votes = _most_votes(summary)
    num_problems = summary.get("num_problems")
    num_samples = summary.get("num_samples")
    scaled = _measured(part)
    return {
        "name": part.name,
        "is_ours": summary.get(headline) is not None or scaled is not None,
        "metric": f"avg@{num_samples // num_problems}" if num_samples and headline == "pass_at_1" else "greedy",
        "num_problems": num_problems,
        "ours": _estimate(summary, headline),
        "greedy": _estimate(summary, "greedy"),
        "majority_name": f"maj@{most_votes['k']}" if most_votes else None,
        "majority": Interval(*(most_votes[part] for part in ("value", "low", "high"))) if most_votes else None,
        "scaled": scaled,
        "tokens_per_answer": summary.get("mean_response_tokens"),
        "tokens_per_correct": summary.get("tokens_per_correct"),
        "truncated": summary.get("truncated_share"),
        "reference": _share(summary.get("reference_score")),
        "reference_scaled": _share(summary.get("reference_scaled_score")),
        "reference_scaled_tokens": _tokens(summary.get("reference_scaled_tokens")),
        "bridge": summary.get("bridge"),
    }


def _most_votes(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The majority of as many samples as the curve has: what a budget of so many traces is held against."""
    curve = [point for point in (summary.get("curves") or {}).get("maj_at_k", ()) if point["k"] > 1]
    return curve[-1] if curve else None


def notes_of(part: Part) -> list[str]:
    """What a reader of the scores has to know."""
    lacking = _scaling(part).get("lacking_traces") or {}
    return [
        *(part.summary.get("notes") or ()),
        *(
            f"the {MEASURE_NAMES.get(measure, measure)} confidence is left out, as {count:,} samples have none"
            for measure, count in lacking.items()
        ),
    ]


def _estimate(summary: Mapping[str, Any], name: str) -> Interval | None:
    value, bounds = summary.get(name), summary.get(f"{name}_interval")
    return Interval(value, *bounds) if value is not None and bounds else None


def _measured(part: Part) -> dict[str, Any] | None:
    """The online run: its accuracy, and all the tokens it took."""
    for row in _scaling(part).get("points", ()):
        if row["is_measured"]:
            accuracy = _interval(row["accuracy"])
            return {
                "accuracy": accuracy,
                "budget": row["budget"],
                "tokens": _tokens(row["tokens"] * row["num_problems"]),
            }
    return None


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _tokens(count: float | None) -> str | None:
    return None if count is None else token_tick(count)


def cost_table(part: Part) -> dict[str, Any] | None:
    """Every point, the cheapest first: accuracy, tokens, and what was saved by what."""
    points = sorted(_scaling(part).get("points", ()), key=lambda row: (row["tokens"], row["method"]))
    if not points:
        return None
    rows = [{**row, "name": method_name(row), "accuracy": _interval(row["accuracy"])} for row in points]
    return {"name": part.name, "rows": rows}


def method_name(row: Mapping[str, Any]) -> str:
    """A point's way to answer, for people."""
    if row["method"] == "online":
        kind = "DeepConf, measured" if row["is_measured"] else "DeepConf"
        return f"{kind}, keep {100 * row['keep_share']:g}%"
    plain = {"single": "single answer", "majority": "majority"}
    return plain.get(row["method"], f"vote by {score_name(row['method'])}")


def score_name(score: str) -> str:
    """A trace score, for people."""
    return "bottom 10%" if score == "bottom_10" else score.replace("_", " ")


def _interval(row: Mapping[str, Any]) -> Interval:
    return Interval(row["value"], row["low"], row["high"])


# ------------------------------------------------------------------------------------------------------------
# Plots, each with its title and what stands beside it


def cost_plots(name: str, scaling: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy against tokens: a plot for each measure, with what looks at no confidence in all of them.

    Args:
        scaling: as a summary has it, or empty.
    """
    points = scaling.get("points", ())
    measures = list(dict.fromkeys(row["measure"] for row in points if row["measure"]))
    plots = []
    for measure in measures or ([None] if points else []):
        shown = [row for row in points if row["measure"] in (None, measure)]
        methods = _cost_series(shown, scaling["trace_score"], scaling["warmup_traces"])
        costs = [cost for method in methods if not method.is_measured for cost in method.costs]
        front = [costs[index] for index in sorted(pareto_front(costs))]
        title = name if measure is None else f"{name}, {MEASURE_NAMES.get(measure, measure)} confidence"
        plots.append({"title": title, "svg": Markup(cost_chart(methods, front, f"Accuracy against tokens, {title}"))})
    return plots


def _cost_series(points: Sequence[Mapping[str, Any]], trace_score: str, warmup_traces: int) -> list[CostSeries]:
    """Single, majority, the vote by `trace_score`, DeepConf at each keep share, and what was measured.

    With no more than the warm-up, DeepConf stops nothing and is the vote by `trace_score`: not drawn over it again.
    """
    keep_shares = sorted({row["keep_share"] for row in points if row["method"] == "online" and not row["is_measured"]})
    # (points, colour, marker, line)
    kinds: list[tuple[list[Mapping[str, Any]], int, str, str]] = [
        ([row for row in points if row["method"] == "single"], 0, "s", ""),
        ([row for row in points if row["method"] == "majority"], 1, "o", "-"),
        ([row for row in points if row["method"] == trace_score], 3, "^", "-"),
    ]
    for index, keep_share in enumerate(keep_shares):
        replayed = [row for row in points if row["keep_share"] == keep_share and not row["is_measured"]]
        own = [row for row in replayed if row["budget"] > warmup_traces]
        kinds.append((own, 2, MARKERS[index % len(MARKERS)], LINES[index % len(LINES)]))
    kinds.append(([row for row in points if row["is_measured"]], 4, "*", ""))
    return [
        CostSeries(
            name=method_name(own[0]),
            tokens=[row["tokens"] for row in own],
            accuracies=[_interval(row["accuracy"]) for row in own],
            series=series,
            marker=marker,
            line=line,
            is_measured=own[0]["is_measured"],
        )
        for own, series, marker, line in kinds
        if own
    ]


def confidence_plots(part: Part) -> list[dict[str, Any]]:
    """Right and wrong traces by the score that weighs votes, for each measure."""
    scaling, plots = _scaling(part), []
    score = scaling.get("trace_score", "mean")
    for measure, own in part.sampled.scores.items():
        if measure[1] != score:
            continue
        groups = [
            Values(name, colour, np.array([value for is_right, value in own if is_right is wanted]))
            for name, colour, wanted in ((RIGHT_ANSWER, RIGHT, True), (WRONG_ANSWER, WRONG, False))
        ]
        title = f"{part.name}, {MEASURE_NAMES.get(measure[0], measure[0])} confidence"
        axis = score_name(score)
        auc = ((scaling.get("auc_within") or {}).get(measure[0]) or {}).get(score)
        svg = distribution_chart(groups, f"Confidence of right and wrong traces, {title}", axis)
        plots.append({"title": title, "svg": Markup(svg), "auc": auc, "counts": _counts(groups)})
    return plots


def length_plots(part: Part) -> list[dict[str, Any]]:
    """Response lengths by what became of the response; of the online run apart."""
    plots = []
    for facts, title in ((part.sampled, part.name), (part.online, f"{part.name}, online")):
        groups = [Values(name, colour, facts.tokens_of(name)) for name, colour in OUTCOMES.items()]
        if facts.tokens:
            label = f"Response lengths, {title}"
            svg = distribution_chart(groups, label, "tokens of a response", log_axis=True, of_all=True)
            plots.append({"title": title, "svg": Markup(svg), "counts": _counts(groups)})
    return plots


def _counts(groups: Sequence[Values]) -> list[tuple[str, str, int]]:
    """For the legend: name, CSS colour, how many."""
    return [(group.name, CSS_VARIABLES[group.colour], group.values.size) for group in groups if group.values.size]


def k_plots(part: Part) -> list[dict[str, Any]]:
    curves = {key.replace("_at_", "@"): rows for key, rows in (part.summary.get("curves") or {}).items()}
    if not curves:
        return []
    return [{"title": part.name, "svg": Markup(k_chart(curves, f"pass@k and maj@k, {part.name}"))}]
