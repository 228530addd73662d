"""What a launcher is told by a signal reaches its ranks, and they get the time to save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.slurm_cluster import wait_until

ROOT = Path(__file__).parents[2]
RECIPE = "tests/launch/counting_recipe.py"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGUSR1], ids=lambda told: told.name)
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_every_rank_is_told_and_may_take_longer_than_30_seconds(
    launcher: str, told: signal.Signals, tmp_path: Path
) -> None:
    if launcher == "deepspeed":
        pytest.importorskip("deepspeed")
    # 30 seconds is what either launcher grants by itself.
    command = [f"launch/{launcher}.sh", RECIPE, f"run_dir={tmp_path}", "steps=600", "save_seconds=33"]
    environment = {**os.environ, "NPROC": "2", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: len(list(tmp_path.glob("started.rank*"))) == 2, 120, (tmp_path / "log").read_text)
        started.send_signal(told)
        started.wait(150)
    finally:
        started.kill()
    assert [(tmp_path / f"signals.rank{rank}").read_text().split() for rank in range(2)] == [[told.name]] * 2
    saved = [int((tmp_path / f"saved.rank{rank}").read_text()) for rank in range(2)]
    assert max(saved) - min(saved) <= 1
    assert not list(tmp_path.glob("done.rank*"))
