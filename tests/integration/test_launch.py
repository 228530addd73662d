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
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "NPROC": "2",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
    }
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
    "a model that is not there": (["sft.data.path=README.md", "model.path=./nowhere"], "README.md, line 1: not JSON"),
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


@pytest.mark.slow
def test_a_pipeline_on_ones_own_traces_asks_for_problems_too(traces: Path, tmp_path: Path) -> None:
    source = f"+curate.sources={{own:{{path:{traces},reasoning_field:reasoning}}}}"
    options = [source, f"run_dir={tmp_path / 'run'}"]
    result = recipe("pipeline", *options)
    assert result.returncode == 2
    assert result.stderr.strip() == "error: grpo.data.path is not set: this recipe needs it"


def test_a_run_is_never_written_over(traces: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: mine\n")
    result = recipe("sft", "data=jsonl", f"sft.data.path={traces}", f"run_dir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert "holds a run already" in result.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == "name: mine\n"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["plain", "launch/torchrun.sh", "launch/accelerate.sh"])
def test_two_ranks_log_what_one_process_logs(launcher: str, traces: Path, tmp_path: Path) -> None:
    options = ["data=jsonl", f"sft.data.path={traces}", *TINY_SFT]
    alone = recipe("sft", *options, f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    command = [sys.executable] if launcher == "plain" else ["bash", launcher]
    ranks = ["launch.num_processes=2"] if launcher == "plain" else []
    result = run(*command, "recipes/sft.py", *options, f"run_dir={tmp_path / 'both'}", *ranks)
    assert result.returncode == 0, result.stderr
    assert "(ranks: 2)" in result.stdout
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "both")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_mistake_that_only_the_main_rank_meets_is_one_line_too(traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = recipe(
        "sft", "data=jsonl", f"sft.data.path={traces}", "launch.num_processes=2", f"run_dir={folder}",
        "model.tokenizer_vocab_size=100",
    )  # fmt: skip
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: model.tokenizer_vocab_size=100 is below the 309 that bytes and commands need"]
    assert "Traceback" not in result.stderr
    assert not (folder / "config.yaml").exists()  # the next try may use the folder


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data (GSM8K)")
def test_sft_learns_and_grpo_runs_on_gsm8k(tmp_path: Path) -> None:
    sft = recipe(
        "sft", "data=gsm8k", f"sft.data.path={SHARED_DATA / 'gsm8k_train.jsonl'}", "sft.data.limit=2000",
        "sft.num_steps=100", "sft.batch_sequences=8", f"run_dir={tmp_path / 'sft'}",
    )  # fmt: skip
    assert sft.returncode == 0, sft.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])

    grpo = recipe(
        "grpo", "data=gsm8k", f"grpo.data.path={SHARED_DATA / 'gsm8k_train.jsonl'}", "grpo.num_steps=3",
        f"model.path={tmp_path / 'sft/model'}", "grpo.problems_per_step=2", "grpo.group_size=4",
        "grpo.limits.response_tokens=32", f"run_dir={tmp_path / 'grpo'}",
    )  # fmt: skip
    assert grpo.returncode == 0, grpo.stderr
    steps = [json.loads(line) for line in (tmp_path / "grpo/metrics.jsonl").read_text().splitlines()]
    assert [step["sampled_tokens"] > 0 for step in steps] == [True] * 3  # a tiny model gets none right: no update

    evaluation = recipe(
        "evaluate", "data=gsm8k", f"evaluate.data.path={SHARED_DATA / 'gsm8k_test.jsonl'}",
        f"model.path={tmp_path / 'sft/model'}", "evaluate.num_problems=8", "evaluate.num_samples=2",
        "evaluate.limits.response_tokens=32", f"run_dir={tmp_path / 'evaluate'}",
    )  # fmt: skip
    assert evaluation.returncode == 0, evaluation.stderr
    assert json.loads((tmp_path / "evaluate/summary.json").read_text())["num_samples"] == 16
