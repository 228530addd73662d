"""Told to stop or killed at any moment, both stages end where an undisturbed run ends, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from falcon_h1r.config import Config
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.tracking import strip_times
from recipes.grpo import grpo
from recipes.sft import sft
from tests.integration.conftest import configured

ALONE = World(0, 1, torch.device("cpu"))
STAGES: dict[str, Callable[[Config, Path, World], Path]] = {"sft": sft, "grpo": grpo}
NUM_STOPS = 6
SETTINGS = (
    *("dev.data.question_field=question", "dev.data.answer_after='####'", "dev.num_problems=4", "dev.num_samples=1"),
    *("sft.num_steps=8", "sft.dev_every_steps=3", "grpo.num_steps=5", "grpo.dev_every_steps=2"),
    *("grpo.max_backfill_rounds=1", "grpo.optimizer.learning_rate=1e-3", "grpo.optimizer.warmup_steps=0"),
    *("checkpoint.every_steps=3", "sft.limits={prompt_tokens: 64, response_tokens: 24, row_tokens: 96}"),
    "grpo.limits={prompt_tokens: 64, response_tokens: 16, row_tokens: 96}",
)


@pytest.fixture(scope="module")
def tosser(coins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers 0 or 1."""
    settings = ("sft.num_steps=40", "sft.batch_sequences=8", "sft.optimizer.schedule=constant")
    return sft(configured(coins, *settings), tmp_path_factory.mktemp("tosser"), ALONE)


class StopAt(Watch):
    """Hears of the stop at its n-th sign of life."""

    def __init__(self, beat: int) -> None:
        self.phases: list[str] = []
        self._beat = beat

    def beat(self, phase: str, step: int | None = None) -> None:
        self.phases.append(phase)

    @property
    def stop_requested(self) -> bool:
        return len(self.phases) >= self._beat


def stage_config(stage: str, coins: Path, model: Path, *overrides: str) -> Config:
    path = [f"model.path={model}"] if stage == "grpo" else []
    return configured(coins, f"dev.data.path={coins}", *SETTINGS, *path, *overrides)


def left_behind(folder: Path) -> dict[str, Any]:
    """Weights and rows, but for the clock's."""
    rows = {
        path.name: [strip_times(json.loads(line)) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
    return {"weights": load_file(folder / "model" / "model.safetensors"), **rows}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
    for name in expected.keys() - {"weights"}:
        assert found[name] == expected[name]


@pytest.mark.parametrize(
    ("stage", "seed"),
    [
        pytest.param(stage, seed, marks=[] if (stage, seed) == ("sft", 0) else pytest.mark.slow)
        for stage in STAGES
        for seed in range(4)
    ],
)
def test_stopped_at_random_moments_it_ends_as_if_it_never_was(
    stage: str, seed: int, coins: Path, tosser: Path, tmp_path: Path, run_on_ranks: Any
) -> None:
    """One rank of two hears of each stop, somewhere in a step; both leave it and save."""
    once, again = tmp_path / "once", tmp_path / "again"

    def undisturbed(world: World) -> list[str]:
        watch = StopAt(10**9)
        STAGES[stage](stage_config(stage, coins, tosser), once, replace(world, watch=watch))
        return watch.phases

    phases = run_on_ranks(2, undisturbed)
    assert {"training", "evaluating", "sampling", "gathering", "saving"} <= set(phases[0])
    rng = random.Random(f"{stage}/{seed}")
    stops = [(rng.randrange(2), 1 + rng.randrange(2 * len(phases[0]) // NUM_STOPS)) for _ in range(NUM_STOPS)]

    def disturbed(world: World) -> list[str]:
        messages = []
        for rank, beat in [*stops, (0, 10**9)]:
            watch = StopAt(beat if world.rank == rank else 10**9)
            config = stage_config(stage, coins, tosser, "resume=true")
            try:
                STAGES[stage](config, again, replace(world, watch=watch))
            except StopRequested as stop:
                assert not (again / "model").exists()
                messages.append(str(stop))
        return messages

    messages, others = run_on_ranks(2, disturbed)
    assert messages == others
    assert len(messages) >= 2
    assert all("; resume=true goes on from" in message for message in messages)
    assert_equal(left_behind(again), left_behind(once))
    if stage == "grpo":
        assert sum(row["num_groups"] > 0 for row in left_behind(once)["metrics.jsonl"]) >= 2


@pytest.mark.slow
def test_adapters_go_on_beside_the_model_they_began_with(coins: Path, tosser: Path, tmp_path: Path) -> None:
    settings = ("resume=true", "model.lora.rank=2", f"model.path={tosser}")
    sft(stage_config("sft", coins, tosser, *settings), tmp_path / "once", ALONE)
    with pytest.raises(StopRequested, match="stopped after step 2 of 8"):
        world = replace(ALONE, watch=StopAt(6))
        sft(stage_config("sft", coins, tosser, *settings), tmp_path / "again", world)
    saved = load_file(tmp_path / "again" / "checkpoints" / "step_000002" / "rank_00000.safetensors")
    assert all("lora_" in key for key in saved)
    sft(stage_config("sft", coins, tosser, *settings), tmp_path / "again", ALONE)
    assert_equal(left_behind(tmp_path / "again"), left_behind(tmp_path / "once"))


def test_a_stage_that_has_its_model_returns_it_at_once(coins: Path, tosser: Path, tmp_path: Path) -> None:
    folder = sft(stage_config("sft", coins, tosser), tmp_path, ALONE)
    before = left_behind(tmp_path)
    (tmp_path / "model" / "mark").touch()
    assert sft(stage_config("sft", coins, tosser, "resume=true"), tmp_path, ALONE) == folder
    assert (folder / "mark").exists()
    assert_equal(left_behind(tmp_path), before)


def test_a_kill_between_the_last_step_and_the_model_costs_the_model_alone(
    coins: Path, tosser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft(stage_config("sft", coins, tosser), tmp_path / "once", ALONE)
    with monkeypatch.context() as patch:
        patch.setattr("falcon_h1r.checkpoint.publish_policy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sft(stage_config("sft", coins, tosser), tmp_path / "again", ALONE)
    assert not (tmp_path / "again" / "model").exists()
    watch = StopAt(10**9)
    sft(stage_config("sft", coins, tosser, "resume=true"), tmp_path / "again", replace(ALONE, watch=watch))
    assert set(watch.phases) == {"loading"}
    assert_equal(left_behind(tmp_path / "again"), left_behind(tmp_path / "once"))
