"""The reference policy stays where the stage began, and costs nothing where there are adapters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from falcon_h1r.config import LoRAConfig
from falcon_h1r.config_grpo import GRPOConfig, GRPOLossConfig
from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import pack_for_rank, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.reference import Reference, frozen_copy, without_adapters
from falcon_h1r.model.lora import add_adapters, is_adapter
from falcon_h1r.model.precision import compute_in
from tests.grpo.rollout_cases import rollout_documents

ALONE = World(0, 1, torch.device("cpu"))
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, schedule="constant")


def with_adapters(model: Any) -> Any:
    return add_adapters(copy.deepcopy(model), LoRAConfig(rank=2, alpha=4.0), seed=0)


def kl_learner(model: Any, world: World = ALONE, **engine: Any) -> Learner:
    reference = Reference(model)
    opened = open_engine(model, OPTIMIZER, 8, world, EngineConfig(**engine))
    return Learner(opened, GRPOConfig(loss=GRPOLossConfig(kl_coefficient=0.5)), reference)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_kl_starts_at_zero_and_is_that_to_the_start_of_the_stage(tiny_model, adapted: bool) -> None:
    start = TorchEngine(copy.deepcopy(tiny_model), OPTIMIZER, 8, ALONE)
    learner = kl_learner(with_adapters(tiny_model) if adapted else copy.deepcopy(tiny_model))
    rows = pack_for_rank(rollout_documents(), 64, 0, 1)
    kl = [learner.update(rows)["reference_kl"] for _ in range(3)]
    assert abs(kl[0]) < 1e-12
    assert min(kl[1:]) > 1e-4
    assert learner.reference is not None
    with torch.no_grad():
        for row in rows:
            held = learner.reference.logprobs(learner.engine, row, 0.7)
            assert torch.allclose(held, start.logprobs(row, 0.7)[0], atol=1e-12)
            assert not torch.allclose(held, learner.engine.logprobs(row, 0.7)[0], atol=1e-3)


def test_a_kl_holds_the_policy_back(tiny_model) -> None:
    row = pack_row(rollout_documents())
    distances = []
    for coefficient in (0.5, 50.0):
        learner = kl_learner(copy.deepcopy(tiny_model))
        learner.config.loss.kl_coefficient = coefficient
        distances.append([learner.update([row])["reference_kl"] for _ in range(6)][-1])
    assert distances[1] < distances[0] / 2


def test_adapters_stay_trainable_and_keep_their_gradients(tiny_model) -> None:
    model = with_adapters(tiny_model)
    engine = TorchEngine(model, OPTIMIZER, 8, ALONE)
    row = pack_row(rollout_documents())
    engine.backward(engine.logprobs(row)[0].sum())
    before = {name: parameter.grad.clone() for name, parameter in engine.trained.items()}
    Reference(model).logprobs(engine, row, 1.0)
    assert all(is_adapter(name) for name in before)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in engine.trained.items())
    with pytest.raises(ZeroDivisionError), without_adapters(model):
        raise ZeroDivisionError
    engine.backward(engine.logprobs(row)[0].sum())
    assert all(torch.allclose(parameter.grad, 2 * before[name]) for name, parameter in engine.trained.items())


def test_a_copy_is_kept_in_the_dtype_of_the_forward_and_shares_nothing(tiny_model) -> None:
    model = tiny_model.float()
    compute_in(model, torch.bfloat16)
    frozen = frozen_copy(model)
    wide = {"A_log", "D", "dt_bias"}
    for (name, kept), own in zip(frozen.named_parameters(), model.parameters(), strict=True):
        assert kept.dtype == (torch.float32 if name.rpartition(".")[2] in wide else torch.bfloat16)
        assert not kept.requires_grad
        assert kept.data_ptr() != own.data_ptr()
    assert next(model.parameters()).dtype == torch.float32
    row = pack_row(rollout_documents())
    engine = TorchEngine(model, OPTIMIZER, 8, ALONE)
    with torch.no_grad():
        gap = Reference(model).logprobs(engine, row, 1.0) - engine.logprobs(row)[0]
    assert gap.abs().max() < 0.1  # the model's norms are not bfloat16: rounded once more


def test_tied_weights_stay_tied(tiny_model) -> None:
    tiny_model.config.tie_word_embeddings = True
    tiny_model.lm_head.weight = tiny_model.model.embed_tokens.weight
    frozen = frozen_copy(tiny_model)
    assert frozen.lm_head.weight is frozen.model.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_with_adapters_every_engine_has_a_reference(tiny_model, run_on_ranks, stage: int) -> None:
    pytest.importorskip("deepspeed")
    model, documents = with_adapters(tiny_model.float()), rollout_documents()

    def work(world: World) -> list[float]:
        rows = pack_for_rank(documents, 32, world.data_rank, world.data_size)
        learner = kl_learner(copy.deepcopy(model), world, name="deepspeed", zero_stage=stage)
        return [learner.update(rows)[name] for _ in range(3) for name in ("reference_kl", "loss")]

    learner = kl_learner(copy.deepcopy(model))
    rows = pack_for_rank(documents, 32, 0, 1)
    expected = [learner.update(rows)[name] for _ in range(3) for name in ("reference_kl", "loss")]
    for found in run_on_ranks(2, work):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
