"""A run of steps of rows, stopped and resumed on another number of ranks, goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.distributed.world import World
from tests.checkpoint.conftest import Train, make_config, train

__all__ = ["train"]  # the fixture

ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.slow
def test_rows_need_no_state_but_the_step(train: Train, run_on_ranks: Any, tmp_path: Path) -> None:
    config = make_config()
    config = replace(config, sft=replace(config.sft, batch_sequences=None, batch_rows=3))
    once = train(ALONE, tmp_path / "once", config, num_steps=8, dtype=torch.float64)
    train(ALONE, tmp_path / "twice", config, num_steps=8, dtype=torch.float64, upto=3)
    resumed = replace(config, resume=True)

    def go_on(world: World) -> dict[str, Any]:
        return train(world, tmp_path / "twice", resumed, num_steps=8, dtype=torch.float64)

    for twice in run_on_ranks(2, go_on):
        assert 0 < twice["first_step"] < 8
        assert torch.allclose(twice["weights"], once["weights"], rtol=1e-9, atol=1e-12)
        for before, after in zip(once["rows"], twice["rows"], strict=True):
            assert after["tokens"] == before["tokens"]
            assert after["loss"] == pytest.approx(before["loss"], rel=1e-9)
