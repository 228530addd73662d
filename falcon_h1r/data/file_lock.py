"""A lock among processes of several machines that share a folder: a file that only one of them can create.

No flock, which network file systems lend differently or not at all. The holder touches its file every few seconds; a
lock that nobody has touched for long is taken away, by each waiter's own clock, for those of two machines differ.
Should two processes come to hold one lock after all, both do the same work: what it guards is renamed into place whole.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

REFRESH_SECONDS = 5.0
STALE_SECONDS = 180.0  # network file systems may show a time that is a minute old


class FileLock:
    """Taken by `acquire`, kept fresh by a thread until `release`."""

    def __init__(self, path: Path) -> None:
        self._path, self._released = path, threading.Event()
        self._content = json.dumps({"host": host_name(), "pid": os.getpid(), "time": time.time()})

    def acquire(self) -> bool:
        """Whether the lock is ours now; another's is left to it."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(self._content)
        threading.Thread(target=self._refresh, daemon=True).start()
        return True

    def release(self) -> None:
        self._released.set()
        with suppress(FileNotFoundError):
            if self._path.read_text() == self._content:  # else it was taken away, and is another's now
                self._path.unlink()

    def _refresh(self) -> None:
        while not self._released.wait(REFRESH_SECONDS):
            with suppress(FileNotFoundError):
                os.utime(self._path)


class StaleLocks:
    """What a waiter has seen of others' locks, to take away those whose holder is gone."""

    def __init__(self, stale_seconds: float = STALE_SECONDS) -> None:
        self._stale_seconds = stale_seconds
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}  # path -> (state of the file, since when)

    def remove_if_stale(self, path: Path) -> bool:
        """Take the lock away if its holder has died on this machine, or has not touched it for long."""
        try:
            found = os.stat(path)
            content = path.read_text()
        except FileNotFoundError:
            self._seen.pop(path, None)
            return False
        state = found.st_ino, found.st_mtime_ns
        known, since = self._seen.get(path, (None, 0.0))
        if known != state:
            self._seen[path] = state, (since := time.monotonic())
        if time.monotonic() - since < self._stale_seconds and not _holder_is_dead(content):
            return False
        return _take_away(path, content)


def _holder_is_dead(content: str) -> bool:
    """Whether the holder ran here and runs no more. A lock that is being written says nothing yet."""
    try:
        holder = json.loads(content)
        if holder["host"] != host_name():
            return False
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, PermissionError):
        return False
    return False


def _take_away(path: Path, content: str) -> bool:
    """Rename, which only one of several waiters can do; put a lock back that was taken anew in between."""
    aside = path.with_name(f"{path.name}.{host_name()}.{os.getpid()}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    was_stale = aside.read_text() == content
    if not was_stale:
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()
    return was_stale


def host_name() -> str:
    """Of this machine, and of the process ids that it counts: a container counts its own."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}-{''.join(filter(str.isdigit, namespace))}"
