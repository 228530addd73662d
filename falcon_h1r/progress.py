"""Console progress: a bar on a terminal, a plain line now and then in a file or a pipe."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 20.0
PLAIN_LINE_SHARE = 0.1
SECONDS_BETWEEN_COUNTS = 1.0  # of tokens: rollouts end in bursts, and a burst has no speed


class ProgressReporter:
    """Counts steps and tokens, and says how it goes; silent without a console."""

    def __init__(
        self, total: int, description: str, unit: str, completed: int = 0, console: Console | None = None
    ) -> None:
        self.total, self.description, self.unit, self.completed = total, description, unit, completed
        self._console = console
        self._is_terminal = console is not None and console.is_terminal
        self._started = self._last_line = time.monotonic()
        self._completed_at_start = self._completed_at_last_line = completed
        self._recent: deque[tuple[float, int]] = deque(maxlen=20)  # (when, tokens so far)
        self._recent.append((self._started, 0))
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
            TextColumn("{task.fields[state]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._is_terminal,
        )
        self._task = self.bar.add_task(description, total=total, completed=completed, state="")

    def advance(self, steps: int = 1, tokens: int = 0, **shown: float) -> None:
        """Count steps and tokens done; `shown` are the current values to display: loss, reward."""
        self.completed += steps
        now = time.monotonic()
        so_far = self._recent[-1][1] + tokens
        if len(self._recent) > 1 and now - self._recent[-2][0] < SECONDS_BETWEEN_COUNTS:
            self._recent.pop()
        self._recent.append((now, so_far))
        if self._console is None:
            return
        if self._is_terminal:
            self.bar.update(self._task, completed=self.completed, state="  ".join(self._state(shown)))
        elif self._line_is_due(now):
            self._last_line, self._completed_at_last_line = now, self.completed
            print(self._plain_line(now, shown), flush=True)

    def _state(self, shown: Mapping[str, float]) -> list[str]:
        parts = [f"{name} {value:.4g}" for name, value in shown.items()]
        (first, tokens_first), (last, tokens_last) = self._recent[0], self._recent[-1]
        if tokens_last > tokens_first and last > first:
            parts.append(f"{(tokens_last - tokens_first) / (last - first):,.0f} tokens/s")
        return parts

    def _line_is_due(self, now: float) -> bool:
        share = (self.completed - self._completed_at_last_line) / max(self.total, 1)
        is_last = self.completed >= self.total > self._completed_at_last_line
        return is_last or share >= PLAIN_LINE_SHARE or now - self._last_line >= PLAIN_LINE_SECONDS

    def _plain_line(self, now: float, shown: Mapping[str, float]) -> str:
        elapsed = now - self._started
        seconds_per_step = elapsed / max(self.completed - self._completed_at_start, 1)
        remaining = seconds_per_step * max(self.total - self.completed, 0)
        counted = f"{self.description}  {self.completed}/{self.total} {self.unit}"
        times = f"{format_duration(elapsed)} elapsed, ETA {format_duration(remaining)}"
        return "  |  ".join([counted, *self._state(shown), times])


def format_duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
