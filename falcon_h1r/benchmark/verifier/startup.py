"""What a fresh process costs: a judge's start, and the import of our verifier."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from statistics import median
from typing import Any

from falcon_h1r.benchmark.verifier.judges import ALGEBRA, Judge, JudgeProcess, Limits, source_environment
from falcon_h1r.types import InputError

_IMPORT = """
import json, sys, time
started = time.perf_counter()
import falcon_h1r.verifier
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "torch": "torch" in sys.modules, "sympy": "sympy" in sys.modules}))
"""


def measure_starts(judges: Sequence[Judge], limits: Limits, repeats: int) -> dict[str, Any]:
    """Medians in seconds by judge: to the first verdict, and then to the first that needs algebra."""
    first: dict[str, list[float]] = {judge.name: [] for judge in judges}
    algebra: dict[str, list[float]] = {judge.name: [] for judge in judges}
    for _ in range(repeats):
        for judge in judges:
            with closing(JudgeProcess(judge, limits)) as process:
                first[judge.name].append(process.start())
                began = time.perf_counter()
                process.judge_pair(ALGEBRA)
                algebra[judge.name].append(time.perf_counter() - began)
    return {
        judge.name: {"first_seconds": median(first[judge.name]), "algebra_seconds": median(algebra[judge.name])}
        for judge in judges
    } | {"repeats": repeats}


def measure_import(repeats: int) -> dict[str, Any]:
    """Seconds of `import falcon_h1r.verifier` in fresh interpreters, and what it loaded."""
    runs = []
    for _ in range(repeats):
        run = subprocess.run(
            [sys.executable, "-c", _IMPORT], env=source_environment(), capture_output=True, text=True, timeout=60
        )
        if run.returncode != 0:
            raise InputError(f"falcon_h1r.verifier cannot be imported: {run.stderr.strip().splitlines()[-1]}")
        runs.append(json.loads(run.stdout))
    return {
        "seconds": median(run["seconds"] for run in runs),
        "longest_seconds": max(run["seconds"] for run in runs),
        "loads_torch": any(run["torch"] for run in runs),
        "loads_sympy": any(run["sympy"] for run in runs),
        "repeats": repeats,
    }
