"""Runs of several real processes under their launchers: told to stop, killed, frozen. Nothing of them stays behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_launch import ROOT

RECIPE = str(Path(__file__).with_name("stand_in.py"))
OURS = [sys.executable, RECIPE, "launch.num_processes=2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", RECIPE]
PATIENT = ["supervision.lost_seconds=30", "supervision.silent_seconds=60"]
IMPATIENT = ["supervision.lost_seconds=2", "supervision.silent_seconds=3"]


class Run:
    """A launcher, and the ranks that it started."""

    def __init__(self, folder: Path, command: list[str], plan: dict[str, object], environment: dict[str, str]) -> None:
        self.folder = folder
        self.console_path = folder.with_name(folder.name + "_console")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "STAND_IN": json.dumps(plan), **environment}
        with open(self.console_path, "w") as console:
            self.launcher = subprocess.Popen(
                [*command, f"run_dir={folder}"],
                env={**inherited, **settings}, cwd=ROOT, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip

    @property
    def console(self) -> str:
        return self.console_path.read_text()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.console.splitlines() if line.startswith("error:")]

    def pid(self, rank: int) -> int:
        return int((self.folder / f"pid_{rank}").read_text())

    def reach(self, step: int, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        path = self.folder / "step"
        while not path.exists() or int(path.read_text() or 0) < step:
            assert time.monotonic() < deadline and self.launcher.poll() is None, self.console
            time.sleep(0.05)

    def status(self, seconds: float) -> int:
        """Of the launcher. By then, no rank is left."""
        status = self.launcher.wait(timeout=seconds)
        assert self.ranks() == [], self.console
        return status

    def ranks(self) -> list[int]:
        """Processes of this run, zombies aside."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.folder) in (path / "cmdline").read_text() and int(path.name) != self.launcher.pid:
                    found.append(int(path.name))
            except OSError:
                pass  # it ended meanwhile
        return found

    def end(self) -> None:
        for pid in [self.launcher.pid, *self.ranks()]:
            if pid != self.launcher.pid or self.launcher.poll() is None:
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()


StartRun = Callable[..., Run]


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[StartRun]:
    runs: list[Run] = []

    def start(command: list[str], *overrides: str, **plan: object) -> Run:
        environment = plan.pop("environment", {})
        assert isinstance(environment, dict)
        runs.append(Run(tmp_path / "run", [*command, *overrides], plan, environment))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


def test_a_signal_to_the_launcher_saves_and_leaves(start_run: StartRun) -> None:
    run = start_run(OURS, *PATIENT)
    run.reach(step=5)
    run.launcher.send_signal(signal.SIGTERM)
    assert run.status(seconds=30) == 75
    assert (run.folder / "saved").exists()
    step = (run.folder / "saved").read_text()
    assert run.console.splitlines()[-1] == f"SIGTERM: stopped in step {step}, and saved"
    assert run.errors == []
    for rank in (0, 1):
        log = (run.folder / f"logs/rank_{rank:05d}.log").read_text()
        assert f"a warning of rank {rank}" in log
        assert (f"a warning of rank {rank}" in run.console) == (rank == 0)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [OURS, TORCHRUN], ids=["ours", "torchrun"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_launcher_passes_a_stop_on(start_run: StartRun, launcher: list[str], number: signal.Signals) -> None:
    run = start_run(launcher, *PATIENT)
    run.reach(step=5)
    run.launcher.send_signal(number)
    status = run.status(seconds=30)
    assert status == 75 if launcher is OURS else status != 0
    assert (run.folder / "saved").exists()
    assert f"{number.name}: stopped in step" in run.console


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [OURS, TORCHRUN], ids=["ours", "torchrun"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_job_under_every_launcher(start_run: StartRun, launcher: list[str], victim: int) -> None:
    run = start_run(launcher, *PATIENT)
    run.reach(step=60)
    os.kill(run.pid(victim), signal.SIGKILL)
    assert run.status(seconds=20) == 1
    assert len(run.errors) == 1 and f"rank {victim} (" in run.errors[0]
    assert "killed, or out of memory?" in run.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [OURS, TORCHRUN], ids=["ours", "torchrun"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_rank_ends_the_job_under_every_launcher(start_run: StartRun, launcher: list[str], victim: int) -> None:
    run = start_run(launcher, *IMPATIENT)
    run.reach(step=60)
    os.kill(run.pid(victim), signal.SIGSTOP)
    assert run.status(seconds=20) == 1
    assert len(run.errors) == 1 and f"rank {victim} (" in run.errors[0]
    assert "no sign of life" in run.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [OURS, TORCHRUN], ids=["ours", "torchrun"])
def test_a_failure_is_told_once_under_every_launcher(start_run: StartRun, launcher: list[str]) -> None:
    run = start_run(launcher, *PATIENT, what="raise")
    assert run.status(seconds=90) == 1
    assert run.console.count("ValueError: the third step is unlucky") == 1
    if launcher is OURS:
        assert run.console.count("Traceback") == 1


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_save_and_end(start_run: StartRun) -> None:
    run = start_run(OURS, *PATIENT)
    run.reach(step=5)
    run.launcher.kill()
    deadline = time.monotonic() + 30
    while run.ranks():
        assert time.monotonic() < deadline, run.console
        time.sleep(0.1)
    assert (run.folder / "saved").exists()


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["exit 0", "echo 'Requested operation is presently disabled' >&2; exit 1"])
def test_a_warning_of_slurms_time_limit_saves_and_requeues(start_run: StartRun, tmp_path: Path, answer: str) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{answer}\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    run = start_run(OURS, *PATIENT, environment={"SLURM_JOB_ID": "4711", "PATH": path})
    run.reach(step=5)
    run.launcher.send_signal(signal.SIGUSR1)
    assert run.status(seconds=30) == 75
    assert (run.folder / "saved").exists()
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    last = run.console.splitlines()[-1]
    if answer == "exit 0":
        assert last == "job 4711 is requeued"
    else:
        assert last.startswith("warning: job 4711 is not requeued: ") and last.endswith("presently disabled")


@pytest.mark.slow
def test_sigterm_requeues_nothing(start_run: StartRun) -> None:
    run = start_run(OURS, *PATIENT, environment={"SLURM_JOB_ID": "4711"})
    run.reach(step=5)
    run.launcher.send_signal(signal.SIGTERM)
    assert run.status(seconds=30) == 75
    assert "4711" not in run.console


@pytest.mark.slow
def test_the_deepspeed_launcher_and_its_local_rank_are_understood(start_run: StartRun) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    run = start_run([*launcher, "--master_addr=127.0.0.1", f"--master_port={port}", RECIPE], *PATIENT)
    run.reach(step=5)
    assert "ranks: 2" in run.console
    run.launcher.send_signal(signal.SIGTERM)
    assert run.status(seconds=45) != 0
    assert (run.folder / "saved").exists()
