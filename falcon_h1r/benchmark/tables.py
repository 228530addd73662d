"""Cells and tables of the benchmark's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from falcon_h1r.benchmark.figures import Result

GIB = 1024**3
NONE = "–"

Outcome = Result | str | None


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, its first column on the left."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (header, ruler, *rows)] + [""]


def seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"


def times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}x"


def speedup(ours: Outcome, peer: Outcome) -> float | None:
    """How many times faster ours is, forward and backward."""
    if not (isinstance(ours, Result) and isinstance(peer, Result)):
        return None
    return peer.training_seconds / ours.training_seconds


def memory_share(ours: Outcome, peer: Outcome) -> float | None:
    if not (isinstance(ours, Result) and isinstance(peer, Result)) or peer.growth_bytes == 0:
        return None
    return ours.growth_bytes / peer.growth_bytes


def chunk(result: Result) -> str:
    return NONE if result.chunk_size is None else str(result.chunk_size)


def lap(outcome: Outcome, name: str) -> str:
    """Seconds of a lap."""
    return seconds(outcome.seconds[name]) if isinstance(outcome, Result) and name in outcome.seconds else NONE


def judged(value: float | None, bar: float | None, *, at_most: bool = False, unit: str = "x") -> str:
    """A figure beside its bar: `2.10x (bar 1.5x: met)`."""
    if value is None:
        return NONE
    shown = f"{value:.0%}" if unit == "%" else f"{value:.2f}{unit}"
    if bar is None:
        return shown
    wanted = f"{bar:.0%}" if unit == "%" else f"{bar:g}{unit}"
    return beside_bar(shown, wanted, value <= bar if at_most else value >= bar, at_most=at_most)


def beside_bar(shown: str, wanted: str, met: bool, *, at_most: bool) -> str:
    """A figure and its bar, both as they are shown."""
    return f"{shown} ({'at most' if at_most else 'at least'} {wanted}: {'met' if met else '**missed**'})"
