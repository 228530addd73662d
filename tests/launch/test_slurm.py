"""Jobs under a real slurm: to their end, preempted, out of time; what slurm stops goes on where it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.slurm_cluster import SlurmCluster, wait_until, why_not

ROOT = Path(__file__).parents[2]
# What is run, with enough steps to be stopped among them; it writes a line to metrics.jsonl for every step.
RECIPE = "tests/launch/counting_recipe.py"
SHORT = ["steps=4"]
LONG = ["steps=60", "step_seconds=0.5", "save_seconds=3"]
ENDLESS = ["steps=100000", "step_seconds=0.5", "save_seconds=3"]
BROKEN = ["steps=none"]
RANKS = {"slurm_node": 2, "slurm_nodes": 4}  # two on a node
WAIT_SECONDS = 180

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    started = SlurmCluster(num_nodes=2)
    try:
        started.start()
        yield started
    finally:
        started.stop()


def submit(cluster: SlurmCluster, script: str, run: Path, overrides: list[str], *options: str) -> str:
    """Submit a job as its user would; returns its number."""
    return cluster.submit(
        *options, f"--chdir={ROOT}", f"--output={run}.log", f"launch/{script}.sbatch", RECIPE, f"run_dir={run}",
        *overrides,
        # The nodes' names lead nowhere, for all are this machine.
        MASTER_ADDR="127.0.0.1", NPROC="2", PYTHON=sys.executable, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT),
    )  # fmt: skip


def steps(run: Path) -> list[int]:
    """The steps that the run has logged, in the order of its lines."""
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_steps(run: Path, count: int) -> None:
    wait_until(lambda: len(steps(run)) >= count, WAIT_SECONDS, lambda: output(run))


def output(run: Path) -> str:
    path = run.with_name(f"{run.name}.log")
    return path.read_text() if path.exists() else "no output"


def assert_continues_to_its_end(cluster: SlurmCluster, job: str, run: Path, total: int = 60) -> None:
    """The job comes back by itself and ends; no step is missing, and none was taken twice."""
    ended = cluster.wait_for(job, ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"], WAIT_SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), output(run)
    assert steps(run) == list(range(1, total + 1))


@pytest.mark.parametrize("script", RANKS)
def test_a_job_runs_to_its_end(script: str, cluster: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, script, run, SHORT)
    ended = cluster.wait_for(job, ["COMPLETED", "FAILED"], WAIT_SECONDS)
    assert ended["JobState"] == "COMPLETED", output(run)
    assert steps(run) == [1, 2, 3, 4]
    assert len(list(run.glob("done.rank*"))) == RANKS[script]


@pytest.mark.parametrize("script", RANKS)
def test_a_requeued_job_goes_on_where_it_was(script: str, cluster: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, script, run, LONG)
    wait_for_steps(run, 2)
    cluster.call("scontrol", "requeue", job)
    assert_continues_to_its_end(cluster, job, run)


@pytest.mark.parametrize("grace_seconds", [0, 60])
def test_a_preempted_job_gives_way_and_goes_on(grace_seconds: int, cluster: SlurmCluster, tmp_path: Path) -> None:
    """With a period of grace slurm only warns, and would let the job that then ends be forgotten."""
    run = tmp_path / "run"
    cluster.call("scontrol", "update", "PartitionName=low", f"GraceTime={grace_seconds}")
    try:
        job = submit(cluster, "slurm_nodes", run, LONG, "--exclusive")
        wait_for_steps(run, 2)
        urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
        assert cluster.wait_for(urgent, ["COMPLETED", "FAILED"], WAIT_SECONDS)["JobState"] == "COMPLETED"
        assert len(steps(run)) < 60
        assert_continues_to_its_end(cluster, job, run)
    finally:
        cluster.call("scontrol", "update", "PartitionName=low", "GraceTime=0")


def test_a_job_that_runs_out_of_time_goes_on_in_the_next(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Slurm warns 300 to 360 seconds before the limit of seven minutes: after one to two."""
    runs = {"slurm_node": tmp_path / "inside", "slurm_nodes": tmp_path / "outside"}
    jobs = {
        # The one job's ranks ask for the requeue; for the other, as in a container, the batch script has to.
        script: submit(cluster, script, runs[script], [*ENDLESS, f"supervision.requeue={asks}"], "--time=7")
        for script, asks in (("slurm_node", "true"), ("slurm_nodes", "false"))
    }
    for script, job in jobs.items():
        wait_until(lambda job=job: cluster.job(job)["Restarts"] == "1", 240, lambda run=runs[script]: output(run))
    for script, run in runs.items():
        signals = {name for rank in range(RANKS[script]) for name in notes(run, rank)[:1]}
        assert signals == {"SIGUSR1"}
        before = len(steps(run))
        wait_for_steps(run, before + 2)
        cluster.call("scancel", jobs[script])
        assert steps(run) == list(range(1, len(steps(run)) + 1))


def notes(run: Path, rank: int) -> list[str]:
    return (run / f"signals.rank{rank}").read_text().split()


def test_a_job_that_fails_is_not_tried_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    job = submit(cluster, "slurm_node", tmp_path / "run", BROKEN)
    ended = cluster.wait_for(job, ["COMPLETED", "FAILED"], WAIT_SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0")


def test_a_cancelled_job_saves_and_is_not_tried_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, "slurm_nodes", run, ENDLESS)
    wait_for_steps(run, 2)
    cluster.call("scancel", job)
    wait_until(lambda: len(list(run.glob("saved.rank*"))) == RANKS["slurm_nodes"], WAIT_SECONDS, lambda: output(run))
    ended = cluster.wait_for(job, ["CANCELLED"], WAIT_SECONDS)
    assert ended["Restarts"] == "0"
