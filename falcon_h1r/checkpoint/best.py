"""The best so far: a mark beside the checkpoints, which rotation reads.

    checkpoints/best.json   {"metric": "dev_pass_at_1", "step": 40, "value": 0.53}

`step` is where it was measured. The whole checkpoint nearest to that step is kept beside the newest ones; of two that
are equally near, the earlier. A later value has to be higher to take the mark: of equal ones the earliest stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from falcon_h1r.checkpoint.files import replace_text

BEST = "best.json"
WATCHED = "watch_"  # of a metric's name: measured by a job beside the run, which sets the mark itself


@dataclass(frozen=True, slots=True)
class BestMark:
    """Where a metric was highest."""

    metric: str
    step: int
    value: float


def read_best(root: Path, metric: str) -> BestMark | None:
    """The mark of this metric; None where there is none, or that of another metric."""
    try:
        row = json.loads((root / BEST).read_text(encoding="utf-8"))
        mark = BestMark(str(row["metric"]), int(row["step"]), float(row["value"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if mark.metric == metric else None


def mark_if_better(root: Path, mark: BestMark) -> bool:
    """Set the mark where it is the first, or higher than the one before.

    Raises:
        OSError: where it cannot be written; the one before stays.
    """
    before = read_best(root, mark.metric)
    if not math.isfinite(mark.value) or (before is not None and before.value >= mark.value):
        return False
    root.mkdir(parents=True, exist_ok=True)
    replace_text(root / BEST, json.dumps(asdict(mark)) + "\n")
    return True


def remark(root: Path, metric: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Set the mark anew from a log: a run that goes on from an earlier step forgets what lay behind it."""
    (root / BEST).unlink(missing_ok=True)
    for row in rows:
        if isinstance(value := row.get(metric), (int, float)):
            mark_if_better(root, BestMark(metric, row["step"], value))


def nearest_step(steps: Sequence[int], step: int) -> int | None:
    """The one of these that is nearest, the earlier of two; None where there are none."""
    return min(sorted(steps), key=lambda saved: abs(saved - step), default=None)
