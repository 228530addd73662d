"""`engine.sequence_parallel=2` through the recipes: two ranks to a row log what one process logs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import check_training
from falcon_h1r.distributed.world import World, join_sequence_group
from falcon_h1r.types import InputError
from recipes.grpo import grpo
from recipes.sft import sft
from tests.integration.conftest import configured

ALONE = World(0, 1, torch.device("cpu"))
STAGES = {"sft": sft, "grpo": grpo}
# What a step learns from, and what it did.
COMPARED = {
    "sft": ("loss", "loss_unweighted", "grad_norm", "tokens", "loss_tokens"),
    "grpo": ("reward_mean", "sampled_tokens"),
}


def metrics(folder: Path, stage: str) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows
    return [[row[name] for name in COMPARED[stage]] for row in rows]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_two_ranks_to_a_row_log_what_one_process_logs(
    sums: Path,
    tmp_path: Path,
    run_on_ranks: Any,
    stage: str,
    checkpointing: str,
) -> None:
    settings = (f"engine.activation_checkpointing={checkpointing}",)
    STAGES[stage](configured(sums, *settings), tmp_path / "alone", ALONE)

    def work(world: World) -> None:
        shared = replace(world, sequence=join_sequence_group(world.rank, world.size, 2))
        STAGES[stage](configured(sums, *settings, "engine.sequence_parallel=2"), tmp_path / "shared", shared)

    run_on_ranks(2, work)
    alone, shared = (metrics(tmp_path / name, stage) for name in ("alone", "shared"))
    assert len(alone) == len(shared)
    for one, other in zip(alone, shared, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_degree_that_the_heads_refuse_is_refused_before_anything_is_made(sums: Path, tmp_path: Path) -> None:
    config = configured(sums, "engine.sequence_parallel=3", "sft.limits.row_tokens=3072", "grpo.limits.row_tokens=768")
    with pytest.raises(InputError, match="engine.sequence_parallel=3: does not divide the model's 4 mamba_n_heads"):
        sft(config, tmp_path, ALONE)
    assert not list(tmp_path.iterdir())


def test_a_row_that_ranks_cannot_share_is_refused_by_the_stage_that_has_it(sums: Path, tmp_path: Path) -> None:
    config = configured(sums, "engine.sequence_parallel=2", "sft.limits.row_tokens=2049")
    check_training(config, "grpo")
    with pytest.raises(InputError, match="sft.limits.row_tokens=2049: the 2 ranks"):
        sft(config, tmp_path, ALONE)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["engine.sequence_parallel=0"], "engine.sequence_parallel=0: has to be at least 1"),
        (["engine.activation_checkpointing=always"], "engine.activation_checkpointing=always: not one of none, layer"),
        (["engine.activation_offload=true"], "engine.activation_offload=true: needs activation_checkpointing=layer"),
    ],
)
def test_settings_that_cannot_be_are_refused(sums: Path, overrides: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        configured(sums, *overrides)
