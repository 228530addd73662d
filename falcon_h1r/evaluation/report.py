"""The report page: one self-contained HTML file from what a pipeline run left in its folder.

Reads config.yaml, summary.json, curate/summary.json, {sft,grpo}/metrics.jsonl, grpo/samples.jsonl and
evaluate/*/samples.jsonl. Whatever is missing is left out, so that a run of some stages has its report, too.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from falcon_h1r.evaluation.report_content import build_content, metric_name
from falcon_h1r.evaluation.run_folder import read_run
from falcon_h1r.progress import format_duration

TEMPLATE = Path(__file__).with_name("report.html.j2")
ABSENT = "–"


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html and return its path."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent,
        "points": format_points,
        "number": format_number,
        "duration": format_duration,
        "metric": metric_name,
    }
    content = build_content(read_run(Path(run_dir)))
    path = Path(run_dir) / "report.html"
    path.write_text(environment.get_template(TEMPLATE.name).render(content), encoding="utf-8")
    return path


def format_percent(value: float | None) -> str:
    """0.4123 as 41.2%."""
    return ABSENT if value is None else f"{100 * value:.1f}%"


def format_points(value: float | None) -> str:
    """A difference of shares in percentage points, signed, with a true minus."""
    return ABSENT if value is None else f"{100 * value:+.1f}".replace("-", "−")


def format_number(value: object) -> str:
    """Counts with thousands separators, other numbers to four digits, everything else as it is."""
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
