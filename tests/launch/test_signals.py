"""What a launcher is told by a signal reaches its ranks, and they get the time to save; the run then goes on."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.integration.test_resume import assert_equal, left_behind
from tests.launch.real_runs import NUM_STEPS, call, finish, output, start, steps, wait_for_steps
from tests.launch.slurm_cluster import wait_until

SLOW_SAVER = "tests/launch/slow_saver.py"
# What starts two ranks, with which overrides, and its status after a stop.
LAUNCHERS = {
    "torchrun": (["launch/torchrun.sh"], [], 1),
    "deepspeed": (["launch/deepspeed.sh"], [], 75),
    "accelerate": (["launch/accelerate.sh"], [], 1),
    "ours": ([sys.executable], ["launch.num_processes=2"], 75),
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_that_is_told_to_stop_saves_and_goes_on(
    launcher: str, traces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    if launcher == "deepspeed":
        pytest.importorskip("deepspeed")
    command, overrides, status = LAUNCHERS[launcher]
    run = tmp_path / "run"
    started = start(command, traces, run, *overrides)
    wait_for_steps(run, 5)
    processes = started.children(recursive=True)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == status, output(run)
    assert not [process for process in processes if process.is_running()]
    assert output(run).count("SIGTERM: stopped") == 1, output(run)
    assert len(steps(run)) < NUM_STEPS and not (run / "model").exists()
    finish(start(command, traces, run, *overrides, "resume=true"), run)
    assert_equal(left_behind(run), left_behind(undisturbed))


def test_saving_may_take_longer_than_30_seconds(tmp_path: Path) -> None:
    """With a stand-in, for the tiny model is saved at once. 30 seconds is what each launcher grants by itself."""
    pytest.importorskip("deepspeed")
    told = {"torchrun": signal.SIGUSR1, "deepspeed": signal.SIGINT, "accelerate": signal.SIGUSR1}
    heard = {**told, "deepspeed": signal.SIGTERM}
    started = {
        tmp_path / launcher: call(
            [f"launch/{launcher}.sh", SLOW_SAVER, f"run_dir={tmp_path / launcher}"], tmp_path / launcher
        )
        for launcher in told
    }
    try:
        for run, process in started.items():
            wait_until(lambda run=run: len(list(run.glob("started.rank*"))) == 2, 120, lambda run=run: output(run))
            process.send_signal(told[run.name])
        for run, process in started.items():
            process.wait(90)
            assert f"{heard[run.name].name}: saved" in output(run)
            assert len(list(run.glob("saved.rank*"))) == 2, output(run)
    finally:
        for process in started.values():
            if process.poll() is None:
                process.kill()


def test_the_deepspeed_launchers_own_argument_is_understood(traces: Path, tmp_path: Path) -> None:
    """Without --no_local_rank it adds --local_rank=N to the command line of each rank."""
    pytest.importorskip("deepspeed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile=",
        "--num_gpus=2",
        f"--master_port={port}",
    ]
    run = tmp_path / "run"
    finish(start(launcher, traces, run, "sft.num_steps=2", DS_ACCELERATOR="cpu"), run)
    assert "ranks: 2" in output(run)
    assert "--local_rank=1" in output(run)  # it shows the command that it starts
    assert steps(run) == [1, 2]
