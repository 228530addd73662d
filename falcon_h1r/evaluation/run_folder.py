"""What a pipeline run leaves in its folder, read back as far as the run got."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
STAGE_ORDER = {"base": 0, "sft": 1, "grpo": 2}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What a pipeline run left behind, as far as it got."""

    name: str
    config: str
    summary: dict[str, Any]
    curation: dict[str, Any]
    metrics: dict[str, list[Row]]  # "sft", "grpo"
    evaluations: dict[str, list[Row]]  # "base", "sft", "grpo", ...
    rollouts: list[Row]


def stage_order(stage: str) -> tuple[int, str]:
    """Sorts models as the pipeline makes them; others follow by name."""
    return (STAGE_ORDER.get(stage, len(STAGE_ORDER)), stage)


def read_run(run_dir: Path) -> RunFolder:
    """Read what there is."""
    config = run_dir / "config.yaml"
    metrics = {stage: read_rows(run_dir / stage / "metrics.jsonl") for stage in ("sft", "grpo")}
    samples = sorted(run_dir.glob("evaluate/*/samples.jsonl"), key=lambda path: stage_order(path.parent.name))
    return RunFolder(
        name=run_dir.resolve().name,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        summary=_read_object(run_dir / "summary.json"),
        curation=_read_object(run_dir / "curate" / "summary.json"),
        metrics={stage: rows for stage, rows in metrics.items() if rows},
        evaluations={path.parent.name: rows for path in samples if (rows := read_rows(path))},
        rollouts=read_rows(run_dir / "grpo" / "samples.jsonl"),
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file; none if it is missing. A last line without its end is still being written."""
    if not path.exists():
        return []
    whole_lines, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [_parse(line) for line in whole_lines.split("\n") if line.strip()]


def _read_object(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = _parse(path.read_text(encoding="utf-8")) if path.exists() else {}
    return parsed


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)  # NaN and Infinity are not numbers to show
