"""Gradient norms by layer are those of the whole gradient before clipping, under any engine."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, pack_for_rank, pack_row
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.layer_norms import layer_of
from falcon_h1r.distributed.world import World

ALONE = World(0, 1, torch.device("cpu"))
LENGTHS = [60, 3, 40, 2, 9]
CLIPPED = OptimizerConfig(clip_grad_norm=1e-3)  # far below the gradient's norm


def layer_norms(model: Any, documents: list[Document], world: World, **engine: Any) -> tuple[Mapping[str, float], bool]:
    opened = open_engine(copy.deepcopy(model), CLIPPED, 5, world, EngineConfig(**engine))
    for row in pack_for_rank(documents, 64, world.data_rank, world.data_size, world.sequence.size):
        opened.backward((opened.logprobs(row)[0] * row.loss_weights).sum())
    asked = opened.step(by_layer=True).layer_grad_norms
    for row in pack_for_rank(documents, 64, world.data_rank, world.data_size, world.sequence.size):
        opened.backward((opened.logprobs(row)[0] * row.loss_weights).sum())
    return asked, not opened.step().layer_grad_norms


def expected_norms(model: Any, documents: list[Document]) -> dict[str, float]:
    opened = open_engine(copy.deepcopy(model), CLIPPED, 5, ALONE, EngineConfig())
    row = pack_row(documents)
    (opened.logprobs(row)[0] * row.loss_weights).sum().backward()
    squares: dict[str, float] = {}
    for name, parameter in opened.trained.items():
        assert parameter.grad is not None
        squares[layer_of(name)] = squares.get(layer_of(name), 0.0) + parameter.grad.square().sum().item()
    return {layer: square**0.5 for layer, square in squares.items()}


def test_one_process_measures_each_layer(tiny_model, random_documents) -> None:
    documents = random_documents(LENGTHS)
    expected = expected_norms(tiny_model, documents)
    assert list(expected) == ["embedding", "layer_00", "layer_01", "head"]
    norms, silent_unless_asked = layer_norms(tiny_model, documents, ALONE)
    assert norms == pytest.approx(expected, rel=1e-6)
    assert silent_unless_asked


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_ranks_measure_the_whole_gradient(tiny_model, random_documents, run_on_ranks, stage: int | None) -> None:
    pytest.importorskip("deepspeed")
    model, documents = tiny_model.float(), random_documents(LENGTHS)
    engine = {} if stage is None else {"name": "deepspeed", "zero_stage": stage}
    expected = expected_norms(model, documents)
    for norms, silent_unless_asked in run_on_ranks(2, lambda world: layer_norms(model, documents, world, **engine)):
        assert norms == pytest.approx(expected, rel=1e-4)
        assert silent_unless_asked


def test_a_step_that_is_left_out_has_no_norms(tiny_model, random_documents) -> None:
    opened = open_engine(tiny_model, CLIPPED, 5, ALONE, EngineConfig())
    opened.backward(opened.logprobs(pack_row(random_documents([9])))[0].sum() * float("nan"))
    outcome = opened.step(by_layer=True)
    assert not outcome.applied and not outcome.layer_grad_norms
