"""The recipe of RL selection: what it leaves, that GRPO reads it, and that no stop, kill or rank shows in its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.config import Config
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.sources import load_problems
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from recipes.grpo import check as check_grpo
from recipes.grpo import grpo
from recipes.selection import select
from recipes.sft import sft
from tests.integration.conftest import configured
from tests.integration.test_resume import StopAt

ROOT = Path(__file__).parents[2]
ALONE = World(0, 1, torch.device("cpu"))
FILES = ("rl.jsonl", "dropped.jsonl", "pass_rates.jsonl", "summary.json")
# A block of one rank is four problems. Float64, in which the batch that a rollout is drawn in does not show.
SETTINGS = (
    *("grpo.selection.num_rollouts=4", "grpo.selection.temperature=1.0", "grpo.selection.top_p=1.0"),
    *("grpo.selection.max_response_tokens=24", "grpo.rollout.max_slots=4", "model.dtype=float64"),
)


@pytest.fixture(scope="module")
def tosser(coins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers 0 or 1."""
    settings = ("sft.num_steps=40", "sft.batch_sequences=8", "sft.optimizer.schedule=constant")
    limits = "sft.limits={prompt_tokens: 64, response_tokens: 24, row_tokens: 96}"
    return sft(configured(coins, limits, *settings), tmp_path_factory.mktemp("tosser"), ALONE)


def selecting(coins: Path, tosser: Path, *overrides: str) -> Config:
    return configured(coins, f"model.path={tosser}", *SETTINGS, *overrides)


@pytest.fixture(scope="module")
def selected(coins: Path, tosser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return select(selecting(coins, tosser), tmp_path_factory.mktemp("select"), ALONE)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def bytes_of(folder: Path) -> Mapping[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_problems_that_are_neither_solved_nor_hopeless_are_kept(coins: Path, selected: Path) -> None:
    rates = {row["uid"]: row for row in rows(selected / "pass_rates.jsonl")}
    assert len(rates) == len(rows(coins)) == 32
    kept, dropped = rows(selected / "rl.jsonl"), rows(selected / "dropped.jsonl")
    assert {row["uid"] for row in kept}.isdisjoint(row["uid"] for row in dropped)
    assert len(kept) + len(dropped) == 32
    assert sum(0 < row["pass_rate"] < 1 for row in kept) == sum(0 < row["pass_rate"] < 1 for row in rates.values()) > 3
    assert all(row["pass_rate"] == rates[row["uid"]]["num_correct"] / 4 for row in kept + dropped)
    summary = json.loads((selected / "summary.json").read_text())
    assert sum(summary["pass_rates"].values()) == summary["funnel"]["problems"] == 32
    assert sum(summary["dropped"].values()) == len(dropped)
    assert summary["settings"]["num_rollouts"] == 4


def test_grpo_reads_what_was_selected_and_refuses_what_was_not(
    coins: Path, tosser: Path, selected: Path, tmp_path: Path
) -> None:
    config = selecting(coins, tosser, "model.dtype=float32")
    config.grpo.data = SourceConfig(path=str(selected / "rl.jsonl"), curated=True)
    check_grpo(config)
    assert (grpo(config, tmp_path, ALONE) / "model.safetensors").is_file()
    rl = {problem.uid: problem for problem in load_problems(config.grpo.data)}
    trained_on = {row["problem_uid"] for row in rows(tmp_path / "samples.jsonl")}
    assert trained_on <= set(rl)
    config.grpo.data = selecting(coins, tosser).grpo.data
    with pytest.raises(Exception, match=r"coins\.jsonl: problem 1 .* has no pass_rate"):
        check_grpo(config)


def test_without_rollouts_no_model_is_needed(coins: Path, tmp_path: Path) -> None:
    config = configured(coins, "grpo.selection.disjoint_from_sft=true")
    rest = tmp_path / "rest.jsonl"
    rest.write_text("".join(coins.read_text().splitlines(keepends=True)[:20]))
    config.sft.data.path = str(rest)
    select(config, tmp_path / "select", ALONE)
    assert len(rows(tmp_path / "select" / "rl.jsonl")) == 12
    assert {row["reason"] for row in rows(tmp_path / "select" / "dropped.jsonl")} == {"in_sft"}
    assert not (tmp_path / "select" / "pass_rates.jsonl").exists()
    summary = json.loads((tmp_path / "select" / "summary.json").read_text())
    assert summary["funnel"] == {
        "problems": 32,
        "of_the_domains": 32,
        "distinct": 32,
        "not_in_sft": 12,
        "selected": 12,
    }


def test_prompts_that_do_not_fit_are_dropped(coins: Path, tosser: Path, tmp_path: Path) -> None:
    config = selecting(coins, tosser, "grpo.limits.prompt_tokens=2")
    select(config, tmp_path, ALONE)
    assert {row["reason"] for row in rows(tmp_path / "dropped.jsonl")} == {"prompt_too_long"}
    assert rows(tmp_path / "rl.jsonl") == []


@pytest.mark.slow
def test_stopped_at_some_moments_it_ends_as_if_it_never_was(
    coins: Path, tosser: Path, selected: Path, tmp_path: Path
) -> None:
    done = []
    for beat in (5, 100, 110):  # of screening, and of sampling
        with pytest.raises(StopRequested):
            select(selecting(coins, tosser, "resume=true"), tmp_path, replace(ALONE, watch=StopAt(beat)))
        rates = tmp_path / "pass_rates.jsonl"
        done.append(rates.read_bytes().count(b"\n") if rates.exists() else 0)
        if rates.exists():
            rates.write_bytes(rates.read_bytes() + b'{"uid": "ha')
    assert done == sorted(done) and 0 < done[-1] < 32
    for _ in range(2):  # the second time, it has ended
        select(selecting(coins, tosser, "resume=true"), tmp_path, ALONE)
        assert bytes_of(tmp_path) == bytes_of(selected)


@pytest.mark.slow
def test_two_ranks_leave_the_same_files(
    coins: Path, tosser: Path, selected: Path, tmp_path: Path, run_on_ranks: Any
) -> None:
    def work(world: World) -> None:
        select(selecting(coins, tosser), tmp_path, replace(world, watch=Watch()))

    run_on_ranks(2, work)
    assert bytes_of(tmp_path) == bytes_of(selected)


# -----------------------------------------------------------------------------
# Killed


def start(coins: Path, tosser: Path, folder: Path) -> subprocess.Popen[bytes]:
    settings = [
        *("data=gsm8k", f"grpo.data.path={coins}", "system_prompt=Think.", f"model.path={tosser}", *SETTINGS),
        "grpo.limits={prompt_tokens: 64, response_tokens: 12, row_tokens: 256}",
    ]
    command = [sys.executable, "recipes/selection.py", *settings, f"run_dir={folder}", "resume=true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder.parent / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_kills_leave_no_trace(coins: Path, tosser: Path, tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    assert start(coins, tosser, once).wait(timeout=120) == 0, (tmp_path / "log").read_text()[-4000:]
    rates = again / "pass_rates.jsonl"
    for num_rows in (4, 12, 20):
        process = start(coins, tosser, again)
        deadline = time.monotonic() + 120
        while not (rates.exists() and rates.read_bytes().count(b"\n") >= num_rows):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-4000:]
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert num_rows <= rates.read_bytes().count(b"\n") < 32
        assert not (again / "summary.json").exists()
    assert start(coins, tosser, again).wait(timeout=120) == 0, (tmp_path / "log").read_text()[-4000:]
    assert bytes_of(again) == bytes_of(once)
