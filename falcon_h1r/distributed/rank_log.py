"""Where a rank's output goes: rank 0's to the console, the others' each to a file of its own, RUN/logs/rank_00003.log.

What all of them leave in their files: warnings, tracebacks, and stacks when the job ends early.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import TextIO

FLUSH_SECONDS = 1.0
HEADER = "--- "  # begins a file's part that belongs to one process
STANDSTILL = "Timeout ("  # how faulthandler begins
STDOUT, STDERR = 1, 2


class RankLog:
    """The console as it was at the start of the process, and this rank's file once there is a run folder."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.console: TextIO = open(os.dup(STDERR), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self.file: TextIO | None = None
        self.folder: Path | None = None

    def open(self, run_folder: Path) -> None:
        """From here on, ranks other than 0 write to their file only; of rank 0, warnings are written to both."""
        self.folder = run_folder / "logs"
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank_{self.rank:05d}.log"
        self.file = open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        self.note(f"{HEADER}rank {self.rank}, process {os.getpid()} on {socket.gethostname()}, {time.ctime()}")
        if self.rank == 0:
            _copy_warnings(self.file)
            return
        for stream, descriptor in ((sys.stdout, STDOUT), (sys.stderr, STDERR)):
            stream.flush()
            os.dup2(self.file.fileno(), descriptor)
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)

    def say(self, text: str) -> None:
        """To the console."""
        try:
            print(text, file=self.console, flush=True)
        except OSError as error:  # its reader has gone: that is no reason to stay
            self.note(f"the console is gone ({error}); it would have been told: {text}")

    def note(self, text: str) -> None:
        """To this rank's file, if there is one yet."""
        if self.file is not None:
            print(text, file=self.file, flush=True)

    def stacks_of(self, rank: int) -> str:
        """What a rank whose Python stood still has yet written of its threads, in this run; "" where nothing."""
        if self.folder is None:
            return ""
        try:
            text = (self.folder / f"rank_{rank:05d}.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""  # the folder of another machine
        found = text.rpartition(HEADER)[2].rfind(STANDSTILL)
        return text.rpartition(HEADER)[2][found:].rstrip() if found >= 0 else ""

    def claim_ending(self, job: str, text: str) -> bool:
        """Whether this rank is the first to tell how the job ended, where rank 0 cannot: by a file that only one makes.

        Before there is a run folder, it is rank 1.
        """
        if self.folder is None:
            return self.rank == 1
        try:
            with open(self.folder / f"ending_{job}.txt", "x", encoding="utf-8") as file:
                file.write(text + "\n")
        except FileExistsError:
            return False
        except OSError as error:
            self.note(f"{error}: whether another rank tells is not known")
        return True

    def flush(self) -> None:
        """What Python still holds of stdout and stderr; gives up where a thread is stuck in writing."""

        def flush_all() -> None:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()

        thread = threading.Thread(target=flush_all, daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)


def main_thread_stack() -> str:
    """Where the main thread of this process is, as a traceback without an error."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "(no main thread)"


def _copy_warnings(copy: TextIO) -> None:
    """Python's warnings and log records of that level also go to the file; the console keeps what it had."""
    show = warnings.showwarning

    def show_twice(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(message, category, filename, lineno, file, line)
        if file is None:
            copy.write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show_twice
    root = logging.getLogger()
    if not root.handlers and logging.lastResort is not None:
        root.addHandler(logging.lastResort)  # the console's, which a first handler would replace
    handler = logging.StreamHandler(copy)
    handler.setLevel(logging.WARNING)
    root.addHandler(handler)
