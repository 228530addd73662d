"""Ranks sum gradients: a step does not depend on how its documents were spread."""

from __future__ import annotations

import pytest
import torch

from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.engine import TorchEngine, scheduled_learning_rate
from falcon_h1r.distributed.world import World
from falcon_h1r.sft.loop import train_step


def weights_after_steps(world: World, model, documents) -> tuple[list[float], list[float]]:
    """Train three steps on very unequal documents; the losses, and every weight."""
    engine = TorchEngine(model, OptimizerConfig(learning_rate=1e-2), num_steps=3, world=world)
    engine.check_gradient_scale()
    losses = [train_step(engine, documents, row_tokens=64)["loss"] for _ in range(3)]
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_makes_the_same_steps(tiny_model, random_documents, run_on_ranks, size: int) -> None:
    documents = random_documents([60, 3, 40, 2, 9])  # five documents: some ranks get a lone row or nothing
    by_rank = run_on_ranks(size, lambda world: weights_after_steps(world, tiny_model, documents))
    alone_losses, alone_weights = weights_after_steps(World(0, 1, torch.device("cpu")), tiny_model, documents)
    for losses, weights in by_rank:
        assert losses == pytest.approx(alone_losses, rel=1e-9)
        assert weights == by_rank[0][1]
        assert (torch.tensor(weights) - torch.tensor(alone_weights)).abs().max() < 1e-8


def test_the_probe_refuses_averaged_gradients(tiny_model, run_on_ranks) -> None:
    def probe(world: World) -> str:
        engine = TorchEngine(tiny_model, OptimizerConfig(), num_steps=1, world=world)
        summed = engine._sum_gradients

        def averaged() -> None:
            summed()
            for parameter in engine.parameters:
                if parameter.grad is not None:
                    parameter.grad /= world.size

        engine._sum_gradients = averaged  # type: ignore[method-assign]
        try:
            engine.check_gradient_scale()
        except RuntimeError as error:
            return str(error)
        return "accepted"

    assert run_on_ranks(2, probe) == ["gradient probe: 1.5 instead of 3.0"] * 2


def test_schedule_warms_up_and_decays_to_zero() -> None:
    settings = OptimizerConfig(learning_rate=1.0, warmup_share=0.2)
    rates = [scheduled_learning_rate(settings, step, 10) for step in range(11)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])
    constant = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="constant")
    assert [scheduled_learning_rate(constant, step, 100) for step in (0, 3, 50)] == [0.25, 1.0, 1.0]


def test_matrices_decay_and_the_ssms_scalars_do_not(tiny_model) -> None:
    engine = TorchEngine(tiny_model, OptimizerConfig(weight_decay=0.5), 1, World(0, 1, torch.device("cpu")))
    decay = {id(p): group["weight_decay"] for group in engine.optimizer.param_groups for p in group["params"]}
    for name, parameter in tiny_model.named_parameters():
        is_free = name.endswith(("A_log", ".D", "dt_bias", "bias", "norm.weight", "layernorm.weight"))
        assert decay[id(parameter)] == (0.0 if is_free else 0.5), name
