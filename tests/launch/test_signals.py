"""What a launcher is told by a signal reaches its ranks, and they get the time to save; the run then goes on."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.test_resume import assert_equal, left_behind
from tests.launch.real_runs import NUM_STEPS, call, finish, output, start, steps, wait_for_steps
from tests.launch.slurm_cluster import wait_until

# What starts two ranks, with which overrides, and its status after a stop.
LAUNCHERS = {
    "torchrun": (["launch/torchrun.sh"], [], 1),
    "deepspeed": (["launch/deepspeed.sh"], [], 75),
    "accelerate": (["launch/accelerate.sh"], [], 1),
    "ours": ([sys.executable], ["launch.num_processes=2"], 75),
}
SLOW_SAVER = "tests/launch/slow_saver.py"
# What its launchers are told, and what its ranks are by them.
TOLD = {
    "torchrun": (signal.SIGUSR1, "SIGUSR1"),
    "accelerate": (signal.SIGUSR1, "SIGUSR1"),
    "deepspeed": (signal.SIGINT, "SIGTERM"),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def slow_savers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, psutil.Popen]]:
    """Stand-ins that have been told to stop and take their time, while the tests before theirs go on."""
    folder = tmp_path_factory.mktemp("slow")
    started: dict[Path, psutil.Popen] = {}
    try:
        for launcher in TOLD:
            run = folder / launcher
            started[run] = call([f"launch/{launcher}.sh", SLOW_SAVER, f"run_dir={run}"], run)
        for run, process in started.items():
            wait_until(lambda run=run: len(list(run.glob("started.rank*"))) == 2, 180, lambda run=run: output(run))
            process.send_signal(TOLD[run.name][0])
        yield started
    finally:
        for process in started.values():
            if process.poll() is None:
                process.kill()


@pytest.mark.usefixtures("slow_savers")
def test_whoever_is_told_to_stop_saves_and_leaves_and_another_goes_on(
    traces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """One run under every launcher in turn, and to its end under the deepspeed launcher as it is.

    That one adds --local_rank=N to each rank's command line.
    """
    pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    for turn, (launcher, (command, overrides, status)) in enumerate(LAUNCHERS.items(), start=1):
        started = start(command, traces, run, *overrides, "resume=true")
        try:
            wait_for_steps(run, len(steps(run)) + 3)
            processes = started.children(recursive=True)
            started.send_signal(signal.SIGTERM)
            assert started.wait(60) == status, launcher + output(run)
        finally:
            if started.poll() is None:
                started.kill()
        psutil.wait_procs(processes, timeout=5)
        assert not [process for process in processes if is_alive(process)], launcher
        assert output(run).count("SIGTERM: stopped after step") == turn, launcher + output(run)
        assert len(steps(run)) < NUM_STEPS and not (run / "model").exists()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = f"--master_port={probe.getsockname()[1]}"
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile=", "--num_gpus=2", port]
    finish(start(command, traces, run, "resume=true", DS_ACCELERATOR="cpu"), run)
    assert "--local_rank=1" in output(run)  # it shows the commands that it starts
    assert_equal(left_behind(run), left_behind(undisturbed))


def is_alive(process: psutil.Process) -> bool:
    """Whether it is still there, and not only its status, which nobody has asked for yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_saving_may_take_longer_than_30_seconds(slow_savers: dict[Path, psutil.Popen]) -> None:
    """Which is what each launcher grants by itself."""
    for run, process in slow_savers.items():
        process.wait(120)
        assert f"{TOLD[run.name][1]}: saved" in output(run)
        assert len(list(run.glob("saved.rank*"))) == 2, output(run)
