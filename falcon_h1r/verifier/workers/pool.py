"""Worker processes that can be killed: the only way to stop a bignum power is from outside the process."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any

from falcon_h1r.verifier.workers.process import START_SECONDS, DeadlineMissed, Result, WorkerLost, WorkerProcess

_TASKS_PER_PROCESS = 5_000  # then a fresh one: sympy's caches only grow
_MAX_FAILED_STARTS = 3  # in a row; then no task waits for a worker until the next try
_RETRY_SECONDS = 30.0
_BACKOFF_SECONDS = 0.2

log = logging.getLogger(__name__)

Task = tuple[list[Any], "Future[Result]"]


class _CannotStart(Exception):
    """No worker process can be had at present."""


class WorkerPool:
    """Runs a module's function in worker processes; a missed deadline costs the process, never the caller.

    Processes start with the first task and are driven by one thread each. Usable from any thread; a forked child that
    inherits a pool gets an empty one, with processes of its own. A pool that nobody refers to ends like a closed one.
    """

    def __init__(
        self,
        num_workers: int,
        deadline_seconds: float,
        memory_limit_bytes: int,
        task: str,
        preload: tuple[str, ...] = (),
        starved_factor: float = 1.25,  # so many deadlines of wall time, however little CPU a worker was given
    ) -> None:
        self.starved_factor = starved_factor
        self.num_workers = num_workers
        self.deadline_seconds = deadline_seconds
        self.settings = {
            "task": task,
            "preload": list(preload),
            "path": [os.path.abspath(entry) for entry in sys.path],  # a worker's current directory is /
            "memory_limit_bytes": memory_limit_bytes,
            "deadline_seconds": deadline_seconds,
        }
        self.num_deadline_kills = 0
        self.num_lost_workers = 0
        self.confinement: tuple[str, ...] | None = None
        self._warned = False
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._workers: dict[int, WorkerProcess] = {}
        self._closing = threading.Event()
        self._failed_starts = 0
        self._start_error = ""
        self._retry_at = 0.0
        self._finalizer = weakref.finalize(self, _abandon, self._tasks, self._threads, self._workers)
        self._finalizer.atexit = False  # at exit the pool is closed, which also keeps it from starting anew

    def forget_after_fork(self) -> None:
        """In a forked child: the parent's threads are not here and its processes are not ours."""
        self._finalizer.detach()
        for worker in self._workers.values():
            worker.forget()
        closed = self._closing.is_set()
        self._reset()
        if closed:
            self._closing.set()

    def submit(self, arguments: list[Any]) -> Future[Result]:
        """Queue one task; its future never holds an exception and cannot be cancelled.

        Raises:
            ValueError: after `close`.
        """
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._closing.is_set():
                raise ValueError("the verifier is closed")
            if self._threads or self._start_threads():
                self._tasks.put((arguments, future))
                return future
        future.set_result(("undecided", "worker", "no thread could be started"))
        return future

    def _start_threads(self) -> bool:
        """One to a worker, or as many as this process may have."""
        for index in range(self.num_workers):
            shared = (weakref.ref(self), index, self._tasks, self._workers)
            thread = threading.Thread(target=_serve, args=shared, name=f"verifier-{index}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            self._threads.append(thread)
        return bool(self._threads)

    def run(self, index: int, arguments: list[Any]) -> Result:
        """One task, by the process of this slot. Called by the slot's thread; raises nothing."""
        try:
            worker = self._worker(index)
            result, fit = worker.ask(arguments, self.deadline_seconds, self.starved_factor * self.deadline_seconds)
        except (_CannotStart, DeadlineMissed, WorkerLost) as error:
            self._discard(index)
            return self._explain(error)
        except Exception as error:  # a thread that ends would leave its tasks waiting for ever
            self._discard(index)
            return "undecided", "worker", f"{type(error).__name__}: {error}"[:200]
        if not fit or worker.num_tasks >= _TASKS_PER_PROCESS:
            self._discard(index)
        return result

    def _explain(self, error: Exception) -> Result:
        with self._lock:
            if self._closing.is_set():
                return _CLOSED
            if isinstance(error, DeadlineMissed):
                self.num_deadline_kills += 1
                return "undecided", "deadline", f"no verdict within {self.deadline_seconds:g} s"
            if isinstance(error, WorkerLost):
                self.num_lost_workers += 1
                return "undecided", "worker", f"the worker process died: {error}"
        return "undecided", "worker", f"no worker process could be started: {error}"

    # ------------------------------------------------------------------ processes
    def _worker(self, index: int) -> WorkerProcess:
        """The live process of this slot, started if there is none; a few attempts, then _CannotStart for a while."""
        while not self._closing.is_set():
            with self._lock:
                if (worker := self._workers.get(index)) is not None:
                    return worker
                if self._failed_starts >= _MAX_FAILED_STARTS and time.monotonic() < self._retry_at:
                    raise _CannotStart(self._start_error)
            try:
                return self._start(index)
            except (DeadlineMissed, WorkerLost, OSError) as error:
                self._discard(index)
                if self._note_failed_start(error):
                    raise _CannotStart(self._start_error) from error
                self._closing.wait(_BACKOFF_SECONDS)
        raise _CannotStart("the verifier was closed")

    def _start(self, index: int) -> WorkerProcess:
        with self._lock:
            if self._closing.is_set():
                raise _CannotStart("the verifier was closed")
            worker = self._workers[index] = WorkerProcess(self.settings)
        worker.wait_until_ready()
        with self._lock:
            self._failed_starts = 0
            self.confinement = worker.confinement
        return worker

    def _note_failed_start(self, error: Exception) -> bool:
        """Count it; whether that was one too many."""
        with self._lock:
            self._start_error = str(error) or f"{type(error).__name__} after {START_SECONDS:g} s"
            self._failed_starts += _MAX_FAILED_STARTS if isinstance(error, DeadlineMissed) else 1  # once is long enough
            if self._closing.is_set() or self._failed_starts < _MAX_FAILED_STARTS:
                return False
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            first, self._warned = not self._warned, True
        if first:
            log.warning(
                "the verifier's worker processes do not start (%s): pairs that need algebra are undecided; "
                "the next attempt is in %g s",
                self._start_error,
                _RETRY_SECONDS,
            )
        return True

    def _discard(self, index: int) -> None:
        with self._lock:
            worker = self._workers.pop(index, None)
        if worker is not None:
            worker.kill()

    def process_ids(self) -> list[int]:
        """Numbers of the worker processes that live now."""
        with self._lock:
            return [worker.process.pid for worker in list(self._workers.values())]

    def close(self) -> None:
        """Kill the processes, end the threads; tasks still waiting become undecided. Safe to call twice."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            threads = list(self._threads)
            self._finalizer.detach()  # calling it does nothing once the interpreter is ending
            _abandon(self._tasks, self._threads, self._workers)
        for thread in threads:
            if thread is not threading.current_thread():  # a callback of a future may close the pool
                thread.join()


_CLOSED: Result = ("undecided", "closed", "the verifier was closed")


def _serve(
    weak_pool: weakref.ref[WorkerPool],
    index: int,
    tasks: queue.SimpleQueue[Task | None],
    workers: dict[int, WorkerProcess],
) -> None:
    """One thread of a pool: takes tasks and has one worker process run them.

    Between tasks it holds no reference to the pool nor to a future, so that an abandoned pool can be collected.
    """
    while (task := tasks.get()) is not None:
        arguments, future = task
        pool = weak_pool()
        future.set_result(_CLOSED if pool is None else pool.run(index, arguments))
        del task, arguments, future, pool
    if (worker := workers.pop(index, None)) is not None:
        worker.kill()


def _abandon(
    tasks: queue.SimpleQueue[Task | None], threads: list[threading.Thread], workers: dict[int, WorkerProcess]
) -> None:
    """End the processes and have the threads end. Takes no lock: a garbage collection may call it anywhere."""
    for worker in list(workers.values()):
        worker.process.kill()
    for _ in threads:
        tasks.put(None)


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget_after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
