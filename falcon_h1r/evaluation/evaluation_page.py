"""The evaluation's page: one HTML file that stands alone, of one benchmark or of several with a folder each.

Reads summary.json, and of every benchmark its summary.json, samples.jsonl and online.jsonl, row by row: what is kept
of a row are a few numbers, and the text of those that the browser shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from falcon_h1r.checkpoint.files import replace_text
from falcon_h1r.data.jsonl import read_jsonl
from falcon_h1r.evaluation.evaluation_page_content import Part, build_content
from falcon_h1r.evaluation.report_content import metric_name
from falcon_h1r.page import ABSENT, render_page
from falcon_h1r.types import InputError

TEMPLATE = Path(__file__).with_name("evaluation_page.html.j2")
SAMPLES, ONLINE, SUMMARY = "samples.jsonl", "online.jsonl", "summary.json"


def write_page(folder: Path) -> Path:
    """Write folder/page.html and return its path.

    The folder is one benchmark's, with samples.jsonl and summary.json in it, or holds a folder for each of several.
    Benchmarks that its summary names under `benchmarks` but that have no folder (a bridge runs them) are listed with
    their published scores.

    Raises:
        InputError: where there is no evaluation, or a file of it cannot be read.
    """
    folder = Path(folder)
    overall = _read_summary(folder / SUMMARY)
    parts = list(_parts(folder, overall))
    if not any(part.summary for part in parts):
        raise InputError(f"{folder}: no evaluation to show, neither {SAMPLES} nor folders with {SUMMARY}")
    content = build_content(folder.resolve().name, overall, parts)
    path = folder / "page.html"
    replace_text(path, render_page(TEMPLATE, content, {"metric": metric_name, "score": _format_score}))
    return path


def _parts(folder: Path, overall: dict[str, Any]) -> Iterator[Part]:
    """Each benchmark, in the order of the summary over all, others by name."""
    if (folder / SAMPLES).exists():
        yield _read_part(folder.resolve().name, folder, overall)
        return
    named = overall.get("benchmarks") or {}
    found = sorted(path.parent.name for path in folder.glob(f"*/{SAMPLES}"))
    for name in dict.fromkeys([*named, *found]):
        yield _read_part(name, folder / name, _read_summary(folder / name / SUMMARY) or named.get(name) or {})


def _read_part(name: str, folder: Path, summary: dict[str, Any]) -> Part:
    part = Part(name, summary)
    if _has_rows(folder / SAMPLES):
        if not summary:
            raise InputError(f"{folder}: {SAMPLES} without a {SUMMARY}: the evaluation has not ended")
        for _, row in read_jsonl(folder / SAMPLES):
            part.put(row, "greedy" if row["greedy"] else "sampled")
    if _has_rows(folder / ONLINE):
        for _, row in read_jsonl(folder / ONLINE):
            part.put(row, "online")
    return part


def _has_rows(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _format_score(percent: float | None) -> str:
    """An average as reports give it: in percent, without the sign."""
    return ABSENT if percent is None else f"{percent:.2f}"


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        parsed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: no JSON: {error}") from error
    return parsed
