"""Signals as bytes in a pipe: they arrive also while Python's main thread is stuck in a C++ call."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

WAKE = 0  # no signal has this number


class SignalPipe:
    """Made by the main thread, and read by another when `poll` says so. It has the process's wakeup descriptor."""

    def __init__(self, numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> None:
        """
        Args:
            handler: Python's, for the main thread. A signal that was ignored (by nohup, say) stays so.
        """
        self._end, self._start = os.pipe()
        os.set_blocking(self._start, False)
        os.set_blocking(self._end, False)
        signal.set_wakeup_fd(self._start, warn_on_full_buffer=False)
        taken = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        # The C handler, which writes into the pipe, is there only with one of Python's.
        self._handlers = {number: signal.signal(number, handler) for number in taken}

    def fileno(self) -> int:
        return self._end

    def wake(self) -> None:
        """Have `poll` return."""
        os.write(self._start, bytes([WAKE]))

    def read(self) -> Iterator[signal.Signals]:
        """The signals taken since, of those that this pipe is for."""
        try:
            received = os.read(self._end, 256)
        except BlockingIOError:
            return
        yield from (signal.Signals(number) for number in received if number in self._handlers)

    def close(self) -> None:
        """Give the signals back to whom they were taken from."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._end)
        os.close(self._start)
