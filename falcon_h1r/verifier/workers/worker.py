"""The program of a worker process: reads one task a line on stdin, answers one line on stdout, confined and under
hard limits.

Run by process.py in a fresh interpreter, so that CUDA, threads and locks of the parent do not matter. Once its
imports are done the process gives up, as far as the kernel offers it:

    the network, and starting or touching processes     seccomp
    writing to any file                                 Landlock; everywhere a file size limit of 0

Reading stays: sympy imports parts of itself when they are first needed. A kernel that lacks a layer is no error,
since nothing a model wrote is ever run here: the layers are a second wall behind the parser. Which of them hold is
in `Verifier.confinement`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

_MAX_RESIDENT_SHARE = 0.5  # of the memory limit: a process that holds more is replaced


def _limit(kind: int, most: int) -> None:
    """Set a limit for good, no higher than the one inherited."""
    _, hard = resource.getrlimit(kind)
    lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (lower, lower))


def _confine() -> list[str]:
    """Give up what the kernel can take; returns the layers that hold."""
    if sys.platform != "linux":
        return []
    from falcon_h1r.verifier.workers import sandbox

    layers = {
        "no writing": lambda: sandbox.read_only_but(None, [Path("/")]),
        "no network, no processes": lambda: sandbox.forbid_network_and_processes(threads=False),
    }
    held = []
    for name, layer in layers.items():
        try:
            layer()
        except sandbox.SandboxUnavailable:
            continue
        held.append(name)
    return held


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process with the thread that started it, which drives it."""
    if sys.platform == "linux":
        from falcon_h1r.verifier.workers import sandbox

        sandbox.die_with_parent(parent)


def _prepare(settings: dict[str, Any]) -> tuple[Any, list[str]]:
    """The function that runs the tasks, with all it imports, and the layers of confinement around it."""
    _die_with_parent(settings["parent"])
    _limit(resource.RLIMIT_AS, settings["memory_limit_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    for name in settings["preload"]:  # before "ready", so that no task's deadline pays for an import
        importlib.import_module(name)
    module, _, function = settings["task"].partition(":")
    task = getattr(importlib.import_module(module), function)
    return task, _confine()


def _answer(task: Any, arguments: list[Any]) -> tuple[list[str], bool]:
    """(status, stage, reason) and whether this process is still fit for work."""
    try:
        return list(task(*arguments)), True
    except MemoryError:
        return ["undecided", "memory", "the worker's memory limit"], False
    except Exception as error:  # the border of the process: whatever went wrong, the caller gets a verdict
        return ["undecided", "error", f"{type(error).__name__}: {error}"[:200]], True


def _resident_bytes() -> int:
    """What this process holds now; 0 where the system does not say.

    Not ru_maxrss: a process starts with that of its parent, and a trainer holds gigabytes.
    """
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def main(settings_json: str) -> None:
    """Serve tasks until stdin closes."""
    settings = json.loads(settings_json)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints can be taken for a reply

    def reply(**fields: Any) -> None:
        replies.write(json.dumps({**fields, "cpu": time.process_time()}) + "\n")
        replies.flush()

    try:
        task, confinement = _prepare(settings)
    except Exception as error:  # the parent knows what to do about it, and says why
        reply(ready=False, failed=f"{type(error).__name__}: {error}"[:300])
        return
    reply(ready=True, confinement=confinement)
    most_bytes = settings["memory_limit_bytes"] * _MAX_RESIDENT_SHARE
    for line in sys.stdin:
        request = json.loads(line)
        result, fit = _answer(task, request["arguments"])
        fit = fit and _resident_bytes() < most_bytes
        reply(id=request["id"], result=result, fit=fit)
        if not fit:
            return
