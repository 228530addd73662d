"""A contender in a process of its own: its memory is measured alone, and when it dies the rest goes on.

The parent tells it when to run, so that competitors alive together take turns. Whatever ends a contender early (an
exception, the memory limit, a signal, the deadline) becomes the text of `Failed`.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from falcon_h1r.benchmark.cases import Case, Contender

if TYPE_CHECKING:
    from falcon_h1r.benchmark.workloads import Setup

WARM_UP_TOKENS = 64  # of a document: enough to load libraries and make threads


@dataclass(frozen=True, slots=True)
class Run:
    """One forward and backward, and the update where there is one."""

    seconds: dict[str, float]
    growth_bytes: int  # beyond weights and inputs, since the first run
    peak_bytes: int  # everything
    facts: dict[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no figure."""

    reason: str


class ContenderProcess:
    """Starts at once and builds; `run` works once. After a failure every further run repeats its reason."""

    def __init__(self, case: Case, contender: Contender, setup: Setup, max_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, case, contender, setup), daemon=True)
        self._process.start()
        theirs.close()  # or the end of the process would not be noticed
        self._max_seconds = max_seconds
        self._failure: Failed | None = None
        self._is_ready = False

    def wait(self) -> None:
        """Until everything is built, or the process has failed."""
        if not self._is_ready and self._failure is None:
            self._receive()
            self._is_ready = True

    def run(self) -> Run | Failed:
        """Work once."""
        self.wait()
        if self._failure is not None:
            return self._failure
        self._connection.send("run")
        answer = self._receive()
        return answer if isinstance(answer, Run) else self._failure or Failed("no answer")

    def close(self) -> None:
        """End the process; an idle one ends by itself."""
        self._connection.close()
        self._process.join(timeout=5)
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        """The process's next message; its failure is kept."""
        answer: Any
        try:
            answer = self._connection.recv() if self._connection.poll(self._max_seconds) else None
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode or 0
            answer = Failed(f"killed by signal {-code}" if code < 0 else f"ended with status {code}")
        if answer is None:
            self._process.kill()
            answer = Failed(f"stopped after {self._max_seconds:g} s")
        if isinstance(answer, Failed):
            self._failure = answer
        return answer


def _serve(connection: Connection, case: Case, contender: Contender, setup: Setup) -> None:
    """The process: build, say so, then run whenever told to, until the parent hangs up."""
    try:
        _work(connection, case, contender, setup)
    except (EOFError, BrokenPipeError):
        return  # the parent is done with us
    except Exception as error:  # a process border: the reason goes into the row
        connection.send(Failed(_reason(error, setup.memory_limit_gib)))


def _work(connection: Connection, case: Case, contender: Contender, setup: Setup) -> None:
    import torch
    import transformers

    from falcon_h1r.benchmark.meter import Laps, PeakMemory, limit_memory
    from falcon_h1r.benchmark.workloads import prepare

    transformers.logging.set_verbosity_error()  # it tells every process which kernels it lacks
    torch.set_num_threads(setup.num_threads)
    device = torch.device(setup.device)
    if device.type == "cpu" and setup.memory_limit_gib is not None:
        limit_memory(setup.memory_limit_gib)
    # Kernels of a GPU are compiled and tuned for their sizes; a CPU only has to have touched everything once.
    short = replace(case, lengths=tuple(min(length, WARM_UP_TOKENS) for length in case.lengths))
    prepare(case if device.type == "cuda" else short, contender, setup)(Laps(device))
    work = prepare(case, contender, setup)
    memory = PeakMemory(device)
    connection.send("ready")
    while connection.recv() == "run":
        laps = Laps(device)
        facts = work(laps)
        connection.send(Run(laps.seconds, memory.growth_bytes, memory.peak_bytes, facts))


def _reason(error: Exception, limit_gib: float | None) -> str:
    """An error in one line; what torch says of a failed allocation, in three words."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return "out of memory" if limit_gib is None else f"out of memory at {limit_gib:g} GiB"
    return f"{type(error).__name__}: {text.splitlines()[0]}"
