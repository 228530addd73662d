"""The parent's side of a zygote: starts one, sends programs and inputs, kills it when it must."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import falcon_h1r
from falcon_h1r.verifier.code import frames
from falcon_h1r.verifier.code.confined import Limits

_START_SECONDS = 120.0  # imports on a loaded machine; part of no budget
_GRACE_SECONDS = 10.0  # what a supervisor may take beyond the deadline it enforces itself
_BOOT = """
import sys
path = sys.path[:]
sys.path.append({root!r})
from falcon_h1r.verifier.code.zygote import main
main(sys.argv[1], path)
"""


class RunnerLost(Exception):
    """The processes behind a runner have gone, or do not answer; the message says which."""


@dataclass(frozen=True)
class CaseRun:
    """What a program did with one input."""

    output: bytes  # of standard output, or the function's result as JSON
    exit: int  # status; minus the signal that ended it
    cpu_seconds: float | None  # None: not known
    stopped: str = ""  # why it was stopped: deadline, output, threads, files, time
    error: str = ""  # the last line of standard error


class LocalRunner:
    """One zygote, started with the first program, replaced when it is lost. Not for several threads at once."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: str | None = None
        self._lock = threading.Lock()  # over killing and reaping, so that no reused number is killed
        self._interrupted = False

    def start(self) -> None:
        """Have a zygote that is ready."""
        if self._process is not None:
            return
        self._scratch = tempfile.mkdtemp(prefix="falcon-code-")
        settings = {"scratch": self._scratch, "limits": asdict(self.limits)}
        root = str(Path(falcon_h1r.__file__).parent.parent)
        self._process = subprocess.Popen(
            # No site: only the standard library can be found. Nothing of this process's environment but what is below.
            [sys.executable, "-s", "-S", "-P", "-B", "-c", _BOOT.format(root=root), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "MALLOC_ARENA_MAX": "2"},  # the same program, the same run
            cwd="/",
            start_new_session=True,  # one group to kill, and no Ctrl-C of a terminal
        )
        if self._interrupted:
            raise RunnerLost("interrupted")
        ready, _ = self._receive(_START_SECONDS)
        if not ready["ready"]:
            raise RunnerLost(f"the sandbox could not be set up: {ready['error']}")

    def begin(self, source: str, fn_name: str | None) -> None:
        """Hand over a program; `run` may follow until `end`."""
        self.start()
        self._send({"kind": "program", "fn_name": fn_name}, source.encode(errors="replace"))

    def run(self, text: str) -> CaseRun:
        """Run the program on one input: standard input, or a function's arguments as a JSON list.

        Raises:
            RunnerLost: where there is no answer, or the program could not be confined.
        """
        self._send({"kind": "case"}, text.encode(errors="replace"))
        header, output = self._receive(self.limits.deadline_seconds + _GRACE_SECONDS)
        if not header["confined"]:
            raise RunnerLost(f"the sandbox could not be set up: {header['error'] or 'no reason was given'}")
        return CaseRun(output, header["exit"], header["cpu_seconds"], header["stopped"], header["error"])

    def end(self) -> None:
        """The program needs no further inputs."""
        self._send({"kind": "enough"})

    def process_ids(self) -> list[int]:
        """Of the zygote, where there is one."""
        return [] if self._process is None else [self._process.pid]

    def _send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            frames.send(self._process.stdin.fileno(), header, payload)
        except (frames.PipeClosed, ValueError) as error:
            raise RunnerLost("the sandbox's process has ended") from error

    def _receive(self, seconds: float) -> tuple[dict[str, Any], bytes]:
        assert self._process is not None and self._process.stdout is not None
        try:
            return frames.receive(self._process.stdout.fileno(), seconds)
        except (frames.PipeClosed, ValueError) as error:
            raise RunnerLost("the sandbox's process has ended") from error
        except frames.PipeTimeout as error:
            raise RunnerLost(f"the sandbox's process did not answer within {seconds:g} s") from error

    def interrupt(self) -> None:
        """Kill the processes, from any thread and for good: what runs, and what would, ends with RunnerLost."""
        self._interrupted = True
        self._kill()

    def _kill(self) -> None:
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the processes, reap the zygote, remove the scratch folder. A later program starts anew."""
        self._kill()
        with self._lock:
            if self._process is not None:
                self._process.wait()
        self._close_pipes()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def abandon(self) -> None:
        """In a forked child, which has no right to kill: close its ends of the pipes, forget the rest."""
        if self._process is not None:
            self._process.returncode = 0  # so that Popen does not wait for another process's child
        self._scratch = None
        self._close_pipes()

    def _close_pipes(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = None

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
