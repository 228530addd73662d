"""recipes/plan.py as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def run_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "recipes/plan.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_the_plan_is_printed_and_written(tmp_path: Path) -> None:
    run = run_plan("experiment=falcon_h1r_7b_8xh100", f"run_dir={tmp_path}")
    assert run.returncode == 0, run.stderr
    assert "plan of falcon_h1r_7b_8xh100: 8 x H100 SXM 80 GB" in run.stdout
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["num_gpus"] == 8
    chosen = written["sft"]["recommended"]
    assert chosen["fits"] and chosen["peak_bytes"] == sum(chosen["memory"]["parts"].values())
    assert written["grpo"]["splits"]


def test_a_mistake_is_one_line() -> None:
    run = run_plan("experiment=falcon_h1r_7b", "plan.gpus=8")
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1 and "plan.gpus" in run.stderr
