"""recipes/sft.py on a tiny model, as a process of its own: to be stopped, and repeatable to the last bit."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from falcon_h1r.checkpoint.files import saved_steps, step_folder
from tests.launch.slurm_cluster import wait_until

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/sft.py"
NUM_STEPS = 120
WAIT_SECONDS = 180
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "NPROC": "2",
    "PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
}


def settings(traces: Path, run: Path) -> list[str]:
    """The run's overrides. At a constant rate its first steps are the same whatever sft.num_steps is."""
    return [
        "data=jsonl", f"sft.data.path={traces}", f"run_dir={run}", f"sft.num_steps={NUM_STEPS}",
        "sft.batch_sequences=4", "sft.optimizer.schedule=constant", "checkpoint.every_steps=20",
    ]  # fmt: skip


def output(run: Path) -> str:
    """What a run has printed, over all its starts."""
    path = run.with_name(f"{run.name}.log")
    return path.read_text() if path.exists() else "no output"


def start(launcher: Sequence[str], traces: Path, run: Path, *overrides: str, **environment: str) -> psutil.Popen:
    """Start the recipe under a launcher, as `call` does."""
    return call([*launcher, RECIPE, *settings(traces, run), *overrides], run, **environment)


def call(command: Sequence[str], run: Path, **environment: str) -> psutil.Popen:
    """Start a process; its output is added to RUN.log."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    with run.with_name(f"{run.name}.log").open("ab") as log:
        environment = {**inherited, **ENVIRONMENT, **environment}
        return psutil.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(started: psutil.Popen, run: Path) -> None:
    """Wait until a run has come to its end; with what it printed where it fails."""
    try:
        assert started.wait(WAIT_SECONDS) == 0, output(run)[-4000:]
    finally:
        if started.poll() is None:
            started.kill()


def steps(run: Path) -> list[int]:
    """The steps that the run has logged, in the order of its lines."""
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_steps(run: Path, count: int) -> None:
    wait_until(lambda: len(steps(run)) >= count, WAIT_SECONDS, lambda: output(run)[-4000:])


def newest_checkpoint(run: Path) -> Path:
    root = run / "checkpoints"
    return step_folder(root, saved_steps(root)[-1])
