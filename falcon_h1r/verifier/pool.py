"""Worker processes that can be killed: the only way to stop a bignum power is from outside the process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any

_START_SECONDS = 120.0  # imports on a loaded machine; not part of any deadline
_TASKS_PER_PROCESS = 5_000  # then a fresh one: sympy's caches only grow
_BOOT = "import sys; sys.path[:] = {path!r}; from falcon_h1r.verifier.worker import main; main(sys.argv[1])"

Result = tuple[str, str, str]  # status, stage, reason


class _DeadlineMissed(Exception):
    pass


class _WorkerLost(Exception):
    pass


class _WorkerProcess:
    """One worker process and its two pipes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT.format(path=settings["path"]), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"},
            cwd="/",
            start_new_session=True,  # the terminal's Ctrl-C is the parent's business
        )
        self.buffer = b""
        self.num_tasks = 0

    def receive(self, deadline_seconds: float) -> dict[str, Any]:
        """The next line from the worker, as JSON."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + deadline_seconds
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise _DeadlineMissed
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise _WorkerLost
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, task_id: int, arguments: list[Any], deadline_seconds: float) -> Result:
        """Send one task and wait for its result."""
        assert self.process.stdin is not None
        self.num_tasks += 1
        request = json.dumps({"id": task_id, "arguments": arguments}) + "\n"
        try:
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise _WorkerLost from error
        reply = self.receive(deadline_seconds)
        if reply.get("id") != task_id:
            raise _WorkerLost
        status, stage, reason = reply["result"]
        return status, stage, reason

    def kill(self) -> None:
        """SIGKILL, and reap: no zombie and no open pipe stays."""
        self.process.kill()
        self.process.wait()
        self.abandon()

    def abandon(self) -> None:
        """Close this process's ends of the pipes; the worker ends when it reads the end of its input."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what was still buffered is for nobody
                    pipe.close()


class WorkerPool:
    """Runs a module's function in worker processes; a missed deadline costs the process, never the caller.

    Processes start with the first task and are driven by one thread each. Usable from any thread; a forked
    child that inherits a pool gets an empty one, with processes of its own.
    """

    def __init__(
        self,
        num_workers: int,
        deadline_seconds: float,
        memory_limit_bytes: int,
        task: str,
        preload: tuple[str, ...] = (),
    ) -> None:
        self.num_workers = num_workers
        self.deadline_seconds = deadline_seconds
        self.settings = {
            "task": task,
            "preload": list(preload),
            "path": list(sys.path),
            "memory_limit_bytes": memory_limit_bytes,
            "deadline_seconds": deadline_seconds,
        }
        self.num_deadline_kills = 0
        self.num_lost_workers = 0
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[tuple[list[Any], Future[Result]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._workers: dict[int, _WorkerProcess] = {}
        self._closed = False

    def forget_after_fork(self) -> None:
        """In a forked child: the parent's threads are not here and its processes are not ours."""
        for worker in self._workers.values():
            worker.process.returncode = 0  # so that Popen does not wait for another process's child
            worker.abandon()
        self._reset()

    def submit(self, arguments: list[Any]) -> Future[Result]:
        """Queue one task; its future never holds an exception."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise ValueError("the verifier is closed")
            if not self._threads:
                for index in range(self.num_workers):
                    thread = threading.Thread(target=self._serve, args=(index,), name=f"verifier-{index}", daemon=True)
                    self._threads.append(thread)
                    thread.start()
            self._tasks.put((arguments, future))
        return future

    def _serve(self, index: int) -> None:
        """One thread: takes tasks, keeps one worker process alive to run them."""
        task_id = 0
        while (task := self._tasks.get()) is not None:
            arguments, future = task
            task_id += 1
            future.set_result(self._run(index, task_id, arguments))

    def _run(self, index: int, task_id: int, arguments: list[Any]) -> Result:
        try:
            worker = self._worker(index)
        except (_DeadlineMissed, _WorkerLost, OSError) as error:
            self._discard(index)
            return "undecided", "worker", f"no worker process could be started: {type(error).__name__}"
        if worker is None:
            return "undecided", "closed", "the verifier was closed"
        try:
            result = worker.ask(task_id, arguments, self.deadline_seconds)
        except _DeadlineMissed:
            self._discard(index)
            with self._lock:
                self.num_deadline_kills += 1
            return "undecided", "deadline", f"no verdict within {self.deadline_seconds:g} s"
        except _WorkerLost:
            self._discard(index)
            with self._lock:
                self.num_lost_workers += 1
            return "undecided", "worker", "the worker process died"
        if result[1] == "memory" or worker.num_tasks >= _TASKS_PER_PROCESS:
            self._discard(index)
        return result

    def _worker(self, index: int) -> _WorkerProcess | None:
        """The live process of this slot, started if there is none; None once the pool is closed."""
        with self._lock:
            if self._closed:
                return None
            worker = self._workers.get(index)
            if worker is not None:
                return worker
            worker = self._workers[index] = _WorkerProcess(self.settings)
        worker.receive(_START_SECONDS)
        return worker

    def _discard(self, index: int) -> None:
        with self._lock:
            worker = self._workers.pop(index, None)
        if worker is not None:
            worker.kill()

    def process_ids(self) -> list[int]:
        """Of the workers that live now."""
        with self._lock:
            return [worker.process.pid for worker in self._workers.values()]

    def close(self) -> None:
        """Kill the processes, end the threads; tasks still waiting become undecided. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._threads)
            for worker in self._workers.values():
                worker.process.kill()
            for _ in threads:
                self._tasks.put(None)
        for thread in threads:
            thread.join()
        for index in list(self._workers):
            self._discard(index)


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget_after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
