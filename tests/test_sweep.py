"""--multirun: which runs a command line stands for, what is refused, and how a sweep ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from falcon_h1r.entry_sweep import plan_sweep
from falcon_h1r.types import InputError

ROOT = Path(__file__).resolve().parent.parent


def test_every_combination_is_a_run_with_a_folder_of_its_own() -> None:
    runs = plan_sweep(
        ["-m", "experiment=quickstart", "seed=0,1", "grpo.group_size=4,8", "run_dir=runs/a", "resume=true"]
    )
    assert [run.name for run in runs] == [
        "seed=0,grpo.group_size=4",
        "seed=0,grpo.group_size=8",
        "seed=1,grpo.group_size=4",
        "seed=1,grpo.group_size=8",
    ]
    assert runs[1].overrides == (
        *("experiment=quickstart", "resume=true", "seed=0", "grpo.group_size=8"),
        "run_dir='runs/a/seed=0,grpo.group_size=8'",
    )


def test_groups_and_new_keys_can_be_swept() -> None:
    runs = plan_sweep(["--multirun", "+ablation=one,two", "data/source=a,b", "run_dir=x"])
    assert [run.name for run in runs][:2] == ["ablation=one,data_source=a", "ablation=one,data_source=b"]
    assert runs[0].overrides[:2] == ("+ablation=one", "data/source=a")


def test_a_list_is_one_value() -> None:
    (first, second) = plan_sweep(["-m", "curate.synthetic.families=[addition,fraction]", "seed=0,1", "run_dir=x"])
    assert first.overrides[0] == "curate.synthetic.families=[addition,fraction]"
    assert second.name == "seed=1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "seed=0,1"], "run_dir is not set"),
        (["-m", "seed=0", "run_dir=x"], "nothing to vary"),
        (["-m", "seed=0,1", "run_dir=a,b"], "the runs of a sweep get folders below one run_dir"),
        (["-m", "seed=range(0,3)", "sft.optimizer.learning_rate=interval(0,1)", "run_dir=x"], "not a list of values"),
        (["-m", "seed=0,1", "run_dir=x", "--cfg"], "--cfg: goes with a single run"),
    ],
)
def test_what_is_no_sweep_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_sweep(arguments)


@pytest.mark.slow
def test_a_sweep_ends_at_the_first_run_that_fails_and_names_it(tmp_path: Path) -> None:
    swept = ["-m", "plan.decode_utilisation=0.4,0", "model=tiny", f"run_dir={tmp_path}"]
    command = [sys.executable, "recipes/plan.py", *swept]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "=== 1 of 2: plan.decode_utilisation=0.4" in run.stdout
    assert run.stderr.rstrip().endswith("error: plan.decode_utilisation=0: ended with status 2")
