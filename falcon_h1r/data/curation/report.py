"""The report page of a curation: one self-contained HTML file from the JSON files that it left in its folder.

Reads summary.json, dropped_examples.json, disagreements.jsonl and config.yaml; all but the first may be missing. The
page holds nothing else: no dates, no folder's name, no `curate.work`, so that the same corpus has the same page
however its work was divided.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from falcon_h1r.data.curation.report_content import MAX_DISAGREEMENTS, CurationFolder, build_content
from falcon_h1r.data.curation.report_examples import visible
from falcon_h1r.data.jsonl import new_file
from falcon_h1r.page import render_page
from falcon_h1r.types import InputError

PAGE = "data_report.html"
TEMPLATE = Path(__file__).with_name("data_report.html.j2")


def write_report(folder: Path) -> Path:
    """Write folder/data_report.html and return its path.

    Raises:
        InputError: where there is no summary.json.
    """
    folder = Path(folder)
    page = render_page(TEMPLATE, build_content(read_curation(folder)), {"breakable": _breakable})
    path = folder / PAGE
    with new_file(path) as file:
        file.write(page.encode())
    return path


def read_curation(folder: Path) -> CurationFolder:
    """What the page shows, as far as it is there."""
    summary = folder / "summary.json"
    if not summary.is_file():
        raise InputError(f"{summary}: not there; curation writes it last")
    examples, disagreements, config = (
        folder / name for name in ("dropped_examples.json", "disagreements.jsonl", "config.yaml")
    )
    rows = []
    if disagreements.is_file():
        with open(disagreements, encoding="utf-8", errors="replace") as file:
            rows = [_parse(line) for line in islice(file, MAX_DISAGREEMENTS)]
    return CurationFolder(
        _parse(summary.read_text(encoding="utf-8")),
        _parse(examples.read_text(encoding="utf-8")) if examples.is_file() else {},
        rows,
        _visible(yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.is_file() else {},
    )


def _parse(text: str) -> Any:
    return _visible(json.loads(text, parse_constant=lambda _: None))  # NaN and Infinity are not numbers to show


def _visible(value: Any) -> Any:
    """The same with the invisible characters of its texts written out."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_visible(item) for item in value]
    if isinstance(value, dict):
        return {_visible(key): _visible(item) for key, item in value.items()}
    return value


def _breakable(name: str) -> Markup:
    """A name that a narrow column may break at its joints."""
    return Markup(re.sub("([_/-])", r"\1<wbr>", str(escape(name))))
