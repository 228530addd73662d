"""The report page: one self-contained HTML file from what a pipeline run left in its folder.

Reads config.yaml, summary.json, curate/summary.json, {sft,grpo}/metrics.jsonl, grpo/samples.jsonl and
evaluate/*/samples.jsonl. Whatever is missing is left out, so that a run of some stages has its report, too.
"""

from __future__ import annotations

from pathlib import Path

from falcon_h1r.evaluation.report_content import build_content, metric_name
from falcon_h1r.evaluation.run_folder import read_run
from falcon_h1r.page import render_page
from falcon_h1r.progress import format_duration

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html and return its path."""
    content = build_content(read_run(Path(run_dir)))
    path = Path(run_dir) / "report.html"
    page = render_page(TEMPLATE, content, {"duration": format_duration, "metric": metric_name})
    path.write_text(page, encoding="utf-8")
    return path
