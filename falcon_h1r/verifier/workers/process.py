"""One worker process seen from its parent: its two pipes, its deadline, its end."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from typing import Any

START_SECONDS = 120.0  # imports on a loaded machine; not part of any deadline
_SHORTEST_WAIT_SECONDS = 0.02
_MAX_REPLY_BYTES = 1 << 20
_CPU_HEADROOM_SECONDS = 5
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; from {module} import main; main(sys.argv[1])"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")  # what an interpreter may need to start; nothing else is handed down

Result = tuple[str, str, str]  # status, stage, reason


class DeadlineMissed(Exception):
    """No reply in time."""


class WorkerLost(Exception):
    """The process died, or answers nonsense."""


class WorkerProcess:
    """A fresh interpreter that runs worker.py. Driven by one thread, the one that starts it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        boot = _BOOT.format(module="falcon_h1r.verifier.workers.worker")
        inherited = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-c", boot, json.dumps({**settings, "parent": os.getpid()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # a forked child that closes its copies of the pipes must not flush anything into them
            env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},  # sympy orders terms by hash
            cwd="/",
            start_new_session=True,  # the terminal's Ctrl-C is the parent's business
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self._replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._requests, False)  # a stopped worker would block the thread that writes to it
        self._buffer = b""
        self._cpu_seconds = 0.0  # that the process had used by its latest reply
        self._grant_cpu(START_SECONDS)
        self.confinement: tuple[str, ...] = ()
        self.num_tasks = 0

    def wait_until_ready(self) -> None:
        """Wait for the imports; raises WorkerLost with the reason when they fail."""
        end = time.monotonic() + START_SECONDS
        hello = self._receive(end, cpu_seconds=None, latest=end)
        if not hello.get("ready"):
            raise WorkerLost(str(hello.get("failed")))
        self.confinement = tuple(hello["confinement"])

    def ask(self, arguments: list[Any], deadline_seconds: float, longest_seconds: float) -> tuple[Result, bool]:
        """One task's result, and whether the process is fit for another.

        The deadline is CPU time of the worker as long as it computes or waits for a core, so that a loaded machine
        gives the same verdicts, up to `longest_seconds` of wall time; a worker that does neither has the deadline's
        seconds of wall time.
        """
        self.num_tasks += 1
        self._grant_cpu(2 * deadline_seconds)
        start = time.monotonic()
        end = start + deadline_seconds
        self._send((json.dumps({"id": self.num_tasks, "arguments": arguments}) + "\n").encode(), end)
        reply = self._receive(end, deadline_seconds, start + longest_seconds)
        try:
            status, stage, reason = map(str, reply["result"])
            if reply["id"] != self.num_tasks:
                raise WorkerLost("a reply to another task")
            return (status, stage, reason), bool(reply["fit"])
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerLost("a reply that is none") from error

    def _send(self, data: bytes, end: float) -> None:
        while data:
            if not _ready(self._requests, select.POLLOUT, end):
                raise DeadlineMissed
            try:
                data = data[os.write(self._requests, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise WorkerLost(self._epitaph()) from error

    def _receive(self, end: float, cpu_seconds: float | None, latest: float) -> dict[str, Any]:
        """The next line, as JSON. With `cpu_seconds`, a worker that has had less by `end` has until `latest`."""
        while b"\n" not in self._buffer:
            if not _ready(self._replies, select.POLLIN, end):
                lacking = 0.0 if cpu_seconds is None else cpu_seconds - self._cpu_of_task(cpu_seconds)
                now = time.monotonic()
                if lacking <= 0 or now >= latest:
                    raise DeadlineMissed
                end = min(now + max(lacking, _SHORTEST_WAIT_SECONDS), latest)
                continue
            chunk = os.read(self._replies, 1 << 16)
            if not chunk or len(self._buffer) > _MAX_REPLY_BYTES:
                raise WorkerLost(self._epitaph())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply = json.loads(line)
            self._cpu_seconds = float(reply.get("cpu", self._cpu_seconds))
        except (AttributeError, TypeError, ValueError) as error:
            raise WorkerLost("a reply that is none") from error
        assert isinstance(reply, dict)
        return reply

    def _cpu_of_task(self, if_not_computing: float) -> float:
        """CPU seconds of the running task; `if_not_computing` for a worker that sleeps, is stopped or is gone."""
        try:
            with open(f"/proc/{self.process.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return if_not_computing
        state, user, system = fields[0], int(fields[11]), int(fields[12])
        if state not in ("R", "D"):
            return if_not_computing
        return (user + system) / os.sysconf("SC_CLK_TCK") - self._cpu_seconds

    def _grant_cpu(self, seconds: float) -> None:
        """Let the process use so many more seconds: should nobody be there to kill it, the kernel ends it."""
        if sys.platform == "linux":  # from outside: a confined process may not change its own limits
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            most = int(self._cpu_seconds + seconds) + _CPU_HEADROOM_SECONDS
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(ProcessLookupError):  # it has ended; its pipes will say so
                resource.prlimit(self.process.pid, resource.RLIMIT_CPU, (soft, hard))

    def _epitaph(self) -> str:
        """How the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(1.0)
            return f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        return "closed its pipe"

    def kill(self) -> None:
        """SIGKILL, and reap: no zombie and no open pipe stays."""
        self.process.kill()
        self.process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this process's ends; the worker ends when it reads the end of its input."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def forget(self) -> None:
        """In a forked child: the process is another one's child."""
        self.process.returncode = 0  # so that Popen does not wait for it
        self.close_pipes()


def _ready(descriptor: int, event: int, end: float) -> bool:
    """Whether a pipe can be read or written by `end`; looked at once more when `end` has passed."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0.0, end - time.monotonic()) * 1000))
