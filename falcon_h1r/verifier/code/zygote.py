"""The process that programs are forked from: clean, with one thread, and ignorant of every program.

    parent (knows the expected outputs; compares)
      zygote             a fresh interpreter with the standard library loaded; reads nothing, only forks
        supervisor       one a program: reads it and its inputs, forks one process a test, watches, reports
          the program    confined; ends, or is killed

A program's text lives in its supervisor and its own processes alone: no later program can find it in memory.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from falcon_h1r.verifier.code import confined, frames, harness, supervisor
from falcon_h1r.verifier.workers.sandbox import CallFilter, FileView, SandboxUnavailable

# Loaded before anything is confined, with their shared libraries, so that no program has to read any of those.
_PRELOADED = """
array ast base64 binascii bisect bz2 cmath collections.abc copy ctypes dataclasses datetime decimal enum fractions
functools hashlib heapq io itertools json lzma math numbers operator pickle queue random re statistics string struct
threading time traceback typing zlib
""".split()
_UNREADABLE = {"site-packages", "dist-packages", "test", "idlelib", "lib2to3", "ensurepip"}


def library_view(scratch: Path) -> FileView:
    """The scratch folder, and the interpreter's standard library without what is installed beside it.

    Of the latter the names can be listed: an import looks through the whole folder.
    """
    folders = sorted({Path(os.__file__).parent, *(Path(entry) for entry in sys.path if entry.endswith("lib-dynload"))})
    readable = [path for folder in folders for path in folder.iterdir() if path.name not in _UNREADABLE]
    return FileView(scratch, readable, listed=folders)


def main(settings_json: str, path: list[str]) -> None:
    """Serve until standard input ends; then leave the scratch folder as if it had never been."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would leave nothing to wait for
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whatever the thread blocks that starts this
    settings: dict[str, Any] = json.loads(settings_json)
    scratch = Path(settings["scratch"])
    limits = confined.Limits(**settings["limits"])
    try:
        walls = confined.Walls(scratch, library_view(scratch), CallFilter())
    except SandboxUnavailable as error:
        frames.send(1, {"ready": False, "error": str(error)})
        return
    for name in _PRELOADED:
        importlib.import_module(name)
    names = harness.imported_names()
    _forget_this_project(path)
    gc.collect()
    gc.freeze()  # forked children do not touch, and so do not copy, what was here before them
    frames.send(1, {"ready": True})
    try:
        _serve(walls, limits, names)
    finally:
        confined.empty_folder(scratch)
        scratch.rmdir()


def _serve(walls: confined.Walls, limits: confined.Limits, names: dict[str, Any]) -> None:
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while poll.poll()[0][1] & select.POLLIN:
        child = os.fork()
        if child == 0:
            supervisor.serve(walls, limits, names)
        if os.waitpid(child, 0)[1]:
            return  # it died: the parent must not wait for its answer


def _forget_this_project(path: list[str]) -> None:
    """No program finds these modules by name, nor what they registered to run at exit."""
    sys.path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == "falcon_h1r"]:
        del sys.modules[name]
    atexit._clear()
