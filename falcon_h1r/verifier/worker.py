"""The program of a worker process: reads one task a line on stdin, answers one line on stdout, under hard
limits.

Run as `python -I -c ... main(json)`: a fresh interpreter, so that CUDA, threads and locks of the parent do
not matter.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from typing import Any

_CPU_HEADROOM_SECONDS = 5


def _lower_limit(kind: int, soft: int) -> None:
    """Set a limit no higher than the one inherited."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _grant_cpu(seconds: float) -> None:
    """Let this process use so many more seconds: an orphan that computes forever ends itself."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower_limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + seconds) + 1)


def _answer(task: Any, arguments: list[Any]) -> tuple[list[str], bool]:
    """(status, stage, reason) and whether this process is still fit for work."""
    try:
        return list(task(*arguments)), True
    except MemoryError:
        return ["undecided", "memory", "the worker's memory limit"], False
    except Exception as error:  # the border of the process: whatever went wrong, the caller gets a verdict
        return ["undecided", "error", f"{type(error).__name__}: {error}"[:200]], True


def main(settings_json: str) -> None:
    """Serve tasks until stdin closes."""
    settings = json.loads(settings_json)
    sys.path[:] = settings["path"]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints can be taken for a reply
    _lower_limit(resource.RLIMIT_AS, settings["memory_limit_bytes"])
    _lower_limit(resource.RLIMIT_CORE, 0)
    _lower_limit(resource.RLIMIT_FSIZE, 0)
    for name in settings["preload"]:  # before "ready", so that no task's deadline pays for an import
        importlib.import_module(name)
    module, _, function = settings["task"].partition(":")
    task = getattr(importlib.import_module(module), function)
    replies.write('{"ready": true}\n')
    replies.flush()
    for line in sys.stdin:
        request = json.loads(line)
        _grant_cpu(2 * settings["deadline_seconds"] + _CPU_HEADROOM_SECONDS)
        result, fit = _answer(task, request["arguments"])
        replies.write(json.dumps({"id": request["id"], "result": result}) + "\n")
        replies.flush()
        if not fit:
            return
