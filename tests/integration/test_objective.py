"""Everything that the objective may ask for, through the recipe, stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.tracking import strip_times
from recipes.grpo import grpo
from recipes.sft import sft
from tests.integration.conftest import configured

ALONE = World(0, 1, torch.device("cpu"))
SETTINGS = (
    *("grpo.num_steps=8", "grpo.updates_per_batch=2", "checkpoint.every_steps=2", "grpo.optimizer.learning_rate=1e-3"),
    *("grpo.optimizer.warmup_steps=0", "grpo.loss.kl_coefficient=0.5", "grpo.loss.entropy_coefficient=0.01"),
    *("grpo.loss.objective=gspo", "grpo.loss.clip_low=0.001", "grpo.loss.clip_high=0.001"),
    *("sft.num_steps=40", "sft.batch_sequences=8", "sft.optimizer.schedule=constant"),
)


class StopAtBeat(Watch):
    """Is told to stop once it has given so many signs of life."""

    def __init__(self, beat: int) -> None:
        self.left = beat

    def beat(self, phase: str, step: int | None = None) -> None:
        self.left -= 1

    @property
    def stop_requested(self) -> bool:
        return self.left <= 0


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [strip_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_resumed_run_holds_on_to_the_policy_that_the_stage_began_with(coins: Path, tmp_path: Path) -> None:
    start = sft(configured(coins, *SETTINGS), tmp_path / "sft", ALONE)
    settings = (*SETTINGS, f"model.path={start}")
    once, again = tmp_path / "once", tmp_path / "again"
    grpo(configured(coins, *settings), once, ALONE)
    beat, stops = 30, 0
    while not (again / "model").exists():
        try:
            grpo(configured(coins, *settings, "resume=true"), again, replace(ALONE, watch=StopAtBeat(beat)))
        except StopRequested:
            stops, beat = stops + 1, beat + 23
    assert stops > 0
    rows = rows_of(once)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert rows_of(again) == rows
    learnt = [row for row in rows if row["num_groups"]]
    assert len(learnt) > 1
    assert learnt[-1]["reference_kl"] > 1e-4  # type: ignore[operator]
    weights, expected = (load_file(folder / "model" / "model.safetensors") for folder in (again, once))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
