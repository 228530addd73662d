"""A rank killed at ten random moments, in the midst of saves too: what the run ends with does not show it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from falcon_h1r.checkpoint.files import saved_steps
from tests.integration.test_resume import assert_equal, left_behind

ROOT = Path(__file__).parents[2]
NUM_KILLS, MOST_STEPS_A_TRY = 10, 6
SETTINGS = (
    *("launch.num_processes=2", "data=gsm8k", "system_prompt=Think.", "checkpoint.every_steps=1"),
    # Large enough that writing takes a good part of a step.
    *("model.architecture.hidden_size=256", "model.architecture.intermediate_size=512"),
    *("dev.data.question_field=question", "dev.data.answer_after='####'", "dev.num_problems=4", "dev.num_samples=1"),
    *("sft.limits={prompt_tokens: 64, response_tokens: 24, row_tokens: 96}", "sft.batch_sequences=8"),
    *("sft.num_steps=80", "sft.dev_every_steps=10", "sft.optimizer.schedule=constant"),
    "grpo.limits={prompt_tokens: 64, response_tokens: 16, row_tokens: 96}",
    *("grpo.num_steps=70", "grpo.dev_every_steps=10", "grpo.problems_per_step=2", "grpo.group_size=4"),
    *("grpo.max_backfill_rounds=1", "grpo.optimizer.learning_rate=1e-4", "grpo.optimizer.warmup_steps=0"),
)


def start(stage: str, folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, f"recipes/{stage}.py", *SETTINGS, f"run_dir={folder}", "resume=true", *overrides]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    assert process.wait(timeout=280) == 0, (folder.parent / f"{folder.name}.log").read_text()[-4000:]


def ranks_of(launcher: psutil.Process) -> dict[int, psutil.Process]:
    """The launcher's ranks, by their numbers."""
    found = {}
    for process in launcher.children(recursive=True):
        try:
            if "recipes/" in " ".join(process.cmdline()) and "RANK" in (environment := process.environ()):
                found.setdefault(int(environment["RANK"]), process)
        except psutil.Error:
            continue  # it has ended meanwhile
    return found


def kill_a_rank(process: subprocess.Popen[bytes], folder: Path, rng: random.Random, is_ripe: Callable[[], bool]) -> str:
    """kill -9 of a random rank, a random while after `is_ripe`; returns where the run stood."""
    launcher = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while not is_ripe():
        assert process.poll() is None, (
            "the run ended before it was killed:\n" + (folder.parent / f"{folder.name}.log").read_text()[-4000:]
        )
        assert time.monotonic() < deadline, "the run does not come on"
        time.sleep(0.002)
    ranks = ranks_of(launcher)
    root = folder / "checkpoints"
    rank = rng.randrange(2)
    ranks[rank].kill()
    stood = f"rank {rank}, saved {saved_steps(root)[-1:]}, partial {len(list(root.glob('*.partial')))}"
    assert process.wait(timeout=60) != 0
    psutil.wait_procs(list(ranks.values()), timeout=60)
    return stood


def has_come_on(folder: Path, num_steps: int, delay_seconds: float) -> Callable[[], bool]:
    """Whether the try that is about to start has logged so many steps of its own, a while ago."""
    metrics, steps = folder / "metrics.jsonl", saved_steps(folder / "checkpoints")
    logged_before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    wanted_rows = (steps[-1] if steps else 0) + num_steps
    ripe_at: list[float] = []

    def is_ripe() -> bool:
        has_begun = metrics.exists() and metrics.stat().st_mtime_ns > logged_before
        # Rows beyond the checkpoint have then been taken back.
        if not ripe_at and has_begun and metrics.read_bytes().count(b"\n") >= wanted_rows:
            ripe_at.append(time.monotonic() + delay_seconds)
        return bool(ripe_at) and time.monotonic() >= ripe_at[0]

    return is_ripe


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_ten_kills_leave_no_trace(stage: str, coins: Path, tmp_path: Path) -> None:
    data = [f"{stage}.data.path={coins}", f"dev.data.path={coins}"]
    if stage == "grpo":
        base = tmp_path / "base"
        finish(start("sft", base, f"sft.data.path={coins}", f"dev.data.path={coins}", "sft.num_steps=40"), base)
        data.append(f"model.path={base / 'model'}")
    once, again = tmp_path / "once", tmp_path / "again"
    finish(start(stage, once, *data), once)

    rng = random.Random(stage)
    for count in range(NUM_KILLS):
        trains = has_come_on(again, rng.randint(0, MOST_STEPS_A_TRY), rng.uniform(0.0, 0.3))

        def saves(trains: Callable[[], bool] = trains) -> bool:
            return trains() and any((again / "checkpoints").glob("step_*.partial"))

        print(f"kill {count + 1}:", kill_a_rank(start(stage, again, *data), again, rng, saves if count % 2 else trains))
        assert not (again / "model").exists()
    finish(start(stage, again, *data), again)
    assert "Traceback" not in (tmp_path / "once.log").read_text()
    assert_equal(left_behind(again), left_behind(once))
