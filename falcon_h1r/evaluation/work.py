"""Who does what of an evaluation: processes that see one folder claim pieces of it, and take those of the dead.

A piece is claimed by making a name that is not there yet, `claims/PIECE.0`: a symbolic link to its owner's id, so that
a claim and whose it is come into being together, and no kill leaves one half written. Claims are never removed. An
owner shows that it is alive by touching `owners/OWNER`. When it is gone, the piece is claimed anew under the next
number, `claims/PIECE.1`; the highest number holds. So two that find the same owner gone cannot both have the piece,
and none can take away a claim that was made a moment ago.

An owner is gone when
- its file is: it left in order, finished or stopped;
- its process ran on this machine and runs no more;
- its file was not touched for `lost_seconds`, by the clock of whoever waits: those of two machines differ.

Who was believed dead and wakes up finds the higher number before it appends a row (`holds`), and drops it. If it had
looked just before, two rows are there in the end, of the same seed, and one of them counts (falcon_h1r.evaluation.
store).

Assumed of the file system: that it has symbolic links, that of several processes only one can make a name (as NFS has
it), that a change of a file's time reaches other machines within `lost_seconds`, and that what was written before a
file was closed is read by whoever opens it afterwards.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from falcon_h1r.data.file_lock import host_name
from falcon_h1r.types import InputError

BEATS = 8  # signs of life within lost_seconds
CLOCK_SECONDS = 5.0  # by which the start of one process may seem to differ: a machine's clock is set now and then
LOOK_SECONDS = 1.0  # between looks at one owner: a process may have thousands of claims


class Claims:
    """This process among those at the work, from entering the context to leaving it."""

    def __init__(self, folder: Path, lost_seconds: float) -> None:
        self.owner = secrets.token_hex(8)
        self._claims, self._owners = folder / "claims", folder / "owners"
        self._lost_seconds = lost_seconds
        self._held: dict[str, int] = {}  # piece -> number of our claim
        self._numbers: dict[str, int] = {}  # piece -> highest number seen
        self._owner_of: dict[tuple[str, int], str] = {}
        self._seen: dict[str, tuple[int, float]] = {}  # owner -> (time of its file, since when)
        self._found_alive: dict[str, float] = {}  # owner -> when
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="evaluation-claims", daemon=True)

    def __enter__(self) -> Claims:
        for folder in (self._claims, self._owners):
            folder.mkdir(parents=True, exist_ok=True)
        beside = self._owners / f".{self.owner}"
        beside.write_text(json.dumps(this_process()))
        beside.replace(self._owners / self.owner)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is still held is anybody's from now on."""
        self._stopped.set()
        self._thread.join()
        (self._owners / self.owner).unlink(missing_ok=True)

    def look(self) -> None:
        """Learn of the claims that others have made. Not to have looked only costs an attempt."""
        with os.scandir(self._claims) as entries:
            for entry in entries:
                piece, _, number = entry.name.rpartition(".")
                self._numbers[piece] = max(self._numbers.get(piece, -1), int(number))

    def take(self, piece: str) -> bool:
        """Whether the piece is ours now. It is not, where it was or where somebody alive has it."""
        number = self._numbers.get(piece, -1)
        if piece in self._held or (number >= 0 and not self._is_gone(piece, number)):
            return False
        path = self._path(piece, number + 1)
        try:
            os.symlink(self.owner, path)
        except FileExistsError:
            if os.readlink(path) != self.owner:  # a network file system may have asked twice for us
                self._numbers[piece] = number + 1
                return False
        except (PermissionError, NotImplementedError) as error:
            raise InputError(f"{path}: this file system makes no symbolic links ({error})") from None
        self._held[piece] = self._numbers[piece] = number + 1
        return True

    def drop(self, piece: str) -> None:
        """It is done, or somebody else's."""
        self._held.pop(piece, None)

    def holds(self, piece: str) -> bool:
        """Whether a piece that was taken is still ours: asked before each of its rows is written."""
        number = self._held.get(piece)
        return number is not None and not os.path.lexists(self._path(piece, number + 1))

    def num_alive(self) -> int:
        """Processes at the work, this one included, those not yet known to be gone too."""
        return sum(not self._owner_is_gone(owner) for owner in self._listed_owners())

    def _listed_owners(self) -> list[str]:
        return [name for name in os.listdir(self._owners) if not name.startswith(".")]

    def _path(self, piece: str, number: int) -> Path:
        return self._claims / f"{piece}.{number}"

    def _is_gone(self, piece: str, number: int) -> bool:
        """Whether nobody alive holds this claim."""
        if (piece, number) not in self._owner_of:
            self._owner_of[piece, number] = os.readlink(self._path(piece, number))
        owner = self._owner_of[piece, number]
        return owner != self.owner and self._owner_is_gone(owner)

    def _owner_is_gone(self, owner: str) -> bool:
        if time.monotonic() < self._found_alive.get(owner, -1.0) + min(LOOK_SECONDS, self._lost_seconds / BEATS):
            return False
        path = self._owners / owner
        try:
            touched, process = path.stat().st_mtime_ns, json.loads(path.read_text())
        except FileNotFoundError:
            return True
        known, since = self._seen.get(owner, (None, 0.0))
        if known != touched:
            self._seen[owner] = touched, (since := time.monotonic())
        if has_ended(process) or time.monotonic() - since >= self._lost_seconds:
            return True
        self._found_alive[owner] = time.monotonic()
        return False

    def _beat(self) -> None:
        while not self._stopped.wait(self._lost_seconds / BEATS):
            with suppress(OSError):  # the next beat may pass; if none does, others take over, and `holds` finds it
                os.utime(self._owners / self.owner)


def this_process() -> dict[str, Any]:
    """What tells this process from every other, for as long as the machine runs."""
    return {**_machine(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def has_ended(process: dict[str, Any]) -> bool:
    """Whether a process ran on this machine, where we would see it, and runs no more."""
    if any(process.get(name) != value for name, value in _machine().items()):
        return False
    try:
        found = psutil.Process(process["pid"])
        is_another = abs(found.create_time() - process["started"]) > CLOCK_SECONDS
        return is_another or bool(found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _machine() -> dict[str, Any]:
    """Its name, and since when it runs: two machines of one cluster may be called localhost."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"host": host_name(), "boot": boot.read_text().strip() if boot.is_file() else ""}
