"""Recipes as commands: one process, relaunched ranks, torchrun and accelerate; mistakes as one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
TINY_SFT = ["sft.num_steps=3", "sft.batch_sequences=4", "tracking.log_every_steps=1"]


def run(*command: str, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)


def recipe(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, f"recipes/{name}.py", *overrides)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    rows = [
        {"question": f"Compute {a}+{b}.", "reasoning": f"{a}+{b}={a + b}", "answer": str(a + b)}
        for a in range(5)
        for b in range(5)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MISTAKES = {
    "an unknown key": (["sft.num_stepz=3"], "sft.num_stepz: no such key (did you mean sft.num_steps?)"),
    "a missing file": (["sft.data.path=no/such.jsonl"], "no/such.jsonl: no such file"),
    "a short row": (["sft.limits.row_tokens=50"], "sft.limits.row_tokens=50 is shorter than"),
    "a group of one": (["grpo.group_size=1"], "grpo.group_size=1:"),
    "no path": ([], "sft.data.path is not set"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_a_failure(mistake: str, tmp_path: Path) -> None:
    overrides, expected = MISTAKES[mistake]
    result = recipe("sft", "data=jsonl", f"run_dir={tmp_path / 'run'}", *overrides)
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ('{"question": "1+1", "reasoning": "r", "answer": "2"}\n{"question": \n', "line 2: not JSON"),
        ('{"question": "1+1", "answer": "2"}\n', "line 1: no field 'reasoning'"),
    ],
)
def test_a_broken_row_is_named_by_its_number(broken: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(broken)
    result = recipe("sft", "data=jsonl", f"sft.data.path={path}", f"run_dir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_a_run_is_never_written_over(traces: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: mine\n")
    result = recipe("sft", "data=jsonl", f"sft.data.path={traces}", f"run_dir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert "holds a run already" in result.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == "name: mine\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        [sys.executable],  # relaunches itself
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines=1", "--num_processes=2",
         "--dynamo_backend=no", "--mixed_precision=no"],
    ],
    ids=["plain", "torchrun", "accelerate"],
)  # fmt: skip
def test_two_ranks_log_what_one_process_logs(launcher: list[str], traces: Path, tmp_path: Path) -> None:
    options = ["data=jsonl", f"sft.data.path={traces}", *TINY_SFT]
    alone = recipe("sft", *options, f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    result = run(*launcher, "recipes/sft.py", *options, f"run_dir={tmp_path / 'both'}", "launch.num_processes=2")
    assert result.returncode == 0, result.stderr
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "both")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data (GSM8K)")
def test_sft_learns_and_grpo_runs_on_gsm8k(tmp_path: Path) -> None:
    sft = recipe(
        "sft", "data=gsm8k", f"sft.data.path={SHARED_DATA / 'gsm8k_train.jsonl'}", "sft.data.limit=2000",
        "sft.num_steps=100", "sft.batch_sequences=8", f"run_dir={tmp_path / 'sft'}",
    )  # fmt: skip
    assert sft.returncode == 0, sft.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])

    grpo = recipe(
        "grpo", "data=gsm8k", f"grpo.data.path={SHARED_DATA / 'gsm8k_train.jsonl'}", "grpo.num_steps=3",
        f"model.path={tmp_path / 'sft/model'}", "grpo.problems_per_step=2", "grpo.group_size=4",
        "grpo.limits.response_tokens=32", f"run_dir={tmp_path / 'grpo'}",
    )  # fmt: skip
    assert grpo.returncode == 0, grpo.stderr
    assert len((tmp_path / "grpo/metrics.jsonl").read_text().splitlines()) == 3

    evaluation = recipe(
        "evaluate", "data=gsm8k", f"evaluate.data.path={SHARED_DATA / 'gsm8k_test.jsonl'}",
        f"model.path={tmp_path / 'sft/model'}", "evaluate.num_problems=8", "evaluate.num_samples=2",
        "evaluate.limits.response_tokens=32", f"run_dir={tmp_path / 'evaluate'}",
    )  # fmt: skip
    assert evaluation.returncode == 0, evaluation.stderr
    assert json.loads((tmp_path / "evaluate/summary.json").read_text())["num_samples"] == 16
