"""What runs beside the program in its confined process. Self-contained: an external sandbox is sent this text.

There is nothing to win by meddling with it. It holds the program, one input and no expected output; what it
reports is compared elsewhere, and a forged report is worth as much as an answer: right only where it is.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import io
import json
import os
import sys
import threading
import traceback
import types

# What LiveCodeBench puts before every program: solutions rely on these names, `List` above all.
IMPORTS = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools
import functools, operator, io, sys, json
"""
RECURSION_LIMIT = 50_000  # as there
MAX_INT_DIGITS = 50_000  # as there; Python itself stops at 4,300
_PLAIN = (type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict, set, types.ModuleType)


def imported_names() -> dict[str, object]:
    """The names that IMPORTS bring."""
    names: dict[str, object] = {}
    exec(IMPORTS, names)
    del names["__builtins__"]
    return names


def run(source: str, fn_name: str | None, report: int, names: dict[str, object]) -> None:
    """Run a program to its end and end this process as Python would; never returns.

    Without `fn_name` the program reads standard input and writes standard output. With it, standard input
    holds the arguments, a JSON list, and the result goes to the descriptor `report` as JSON; `fn_name` is a method of
    the program's class Solution, or a function.
    """
    _renew_standard_files()
    for name in ("exit", "quit"):  # which an interpreter without site-packages lacks
        setattr(builtins, name, sys.exit)
    sys.argv = ["program.py"]
    sys.setrecursionlimit(RECURSION_LIMIT)
    if hasattr(sys, "set_int_max_str_digits"):  # a sandbox elsewhere may have an older Python
        sys.set_int_max_str_digits(MAX_INT_DIGITS)
    names["random"].seed(0)  # type: ignore[attr-defined]  # the same program, the same verdict
    # A function's program is imported, as LiveCodeBench and APPS do: what it would run as a script does not matter.
    module = types.ModuleType("__main__" if fn_name is None else "solution")
    module.__dict__.update(names)
    module.__dict__["__file__"] = "program.py"
    module.__dict__.update(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr, __builtins__=__builtins__)
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    arguments = json.loads(sys.stdin.buffer.read()) if fn_name is not None else []
    _end(_status(lambda: _execute(source, fn_name, arguments, report, module)), module)


def _execute(source: str, fn_name: str | None, arguments: list[object], report: int, module: types.ModuleType) -> None:
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    if fn_name is None:
        return
    solution = module.__dict__.get("Solution")
    owner = solution() if isinstance(solution, type) and hasattr(solution, fn_name) else module
    if not hasattr(owner, fn_name) or fn_name not in source:  # IMPORTS' own gcd or add is not the program's
        raise NameError(f"the program defines no {fn_name}")
    text = json.dumps(_plain(getattr(owner, fn_name)(*arguments))).encode()
    while text:
        text = text[os.write(report, text) :]


def _plain(value: object) -> object:
    """A result as what JSON has. Tuples are lists; what JSON has no word for is refused."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    raise TypeError(f"the result holds a {type(value).__name__}, which is no JSON value")


def _status(work: object) -> int:
    """The exit status that Python would end with; what went wrong is on standard error."""
    try:
        work()  # type: ignore[operator]
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.__stderr__)
        return 1
    except BaseException:
        # Of a traceback only what names the error: formatting 50,000 frames would cost more than the program.
        kind, error, _ = sys.exc_info()
        print(*traceback.format_exception_only(kind, error), sep="", end="", file=sys.__stderr__)
        return 1
    return 0


def _end(status: int, module: types.ModuleType) -> None:
    """Wait for threads, run what was registered, flush: the end of an interpreter, with little of it taken apart."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for file in (sys.stdout, sys.stderr):
            if file is not None and not getattr(file, "closed", False):
                file.flush()
        for file in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(ValueError):  # closed, or without its buffer, which another file may have now
                if file is not None:
                    file.flush()
        _drop_globals(module.__dict__)
    except BaseException:
        status = status or 1
    finally:
        os._exit(status & 0xFF)


def _drop_globals(values: dict[str, object]) -> None:
    """Files that the program opened on its standard output and never closed write what they hold when they go.

    As they do at the end of an interpreter. Plain data stays: freeing it would only take time.
    """
    for name, value in list(values.items()):
        if name != "__builtins__" and type(value) not in _PLAIN:
            values[name] = None


def _renew_standard_files() -> None:
    """Files of this process's own: what it was forked from may have looked at its descriptors already."""
    for name, descriptor, mode in (("stdin", 0, "rb"), ("stdout", 1, "wb"), ("stderr", 2, "wb")):
        raw = open(descriptor, mode, closefd=False)  # noqa: SIM115
        file = io.TextIOWrapper(raw, encoding="utf-8", line_buffering=name == "stderr", write_through=False)
        file.mode = mode[0]  # type: ignore[misc]  # which Python gives its own, and fast readers of input ask for
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)
