"""What the report page shows of a curation: bars, tables and examples, ready for the template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from falcon_h1r.data.curation.report_bars import (
    Chart,
    Counts,
    counts_chart,
    coverage_chart,
    funnel_chart,
    lengths_chart,
    pass_rates_chart,
    shares_chart,
    short_name,
    sides_chart,
    weights_chart,
)
from falcon_h1r.data.curation.report_examples import disagreement_rows, reason_rows
from falcon_h1r.page import ABSENT, format_decimal
from falcon_h1r.types import DIFFICULTIES

MAX_DISAGREEMENTS = 50

Summary = Mapping[str, Any]

HEADINGS = {  # of the sections, by their ids
    "funnel": "From rows read to rows kept",
    "dropped": "Why rows were dropped",
    "mix": "The mix of domains",
    "lengths": "Lengths",
    "difficulty": "Difficulty and weights",
    "teachers": "Teachers",
    "origins": "Where rows come from",
    "verdicts": "Verdicts",
    "evaluation-sets": "Evaluation sets",
    "settings": "Settings",
}


@dataclass(frozen=True, slots=True)
class CurationFolder:
    """What a curation left behind."""

    summary: dict[str, Any]
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # dropped rows, by reason
    disagreements: list[dict[str, Any]] = field(default_factory=list)  # the first ones
    config: dict[str, Any] = field(default_factory=dict)


def build_content(folder: CurationFolder) -> dict[str, Any]:
    """Everything the template needs; empty where there is nothing to show."""
    summary = folder.summary
    curate = folder.config.get("curate") or {}
    settings = {key: value for key, value in curate.items() if key != "work"}  # which changes nothing that comes out
    content = {
        "headline": _headline(summary),
        "facts": _facts(summary, folder.config),
        "funnel": funnel_chart(summary.get("funnel", {})),
        "reasons": reason_rows(summary.get("dropped_by_reason", {}), folder.examples),
        "shares": shares_chart(summary.get("token_shares", {})),
        "lengths": _charts(lengths_chart(name, part) for name, part in summary.get("lengths", {}).items()),
        "difficulty": _charts(
            (
                sides_chart(summary, "difficulty", "Kept and dropped", in_order=DIFFICULTIES),
                pass_rates_chart(summary.get("difficulty", {}).get("problems_by_pass_rate", {})),
                weights_chart(summary.get("weights", {})),
            )
        ),
        "measured_by": summary.get("difficulty", {}).get("measured_by"),
        "teachers": _charts(
            (sides_chart(summary, "teacher", "Kept and dropped"), coverage_chart(summary.get("teacher", {})))
        ),
        "origins": _charts(sides_chart(summary, column, f"By {column}") for column in ("source", "domain", "family")),
        "sources": _sources(curate.get("sources") or {}),
        "verdicts": _verdicts(summary.get("verdicts", {})),
        "disagreements": disagreement_rows(folder.disagreements),
        "num_disagreements": _num_disagreements(summary.get("verdicts", {}), folder.disagreements),
        "unverifiable_golds": summary.get("unverifiable_golds", []),
        "evaluation_sets": {"checked": [], "switched_off": []} | summary.get("evaluation_sets", {}),
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else "",
    }
    return content | {"headings": HEADINGS, "shown": _shown(content)}


def _shown(content: Mapping[str, Any]) -> set[str]:
    """The sections that have something to show."""
    holds = {
        "funnel": ("funnel",),
        "dropped": ("reasons",),
        "mix": ("shares",),
        "origins": ("origins", "sources"),
        "verdicts": ("verdicts", "disagreements", "unverifiable_golds"),
    }
    shown = {name for name in HEADINGS if any(content.get(part) for part in holds.get(name, (name,)))}
    return shown | ({"evaluation-sets"} if any(content["evaluation_sets"].values()) else set())


def _charts(charts: Iterable[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


# -----------------------------------------------------------------------------
# The head of the page


def _headline(summary: Summary) -> dict[str, Any]:
    """What came in, and what came out of it. A row that the mix repeats is written more often than kept."""
    funnel, written, read = summary.get("funnel", {}), summary.get("written", {}), summary.get("read", {})
    num_read, kept = funnel.get("traces", 0), funnel.get("kept", 0)
    rows, tokens, problems = (written.get(name, 0) for name in ("rows", "tokens", "problems"))
    return {
        "read": num_read,
        "kept": kept,
        "kept_share": kept / num_read if num_read else None,
        "rows": rows,
        "tokens": tokens,
        "tokens_short": _short(tokens),
        "tokens_read": read.get("tokens"),
        "tokens_a_row": f"{tokens / rows:,.0f}" if rows else ABSENT,
        "problems": problems,
        "problems_read": read.get("problems"),
        "rows_a_problem": f"{rows / problems:,.1f}" if problems else ABSENT,
        "mean_weight": format_decimal(summary.get("mean_weight")),
    }


def _facts(summary: Summary, config: Summary) -> dict[str, str]:
    """The line below the headline."""
    facts = {}
    if summary.get("kept_by_teacher") or summary.get("dropped_by_teacher"):
        facts["Teacher kept"] = short_name((summary.get("teacher") or {}).get("kept") or "all")
    if "tokens_counted_by" in summary:
        facts["Tokens counted by"] = short_name(summary["tokens_counted_by"])
    if config.get("seed") is not None:
        facts["Seed"] = str(config["seed"])
    return facts


# -----------------------------------------------------------------------------
# Verdicts and sources


def _verdicts(verdicts: Counts) -> dict[str, Any]:
    """Bars of the verdicts, and how far those that the source gives agree with them."""
    tones = {"correct": "right", "wrong": "wrong", "undecided": "open", "no answer": "dropped"}
    counts = {name: count for name, count in verdicts.items() if name not in ("given_by_source", "agreeing")}
    counts = {name.replace("_", " "): count for name, count in counts.items()}
    chart = counts_chart("By the verifier", ["Verdict", "Rows", "Share"], counts, tones)
    given, agreeing = verdicts.get("given_by_source", 0), verdicts.get("agreeing", 0)
    if chart is None:
        return {}
    return {"chart": chart, "given": given, "agreeing": agreeing, "agreement": agreeing / given if given else None}


def _num_disagreements(verdicts: Counts, shown: Sequence[Any]) -> int:
    return max(len(shown), verdicts.get("given_by_source", 0) - verdicts.get("agreeing", 0))


def _sources(sources: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, str]]:
    """Where the rows came from: each source's settings that say it."""
    rows = []
    for name, source in sources.items():
        source = source or {}
        extent = [str(source[key]) for key in ("subset", "split") if source.get(key) and source.get("format") == "hub"]
        limit = source.get("limit")
        rows.append(
            {
                "name": name,
                "path": str(source.get("path") or ABSENT),
                "extent": ", ".join([*extent, *([f"first {limit:,} rows"] if limit else [])]),
                "domain": source.get("domain_field") or source.get("domain") or "",
            }
        )
    return rows


# -----------------------------------------------------------------------------
# Words and numbers


def _short(count: int) -> str:
    """12,345,678 as 12.3M."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return f"{count:,}"
