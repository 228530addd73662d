"""Judging beside the sampling: a thread takes what has been drawn, and gives rows.

Algebra, and programs above all, may take seconds a response; the engine goes on meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_AT_ONCE = 64  # rows are written when all of these are judged: what a kill may cost


class Judging(Generic[T]):
    """`work` is called on lists of what was put, one list at a time, in a thread of its own.

    Leaving the context waits for all that was put, also where an error has ended the drawing: a response that was
    drawn is dear, and judged soon.
    """

    def __init__(self, work: Callable[[Sequence[T]], None]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._num_open, self._num_done, self._closed = 0, 0, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="evaluation-judging", daemon=True)

    def __enter__(self) -> Judging[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if error is None:
            self._raise_error()

    def put(self, items: Sequence[T]) -> None:
        with self._changed:
            self._waiting.extend(items)
            self._num_open += len(items)
            self._changed.notify_all()

    @property
    def is_busy(self) -> bool:
        return self._num_open > 0

    def wait(self, seconds: float) -> None:
        """Until one more list is done, or nothing is left, or the time is over."""
        with self._changed:
            done = self._num_done
            self._changed.wait_for(lambda: self._num_done > done or not self._num_open, seconds)

    def num_done(self) -> int:
        """Lists so far.

        Raises:
            Exception: what `work` has raised.
        """
        self._raise_error()
        return self._num_done

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting or self._error is not None:
                    return
                batch = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
            try:
                self._work(batch)
            except BaseException as error:  # raised in the thread that draws
                self._error = error
            with self._changed:
                self._num_open = 0 if self._error is not None else self._num_open - len(batch)
                self._num_done += 1
                self._changed.notify_all()
                if self._error is not None:
                    return
