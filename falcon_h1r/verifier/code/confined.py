"""From a forked child to a confined process: the walls, in the order in which they can be put up."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from falcon_h1r.verifier.workers import sandbox
from falcon_h1r.verifier.workers.sandbox import CallFilter, FileView

STDIN, STDOUT, STDERR, REPORT, READY = range(5)  # the only descriptors that a program starts with; READY is closed

MAX_FILE_BYTES = 4 << 20  # of one file in the scratch folder
MAX_OPEN_FILES = 32
_STACK_BYTES = 256 << 20  # of the main thread: deep recursion through C code
_FIRST_FREE = 64  # descriptors are moved out of the way, up here, before they get their numbers


@dataclass(frozen=True)
class Limits:
    """What one process of a program may use; `deadline_seconds` are of wall clock, `memory_bytes` of address space."""

    cpu_seconds: float
    deadline_seconds: float
    memory_bytes: int
    output_bytes: int  # of standard output, or of a function's result
    threads: int = 64
    files: int = 64  # in the scratch folder
    scratch_bytes: int = 32 << 20  # of all of them


@dataclass(frozen=True)
class Walls:
    """What is the same for every process of a zygote, and so made once."""

    scratch: Path  # the folder that programs may write in
    view: FileView
    calls: CallFilter


def number(descriptors: list[int]) -> None:
    """Give these the numbers 0, 1, 2, ..., whatever numbers they have."""
    away = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _FIRST_FREE) for descriptor in descriptors]
    for to, descriptor in enumerate(away):
        os.dup2(descriptor, to)


def confine(parent: int, walls: Walls, limits: Limits) -> None:
    """Leave this process nothing but its five descriptors, the scratch folder, the library and its budget.

    Raises:
        SandboxUnavailable: where a wall cannot be put up. The program must not run then.
    """
    sandbox.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(walls.scratch)
    os.umask(0o077)
    with open("/proc/self/oom_score_adj", "w") as file:  # short of memory, the kernel shall choose this process
        file.write("1000")
    sandbox.drop_capabilities()
    walls.view.apply()
    os.closerange(READY + 1, os.sysconf("SC_OPEN_MAX"))
    sandbox.limit_resources(
        limits.memory_bytes,
        cpu_seconds=int(limits.cpu_seconds) + 1,  # whole seconds; the supervisor reads the exact sum
        file_bytes=MAX_FILE_BYTES,
        open_files=MAX_OPEN_FILES,
    )
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    os.environ.clear()
    walls.calls.apply()


def folder_content(folder: Path, most: int) -> tuple[int, int]:
    """(files, bytes) in a scratch folder, which has no folders in it; stops counting beyond `most` files."""
    count = size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            try:
                size += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # the program is at work
                continue
            if count > most:
                break
    return count, size


def empty_folder(folder: Path) -> None:
    """Remove every file of a scratch folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            os.unlink(entry.path)
