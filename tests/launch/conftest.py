"""Traces, and the real SFT run on them that nothing disturbs."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

from tests.launch.real_runs import finish, start


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "traces.jsonl"
    rows = [
        {"question": f"Compute {a}+{b}.", "reasoning": f"{a}+{b}={a + b}", "answer": str(a + b)}
        for a, b in itertools.product(range(8), repeat=2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def undisturbed(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two ranks that came to its end at once."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start([sys.executable], traces, run, "launch.num_processes=2"), run)
    return run
