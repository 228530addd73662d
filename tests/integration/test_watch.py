"""A job that watches a run, by the recipes themselves: beside a run that dies, and as the same one goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import publish_random_base
from falcon_h1r.config import Config
from falcon_h1r.distributed.world import World
from recipes.evaluate import check, evaluate_or_watch
from tests.conftest import TINY_ARCHITECTURE
from tests.integration.conftest import configured

ROOT = Path(__file__).parents[2]
NUM_STEPS, EVERY_STEPS = 60, 5
METRIC = "watch_pass_at_1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config()
    config.model.architecture, config.model.dtype = dict(TINY_ARCHITECTURE), "float32"
    return publish_random_base(config, ["I toss it. Toss 0 1"] * 10, tmp_path_factory.mktemp("base") / "model")


def train(folder: Path, coins: Path, base: Path) -> subprocess.Popen[bytes]:
    settings = [
        *("data=gsm8k", "system_prompt=Think.", f"sft.data.path={coins}", f"model.path={base}", "model.dtype=float32"),
        *(f"sft.num_steps={NUM_STEPS}", "sft.batch_sequences=8", "sft.optimizer.learning_rate=1e-2"),
        "sft.limits={prompt_tokens: 64, response_tokens: 24, row_tokens: 96}",
        *(f"checkpoint.every_steps={EVERY_STEPS}", "checkpoint.keep=1", f"checkpoint.keep_best={METRIC}"),
        *(f"run_dir={folder}", "resume=true", "tracking.wandb=offline"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder.parent / "train.log").open("ab") as log:
        command = [sys.executable, "recipes/sft.py", *settings]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def watch(run: Path, coins: Path, idle_minutes: float) -> list[dict[str, Any]]:
    """The rows that there are once the job has ended."""
    config = configured(
        coins,
        *(
            f"evaluate.watch.run={run}",
            "evaluate.watch.poll_seconds=0.1",
            f"evaluate.watch.idle_minutes={idle_minutes}",
        ),
        *(f"evaluate.data.path={coins}", "evaluate.num_problems=6", "evaluate.num_samples=2", "evaluate.max_slots=16"),
        "evaluate.limits={prompt_tokens: 64, response_tokens: 8, row_tokens: 96}",
        "tracking.wandb=offline",
    )
    check(config)
    evaluate_or_watch(config, run.parent / "watching", World(0, 1, torch.device("cpu")))
    return [json.loads(line) for line in (run / "watch" / "metrics.jsonl").read_text().splitlines()]


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_??????"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_dies_and_goes_on_is_watched_to_its_end(base: Path, coins: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.parent.mkdir()
    training = train(run, coins, base)
    deadline = time.monotonic() + 240
    while not saved(run):
        assert training.poll() is None and time.monotonic() < deadline, (run.parent / "train.log").read_text()[-4000:]
        time.sleep(0.01)
    os.killpg(training.pid, 9)
    training.wait()

    before = watch(run, coins, idle_minutes=0.0)  # nothing comes any more
    assert [row["step"] for row in before] == saved(run)

    training = train(run, coins, base)
    rows = watch(run, coins, idle_minutes=4.0)  # ends as the run does
    assert training.wait(timeout=60) == 0
    steps = [row["step"] for row in rows]
    assert rows[: len(before)] == before and steps == sorted(set(steps)) and steps[-1] == NUM_STEPS
    for step in steps:
        evaluated = run / "watch" / f"step_{step:06d}"
        assert {"samples.jsonl", "summary.json", "page.html"} <= {path.name for path in evaluated.iterdir()}
        assert not (evaluated / "model").exists()

    best = json.loads((run / "checkpoints" / "best.json").read_text())
    highest = max(row["pass_at_1"] for row in rows)
    assert best == {
        "metric": METRIC,
        "step": next(row["step"] for row in rows if row["pass_at_1"] == highest),
        "value": highest,
    }
    assert len(saved(run)) <= 2 and saved(run)[-1] == NUM_STEPS  # the newest, and one beside it
    assert (run / "watch" / "best_model" / "model.safetensors").is_file()
    assert len(list((run / "watch").glob("wandb/offline-run-*"))) >= 1
    assert watch(run, coins, idle_minutes=0.0) == rows
