"""What a check has found: a line of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

OK, SKIPPED, WARN, FAILED = "ok", "skipped", "warn", "failed"
BY_WEIGHT = (OK, SKIPPED, WARN, FAILED)  # of what ranks say differently, the last counts


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `advice` says what to do about a warning or a failure, or why something was skipped."""

    name: str
    status: str
    measured: str
    advice: str = ""


def graded(name: str, status: str, measured: str, advice: str) -> Finding:
    """A finding that carries its advice only where there is something to do."""
    return Finding(name, status, measured, advice if status in (WARN, FAILED) else "")


def merge_ranks(by_rank: Sequence[Sequence[Finding]]) -> list[Finding]:
    """One finding a name, in the order in which names first occur: the gravest that any rank has.

    Where ranks differ in status, those that have the gravest are named.
    """
    names = dict.fromkeys(finding.name for findings in by_rank for finding in findings)
    merged = []
    for name in names:
        found = [(rank, f) for rank, findings in enumerate(by_rank) for f in findings if f.name == name]
        gravest = max((f.status for _, f in found), key=BY_WEIGHT.index)
        ranks = [rank for rank, f in found if f.status == gravest]
        finding = next(f for _, f in found if f.status == gravest)
        if len(ranks) < len(by_rank):
            finding = replace(finding, measured=f"{name_ranks(ranks)}: {finding.measured}")
        merged.append(finding)
    return merged


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 2`, `ranks 0, 1, 2, 3 and 60 more`."""
    shown = ", ".join(map(str, ranks[:4]))
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}{more}"
