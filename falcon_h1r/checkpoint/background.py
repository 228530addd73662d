"""One piece of work in a thread of its own, while training goes on."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")
NICENESS = 10  # beside the main thread's: where cores are scarce, training goes first


class BackgroundWork(Generic[T]):
    """`work` on its way. An OSError is an outcome; any other exception is raised where the outcome is asked for."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._outcome: T | BaseException | None = None
        self.cpu_seconds = 0.0  # that the thread took, once it has ended
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended after so long."""
        self._thread.join(seconds)
        return not self.is_busy

    def outcome(self) -> T | OSError:
        """Of work that has ended."""
        outcome = self._outcome
        if isinstance(outcome, BaseException) and not isinstance(outcome, OSError):
            raise outcome
        return outcome  # type: ignore[return-value]

    @property
    def has_failed(self) -> bool:
        return not self.is_busy and isinstance(self._outcome, BaseException)

    def _run(self) -> None:
        if sys.platform == "linux":  # where threads have a niceness of their own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self._outcome = self._work()
        except BaseException as error:
            self._outcome = error
        self.cpu_seconds = time.thread_time()
