"""The doctor as a command: green on this machine with one rank and two, red and status 1 where something is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def doctor(*overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "recipes/doctor.py", "doctor.file_mib=4", "doctor.collective_mib=[0.01]", *overrides]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_sound_machine_is_green_and_the_run_keeps_its_folder(num_ranks: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = doctor(f"launch.num_processes={num_ranks}", f"run_dir={run}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("fit to train: ")
    page = json.loads((run / "doctor" / "doctor.json").read_text())
    assert page["fit"] and page["ranks"] == num_ranks and len(page["checks"]) == 10
    assert not (run / "config.yaml").exists() and not (run / "doctor" / "config.yaml").exists()


@pytest.mark.slow
def test_what_is_broken_is_named_and_the_rest_is_examined(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):  # the second time the folder is free again
        options = ["model.path=owner/nowhere", "model.local_files_only=true", "doctor.only=[checkpoint,host]"]
        result = doctor("launch.num_processes=1", f"run_dir={run}", *options)
        assert result.returncode == 1, result.stdout + result.stderr
        assert "FAILED   checkpoint" in result.stdout and "ok       limits" in result.stdout
        assert result.stdout.splitlines()[-1].startswith("NOT fit to train: ")


def test_an_unknown_check_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    result = doctor("doctor.only=[heart]", f"run_dir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert "doctor.only=heart: not one of versions" in result.stderr
