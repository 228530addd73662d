"""One program's tests: forks a confined process for each input, watches it, reports what it wrote and how it ended.

The supervisor judges nothing, for it does not know the expected outputs either.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from falcon_h1r.verifier.code import confined, frames, harness
from falcon_h1r.verifier.code.confined import READY, REPORT, STDERR, STDOUT, Limits, Walls
from falcon_h1r.verifier.workers.sandbox import die_with_parent

_PARENT_IN, _PARENT_OUT = 0, 1
_LOOK_SECONDS = 0.02  # how often threads and files are counted
_ERROR_BYTES = 1 << 20  # of standard error: only its last line is told
_CHUNK_BYTES = 1 << 18
_SEALS = 0x0F  # against writing, growing, shrinking and further seals


def serve(walls: Walls, limits: Limits, names: dict[str, Any]) -> NoReturn:
    """Read a program, then run it on one input after the other, until the parent says enough. Ends this process."""
    status = 1
    try:
        die_with_parent(os.getppid())
        program, source = frames.receive(_PARENT_IN)
        while True:
            header, text = frames.receive(_PARENT_IN)
            if header["kind"] == "enough":
                break
            run = _Run(walls, limits, names, source.decode(), program["fn_name"])
            frames.send(_PARENT_OUT, *run.on(text))
            confined.empty_folder(walls.scratch)
        status = 0
    except frames.PipeClosed:
        pass  # the parent has gone; so has the zygote, or it is about to
    finally:
        os._exit(status)


@dataclass
class _Run:
    """One process of a program."""

    walls: Walls
    limits: Limits
    names: dict[str, Any]
    source: str
    fn_name: str | None
    stopped: str = ""  # why it was killed
    written: dict[int, bytearray] = field(default_factory=dict)  # by the descriptor it was written to

    def on(self, text: bytes) -> tuple[dict[str, Any], bytes]:
        """Run the program on this input, to its end or its limits: a header for the parent, and what was written."""
        stdin = _sealed(text)
        pipes = {number: os.pipe2(os.O_CLOEXEC) for number in (STDOUT, STDERR, REPORT, READY)}
        started = time.monotonic()
        supervisor = os.getpid()
        child = os.fork()
        if child == 0:
            self._become_program(supervisor, [stdin, *(pipes[number][1] for number in pipes)])
        os.close(stdin)
        for _, writer in pipes.values():
            os.close(writer)
        readers = {reader: number for number, (reader, _) in pipes.items()}
        self.written = {number: bytearray() for number in pipes}
        process = os.pidfd_open(child)
        try:
            self._watch(child, process, readers, started + self.limits.deadline_seconds)
        finally:
            os.kill(child, signal.SIGKILL)  # not reaped yet, so the number is still its own
            _, status, usage = os.wait4(child, 0)
            for reader in readers:
                self._read(reader, readers[reader], to_end=True)
                os.close(reader)
            os.close(process)
        ended = os.waitstatus_to_exitcode(status)
        header = {
            "confined": self.written[READY] == b"1",
            "stopped": self.stopped,
            "exit": ended,  # minus the signal where one ended it
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "seconds": time.monotonic() - started,
            "error": _last_line(self.written[STDERR if self.written[READY] == b"1" else READY]),
        }
        return header, bytes(self.written[STDOUT if self.fn_name is None else REPORT])

    def _become_program(self, supervisor: int, descriptors: list[int]) -> NoReturn:
        """In the child: put up the walls, say so, run. Nothing returns from here."""
        exit_now = os._exit  # the program may put something else in its place
        try:
            confined.number(descriptors)
            try:
                confined.confine(supervisor, self.walls, self.limits)
            except BaseException as error:
                os.write(READY, f"{type(error).__name__}: {error}".encode())
                raise
            os.write(READY, b"1")
            os.close(READY)
            harness.run(self.source, self.fn_name, REPORT, self.names)
        finally:
            exit_now(1)

    def _watch(self, child: int, process: int, readers: dict[int, int], deadline: float) -> None:
        """Read what the program writes until it ends, or stop it."""
        poll = select.poll()
        for descriptor in (process, *readers):
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        poll.register(_PARENT_IN, 0)  # only to hear when the parent has gone
        while not self.stopped:
            left = deadline - time.monotonic()
            if left <= 0:
                self.stopped = "deadline"
                return
            for descriptor, _ in poll.poll(min(left, _LOOK_SECONDS) * 1000):
                if descriptor == process:
                    return
                if descriptor == _PARENT_IN:
                    raise frames.PipeClosed
                if self._read(descriptor, readers[descriptor]):
                    poll.unregister(descriptor)
            self._look(child)

    def _read(self, reader: int, number: int, to_end: bool = False) -> bool:
        """Take what is there; True at the end of the pipe. Beyond its limit an output stops the program."""
        most = _ERROR_BYTES if number == STDERR else self.limits.output_bytes
        while len(self.written[number]) <= most:
            try:
                chunk = os.read(reader, _CHUNK_BYTES)
            except BlockingIOError:
                return False
            if not chunk:
                return True
            if not (number == STDOUT and self.fn_name is not None):  # what a function prints is no answer
                self.written[number] += chunk
            if not to_end:
                return False
        self.stopped = self.stopped or "output"
        return True

    def _look(self, child: int) -> None:
        """Stop a program that has had its CPU time, starts too many threads or fills its folder."""
        try:
            threads = os.stat(f"/proc/{child}/task").st_nlink - 2
            cpu_seconds = time.clock_gettime(~child << 3 | 2)  # CPUCLOCK_SCHED of another process
        except OSError:  # it has just ended
            return
        files, size = confined.folder_content(self.walls.scratch, self.limits.files)
        if cpu_seconds > self.limits.cpu_seconds:
            self.stopped = "time"
        elif threads > self.limits.threads:
            self.stopped = "threads"
        elif files > self.limits.files or size > self.limits.scratch_bytes:
            self.stopped = "files"


def _sealed(text: bytes) -> int:
    """A file in memory that holds an input and can be read alone: programs may ask for its size, or map it."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(text)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def _last_line(text: bytearray) -> str:
    """The last line that is not blank, printable and short: it names the error, and goes to logs."""
    lines = bytes(text[-4096:]).decode(errors="replace").strip().splitlines()
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:200] if lines else ""
