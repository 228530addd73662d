"""Jobs under a real slurm: to their end, preempted, out of time; what slurm stops ends as if it never had been."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from falcon_h1r.tracking import strip_times
from tests.launch.real_runs import (
    ENVIRONMENT,
    RECIPE,
    ROOT,
    WAIT_SECONDS,
    finish,
    newest_checkpoint,
    output,
    settings,
    start,
    steps,
    wait_for_steps,
)
from tests.launch.slurm_cluster import SlurmCluster, wait_until, why_not

ENDED = ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"]
NPROC = {"slurm_node": "2", "slurm_nodes": "1"}  # of each node: two ranks either way, which compute the same

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


def submit(
    cluster: SlurmCluster, script: str, traces: Path, run: Path, overrides: list[str], *options: str, **changed: str
) -> str:
    """Submit a job as its user would; returns its number."""
    # The nodes' names lead nowhere, for all are this machine.
    environment = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "NPROC": NPROC[script], **changed}
    return cluster.submit(
        *options, f"--chdir={ROOT}", f"--output={run}.log", f"launch/{script}.sbatch", RECIPE,
        *settings(traces, run), *overrides, **environment,
    )  # fmt: skip


def test_a_job_runs_to_its_end_and_one_that_fails_is_not_tried_again(
    cluster: SlurmCluster, traces: Path, tmp_path: Path
) -> None:
    run, broken = tmp_path / "run", tmp_path / "broken"
    jobs = [
        submit(cluster, "slurm_nodes", traces, run, ["sft.num_steps=4"], NPROC="2"),
        submit(cluster, "slurm_node", traces.with_name("nowhere"), broken, []),
    ]
    ended = [cluster.wait_for(job, ENDED, WAIT_SECONDS) for job in jobs]
    assert [job["JobState"] for job in ended] == ["COMPLETED", "FAILED"], output(run) + output(broken)
    assert [job["Restarts"] for job in ended] == ["0", "0"]
    assert steps(run) == [1, 2, 3, 4]
    assert "ranks: 4" in output(run)
    assert "no such file" in output(broken)


def test_what_slurm_stops_goes_on_as_if_it_never_had_been(cluster: SlurmCluster, traces: Path, tmp_path: Path) -> None:
    """Two jobs are preempted, run out of time, and are cancelled; a run that was left alone is the measure.

    With a period of grace slurm only warns, and would let the job that then ends be forgotten. When time is up, one
    job's ranks ask for the requeue; for the other, as in a container, the batch script has to.
    """
    plans = {"slurm_node": ("low", "true"), "slurm_nodes": ("patient", "false")}
    jobs: dict[Path, str] = {}
    for script, (partition, asks) in plans.items():
        run, endless = tmp_path / script, ["sft.num_steps=100000", f"supervision.requeue={asks}"]
        jobs[run] = submit(cluster, script, traces, run, endless, f"--partition={partition}", "--time=60")
    wait_for_more_steps(jobs)

    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert cluster.wait_for(urgent, ENDED, WAIT_SECONDS)["JobState"] == "COMPLETED"
    wait_for_restarts(cluster, jobs, "1")
    wait_for_more_steps(jobs)

    for job in jobs.values():
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=5")  # the warning is due: within half a minute
    for run, job in jobs.items():
        wait_for_restarts(cluster, {run: job}, "2")
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_for_more_steps(jobs)

    cluster.call("scancel", *jobs.values())
    for run, job in jobs.items():
        assert cluster.wait_for(job, ["CANCELLED"], WAIT_SECONDS)["Restarts"] == "2"
        stops = [line.split(":")[0] for line in output(run).splitlines() if ": stopped after step" in line]
        assert stops == ["SIGTERM", "SIGUSR1", "SIGTERM"], output(run)
        assert ("is requeued" in output(run)) == (run.name == "slurm_node")

    shorter, longer = sorted(jobs, key=lambda run: len(steps(run)))
    measure = tmp_path / "measure"
    finish(start(["launch/torchrun.sh"], traces, measure, f"sft.num_steps={len(steps(longer))}"), measure)
    assert rows(longer) == rows(measure)
    assert rows(shorter) == rows(measure)[: len(rows(shorter))]
    saved, expected = newest_checkpoint(longer), newest_checkpoint(measure)
    assert saved.name == expected.name
    for path in expected.glob("*.safetensors"):  # weights and moments
        tensors, theirs = load_file(saved / path.name), load_file(path)
        assert tensors.keys() == theirs.keys()
        assert all(torch.equal(tensors[name], theirs[name]) for name in theirs), path


def wait_for_more_steps(runs: Iterable[Path]) -> None:
    for run, count in [(run, len(steps(run))) for run in runs]:
        wait_for_steps(run, count + 2)


def wait_for_restarts(cluster: SlurmCluster, jobs: dict[Path, str], count: str) -> None:
    """Until the jobs are back in the queue, or come from there."""
    for run, job in jobs.items():
        wait_until(lambda job=job: cluster.job(job)["Restarts"] == count, WAIT_SECONDS, lambda run=run: output(run))


def rows(run: Path) -> list[dict[str, object]]:
    return [strip_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
