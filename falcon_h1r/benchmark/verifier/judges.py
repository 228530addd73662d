"""A judge in a process of its own, asked pair by pair: its latency and its memory are measured from outside.

Both judges speak the protocol of `python -m falcon_h1r.verifier`: a line {"id", "prediction", "gold"} in, a line
{"id", "correct"} out. One that does not answer within the limit, or dies, is killed with all its children and started
anew before the next pair; neither the start nor a kill counts into a latency, the limit does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.types import InputError

OURS, PEER = "ours", "Math-Verify"
HANG = "hang"
START_SECONDS = 60.0
PROBE_SECONDS = 120.0
TRIVIAL = Pair("trivial", r"\boxed{1}", "1", True, "start")
ALGEBRA = Pair("algebra", r"\boxed{\sin^2 x + \cos^2 x}", "1", True, "start")

_SOURCE_ROOT = Path(__file__).resolve().parents[3]
_PEER_SCRIPT = Path(__file__).with_name("math_verify_judge.py")


@dataclass(frozen=True, slots=True)
class Judge:
    """How a contender is started."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call and one process may take."""

    call_seconds: float
    memory_gib: float | None
    core: int | None  # the processor that judges are bound to


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict. `verdict` is None where the judge decided nothing."""

    verdict: bool | None
    seconds: float  # from the first byte sent to the answer's last
    note: str = ""  # which stage decided, or why nothing did
    fault: str | None = None  # HANG, or how the process ended
    peak_bytes: int = 0  # of the process and its children so far


def our_judge() -> Judge:
    return Judge(OURS, (sys.executable, "-m", "falcon_h1r.verifier"))


def peer_judge(python: str) -> Judge:
    return Judge(PEER, (python, "-I", str(_PEER_SCRIPT)))


def peer_versions(python: str) -> dict[str, str]:
    """What Math-Verify runs on there.

    Raises:
        InputError: where it does not.
    """
    key = f"benchmark.peer_python={python}"
    try:
        run = subprocess.run(
            [*peer_judge(python).command, "--versions"], capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except OSError as error:
        raise InputError(f"{key}: cannot be started ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{key}: did not import math_verify within {PROBE_SECONDS:g} s") from None
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1]
        raise InputError(f"{key}: cannot import math_verify there ({last})")
    versions: dict[str, str] = json.loads(run.stdout.strip().splitlines()[-1])
    return versions


def last_core() -> int | None:
    """The processor to bind judges to; None where a system cannot bind."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def source_environment() -> dict[str, str]:
    """The environment in which a fresh interpreter imports this very package, from any folder."""
    paths = [str(_SOURCE_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class JudgeProcess:
    """Starts with the first pair, and again after a fault."""

    def __init__(self, judge: Judge, limits: Limits) -> None:
        self.judge, self.limits = judge, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.mkdtemp(prefix="judge_")
        self._unread = b""

    def start(self) -> float:
        """Seconds from the start of the process to its first verdict, a trivial one; 0 if it runs.

        Raises:
            InputError: where it does not come to that.
        """
        if self._process is not None:
            return 0.0
        started = time.perf_counter()
        self._process = subprocess.Popen(
            self.judge.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            env=source_environment(),
            start_new_session=True,  # the terminal's Ctrl-C is the suite's business
        )
        self._unread = b""
        self._bind(self._process)
        answer = self._ask(TRIVIAL, START_SECONDS)
        if isinstance(answer, str):
            self.kill()
            raise InputError(f"{self.judge.name} does not start: {answer} ({' '.join(self.judge.command)})")
        return time.perf_counter() - started

    def judge_pair(self, pair: Pair) -> Judgement:
        """The verdict on one pair, or how there came to be none."""
        self.start()
        began = time.perf_counter()
        answer = self._ask(pair, self.limits.call_seconds)
        seconds = time.perf_counter() - began
        peak_bytes = self._peak_bytes()
        if isinstance(answer, str):
            self.kill()
            return Judgement(None, seconds, answer, answer, peak_bytes)
        verdict = answer.get("correct")
        note = answer.get("stage") or answer.get("reason") or ""
        return Judgement(verdict if isinstance(verdict, bool) else None, seconds, str(note), None, peak_bytes)

    def kill(self) -> None:
        """With all its children, also those in sessions of their own."""
        if self._process is None:
            return
        family = self._family()
        self._process.kill()
        for member in family:
            if member.pid != self._process.pid:
                _kill(member)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _bind(self, process: subprocess.Popen[bytes]) -> None:
        """Limits and core, inherited by threads and children to come."""
        if self.limits.memory_gib is not None and hasattr(resource, "prlimit"):
            limit = int(self.limits.memory_gib * 1024**3)
            resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        if self.limits.core is not None:
            os.sched_setaffinity(process.pid, {self.limits.core})
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)

    def _ask(self, pair: Pair, limit_seconds: float) -> dict[str, Any] | str:
        """The answer's row, or what went wrong."""
        question = {"id": pair.id, "prediction": pair.prediction, "gold": pair.gold}
        unsent = (json.dumps(question) + "\n").encode()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        stdin, stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        end = time.perf_counter() + limit_seconds
        while (left := end - time.perf_counter()) > 0:
            readable, writable, _ = select.select([stdout], [stdin] if unsent else [], [], left)
            if writable:
                try:
                    unsent = unsent[os.write(stdin, unsent) :]
                except BrokenPipeError:
                    return self._end()
            if readable:
                chunk = os.read(stdout, 1 << 16)
                if not chunk:
                    return self._end()
                self._unread += chunk
                if (answer := self._answer_to(pair.id)) is not None:
                    return answer
        return HANG

    def _answer_to(self, pair_id: str) -> dict[str, Any] | None:
        """Of the lines that have come, the one on this pair; others are passed over."""
        while b"\n" in self._unread:
            line, _, self._unread = self._unread.partition(b"\n")
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.get("id") == pair_id:
                return row
        return None

    def _end(self) -> str:
        """How the process ended by itself."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return f"killed by signal {-code}" if code < 0 else f"ended with status {code}"

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _peak_bytes(self) -> int:
        return sum(map(_peak_of, self._family()))


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _peak_of(process: psutil.Process) -> int:
    """The most that a process has held; without /proc what it holds."""
    try:
        status = Path(f"/proc/{process.pid}/status")
        if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
            return int(found[1]) * 1024
        return int(process.memory_info().rss)
    except (psutil.Error, OSError):  # it has just ended
        return 0
