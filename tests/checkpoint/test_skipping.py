"""Steps whose loss or gradient is not finite: left out, counted, and after some in a row the end, with the batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.data.packing import Document, pack_for_rank
from falcon_h1r.distributed.world import World
from falcon_h1r.training_run import dealt_rows
from falcon_h1r.types import InputError
from tests.checkpoint.conftest import Train, make_config, read_rows

ALONE = World(0, 1, torch.device("cpu"))


def breaking(steps: range | list[int], rank: int = 0, gradient: bool = False) -> Any:
    """Makes one rank's loss, or only its gradient, infinite in these steps."""

    def prepare(engine: Any) -> None:
        logprobs = engine.logprobs

        def broken(*arguments: Any) -> Any:
            values, entropies = logprobs(*arguments)
            if engine.steps_done in steps and engine.world.rank == rank:
                values = overflowing(values) if gradient else values * math.nan
            return values, entropies

        engine.logprobs = broken

    return prepare


def overflowing(values: torch.Tensor) -> torch.Tensor:
    """The same values, with a gradient beyond float32."""
    values.register_hook(lambda gradient: gradient * math.inf)
    return values


@pytest.mark.parametrize("gradient", [False, True])
def test_one_ranks_bad_step_is_left_out_by_all_and_counted(
    train: Train, run_on_ranks: Any, tmp_path: Path, gradient: bool
) -> None:
    prepare = breaking([2, 5], rank=1, gradient=gradient)

    def both(world: World) -> list[dict[str, Any]]:
        before = train(world, tmp_path / "before", upto=2)
        after = train(world, tmp_path / "after", prepare=prepare, upto=3)
        return [before, after, train(world, tmp_path / "run", prepare=prepare)]

    for before, after, whole in run_on_ranks(2, both):
        assert torch.equal(before["weights"], after["weights"])
        rows = whole["rows"]
        assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1] + [2] * 11
        assert rows[2]["grad_norm"] is None
        assert all(math.isfinite(row["loss"]) for index, row in enumerate(rows) if index not in (2, 5))
        assert all(map(torch.isfinite, whole["weights"]))


def test_the_count_goes_on_after_a_resume(train: Train, tmp_path: Path) -> None:
    once = train(ALONE, tmp_path / "once", prepare=breaking([1, 8]))
    train(ALONE, tmp_path / "twice", prepare=breaking([1, 8]), upto=4)
    twice = train(ALONE, tmp_path / "twice", make_config(resume=True), prepare=breaking([1, 8]))
    assert twice["first_step"] == 4
    assert twice["rows"] == once["rows"]
    assert torch.equal(twice["weights"], once["weights"])


def test_too_many_in_a_row_end_the_run_with_the_batch_written_out(
    train: Train, run_on_ranks: Any, tmp_path: Path
) -> None:
    config = replace(make_config(), supervision=SupervisionConfig(max_skipped_steps=3))
    prepare = breaking([2, 3, *range(6, 20)])  # two in a row are not three

    def refused(world: World) -> str:
        with pytest.raises(InputError) as error:
            train(world, tmp_path, config, prepare=prepare)
        return str(error.value)

    path = tmp_path / "skipped_batch_step_000009.jsonl"
    assert run_on_ranks(2, refused) == [
        "step 9: loss or gradient was not finite for 3 steps in a row (supervision.max_skipped_steps); its batch is in "
        f"{path}"
    ] * 2  # fmt: skip
    batch = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["data_rank"] for row in batch] == [0, 0, 1, 1]
    assert all(len(row["input_ids"]) == len(row["loss_weights"]) > 1 for row in batch)
    assert len({row["uid"] for row in batch}) == 4
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["skipped_steps"] == 5


def test_a_batch_is_written_as_it_was_dealt() -> None:
    documents = [
        Document([1] * length, [0.0] + [1.0] * (length - 1), advantages=[0.5] * length, uid=str(length))
        for length in (9, 2, 7, 5)
    ]
    rows = dealt_rows(documents, row_tokens=12, data_size=2)
    for rank in range(2):
        packed = pack_for_rank(documents, 12, rank, 2)
        dealt = [(row["row"], row["uid"]) for row in rows if row["data_rank"] == rank]
        assert dealt == [(index, uid) for index, row in enumerate(packed) for uid in row.uids]
    assert rows[0]["advantages"] == [0.5] * len(rows[0]["input_ids"])
