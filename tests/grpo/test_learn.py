"""Updates of the policy: as the formulas say, however rollouts are spread, several of them on one batch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from falcon_h1r.config_checks_grpo import check_grpo, check_reference
from falcon_h1r.config_grpo import GRPOConfig, GRPOLossConfig, RolloutConfig
from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, pack_for_rank, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World, join_sequence_group
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.reference import Reference
from falcon_h1r.training_run import SKIPPED
from falcon_h1r.types import InputError
from tests.grpo.rollout_cases import response_logprobs, rollout_documents

ALONE = World(0, 1, torch.device("cpu"))
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, clip_grad_norm=0.0, schedule="constant", epsilon=1e-3)
TERMS = {"kl_coefficient": 0.2, "entropy_coefficient": 0.1, "cross_entropy_weight": 0.3}
RunOnRanks = Callable[[int, Callable[[World], Any]], list[Any]]


def grpo_config(num_updates: int = 1, temperature: float = 0.8, **loss: Any) -> GRPOConfig:
    rollout = RolloutConfig(temperature=temperature)
    return GRPOConfig(rollout=rollout, updates_per_batch=num_updates, loss=GRPOLossConfig(**loss))


def moved_copy(model: Any) -> Any:
    """The same model a little further on, so that the reference and it differ."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return moved


def learnt(
    model: Any, world: World, config: GRPOConfig, documents: list[Document], row_tokens: int = 64, **engine: Any
) -> tuple[dict[str, float], Tensor]:
    """Metrics and weights after one batch; the reference is the model given, the policy starts a little further on."""
    opened = open_engine(moved_copy(model), OPTIMIZER, 8, world, EngineConfig(**engine))
    learner = Learner(opened, config, Reference(model) if config.loss.kl_coefficient else None)
    rows = pack_for_rank(documents, row_tokens, world.data_rank, world.data_size, world.sequence.size)
    metrics = learner.update(rows)
    return metrics, torch.cat([weight.detach().flatten().clone() for _, weight in opened.full_weights()])


def literal_update(
    engine: TorchEngine, documents: list[Document], old: list[Tensor], reference: list[Tensor], config: GRPOConfig
) -> None:
    """One optimizer step with aggregation by rollout, each rollout run by itself, from the formulas."""
    loss_config, loss = config.loss, torch.zeros((), dtype=torch.float64)
    positive = [document.advantages[-1] > 0.5 for document in documents]  # type: ignore[index]
    num_tokens = sum(len(logprobs) for logprobs in old)
    num_positive = sum(len(logprobs) for logprobs, correct in zip(old, positive, strict=True) if correct)
    for document, before, held, correct in zip(documents, old, reference, positive, strict=True):
        new, entropies = response_logprobs(engine, document, config.rollout.temperature)
        advantage = document.advantages[-1]  # type: ignore[index]
        sampler = torch.tensor(document.sampler_logprobs[-len(new) :], dtype=torch.float64)  # type: ignore[index]
        importance = (before - sampler).exp().clamp(max=loss_config.importance_cap)
        ratio = (new - before).exp()
        if loss_config.objective == "gspo":
            ratio = (new - before).mean().exp().expand_as(new)
        bounded = ratio.clamp(1 - loss_config.clip_low, 1 + loss_config.clip_high)
        surrogate = torch.min(ratio * advantage, bounded * advantage)
        if loss_config.objective == "cispo":
            surrogate = ratio.detach().clamp(max=loss_config.cispo_cap) * advantage * new
        kl = ratio * ((held - new).exp() - (held - new) - 1)
        loss = loss + (loss_config.kl_coefficient * kl - importance * surrogate).mean() / len(documents)
        loss = loss - loss_config.entropy_coefficient * entropies.sum() / num_tokens
        if correct:
            loss = loss - loss_config.cross_entropy_weight * new.sum() / num_positive
    loss.backward()
    engine.step()


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo"])
def test_two_updates_of_a_batch_are_those_of_the_formulas(tiny_model, objective: str) -> None:
    """The old logprobs of both are those before the first. Clips are narrow, so that the second meets them."""
    documents = rollout_documents()
    config = grpo_config(2, objective=objective, clip_low=0.01, clip_high=0.02, cispo_cap=1.01, **TERMS)
    metrics, weights = learnt(tiny_model, ALONE, config, documents)

    engine = TorchEngine(moved_copy(tiny_model), OPTIMIZER, 8, ALONE)
    with torch.no_grad():
        old = [response_logprobs(engine, document, 0.8)[0] for document in documents]
        start = TorchEngine(tiny_model, OPTIMIZER, 8, ALONE)
        reference = [response_logprobs(start, document, 0.8)[0] for document in documents]
    for _ in range(2):
        literal_update(engine, documents, old, reference, config)
    expected = torch.cat([parameter.detach().flatten() for parameter in engine.parameters])
    before = torch.cat([parameter.detach().flatten() for parameter in moved_copy(tiny_model).parameters()])
    assert (weights - expected).abs().max() < 1e-10 * (expected - before).abs().max()
    assert 0 < metrics["clip_high_share"] < 0.5
    assert (metrics["clip_low_share"] > 0) == (objective != "cispo")
    assert metrics["reference_kl"] > 0


OBJECTIVES, AGGREGATIONS = ("clip", "gspo", "cispo"), ("token", "sequence", "constant")
FAST = tuple(zip(OBJECTIVES, AGGREGATIONS, strict=True))


@pytest.mark.parametrize(
    ("objective", "aggregation"),
    [
        pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in itertools.product(OBJECTIVES, AGGREGATIONS)
    ],
)
def test_how_a_batch_is_cut_into_micro_batches_changes_nothing(tiny_model, objective: str, aggregation: str) -> None:
    documents = rollout_documents(aggregation, masked=(3,))
    config = grpo_config(2, objective=objective, aggregation=aggregation, clip_low=0.01, clip_high=0.02, **TERMS)
    metrics, weights = learnt(tiny_model, ALONE, config, documents, row_tokens=64)
    for row_tokens in (20, 36):
        cut_metrics, cut_weights = learnt(tiny_model, ALONE, config, documents, row_tokens)
        assert (weights - cut_weights).abs().max() < 1e-10
        assert cut_metrics == pytest.approx(metrics, rel=1e-8)


@pytest.mark.parametrize(
    ("size", "degree", "objectives"),
    [
        (2, 2, ("gspo",)),
        pytest.param(2, 1, OBJECTIVES, marks=pytest.mark.slow),
        pytest.param(2, 2, OBJECTIVES, marks=pytest.mark.slow),
        pytest.param(4, 2, OBJECTIVES, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_data_and_sequence_ranks_make_the_update_of_one_process(
    tiny_model, run_on_ranks: RunOnRanks, size: int, degree: int, objectives: tuple[str, ...]
) -> None:
    documents = rollout_documents(masked=(3,))
    configs = [grpo_config(2, objective=objective, clip_low=0.01, clip_high=0.02, **TERMS) for objective in objectives]

    def work(world: World) -> list[tuple[dict[str, float], Tensor]]:
        world = replace(world, sequence=join_sequence_group(world.rank, world.size, degree))
        return [learnt(tiny_model, world, config, documents, row_tokens=32) for config in configs]

    expected = work(ALONE) if degree == 1 else [learnt(tiny_model, ALONE, config, documents) for config in configs]
    for by_config in run_on_ranks(size, work):
        for (metrics, weights), (alone_metrics, alone_weights) in zip(by_config, expected, strict=True):
            assert (weights - alone_weights).abs().max() < 1e-9
            assert metrics == pytest.approx(alone_metrics, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sharded_engines_make_the_updates_of_one_process(tiny_model, run_on_ranks: RunOnRanks, stage: int) -> None:
    pytest.importorskip("deepspeed")
    model, documents = tiny_model.float(), rollout_documents()
    config = grpo_config(2, clip_low=0.01, clip_high=0.02, **(TERMS if stage < 3 else TERMS | {"kl_coefficient": 0.0}))

    def work(world: World) -> tuple[dict[str, float], Tensor]:
        return learnt(model, world, config, documents, row_tokens=32, name="deepspeed", zero_stage=stage)

    expected_metrics, expected = learnt(model, ALONE, config, documents)
    for metrics, weights in run_on_ranks(2, work):
        assert (weights - expected).abs().max() < 2e-5
        assert metrics == pytest.approx(expected_metrics, rel=1e-3, abs=1e-5)


def test_of_one_update_old_logprobs_are_its_own(tiny_model) -> None:
    """Also where rollouts are of older policies: the importance weight has the difference, the ratio is 1."""
    metrics, _ = learnt(tiny_model, ALONE, grpo_config(), rollout_documents())
    assert metrics["clip_high_share"] == metrics["clip_low_share"] == 0
    assert metrics["sampler_kl"] > 0.1
    assert 0 < metrics["importance_capped_share"] < 1
    assert "reference_kl" not in metrics


def test_an_unknown_sampler_logprob_is_told_and_stops_nothing(tiny_model) -> None:
    documents = rollout_documents()
    assert documents[1].sampler_logprobs is not None
    documents[1].sampler_logprobs[-1] = float("-inf")
    metrics, weights = learnt(tiny_model, ALONE, grpo_config(), documents)
    assert metrics["unscored_share"] == pytest.approx(1 / metrics["tokens"])
    assert metrics[SKIPPED] == 0
    assert weights.isfinite().all()


def test_a_batch_of_masked_rollouts_moves_the_schedule_and_nothing_else(tiny_model) -> None:
    engine = TorchEngine(tiny_model, OPTIMIZER, 8, ALONE)
    before = copy.deepcopy(tiny_model.state_dict())
    metrics = Learner(engine, grpo_config(3)).update([pack_row(rollout_documents(masked=tuple(range(6))))])
    assert metrics == {"tokens": 0.0}
    assert (engine.steps_done, engine.updates_done) == (3, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.state_dict().items())


class StopAfter:
    """A watch that is told to stop once it has seen so many signs of life."""

    def __init__(self, num_beats: int) -> None:
        self.left = num_beats

    def beat(self, *_: Any) -> None:
        self.left -= 1

    @property
    def stop_requested(self) -> bool:
        return self.left < 0


def test_a_stop_is_heard_before_the_first_update_and_not_between_two(tiny_model) -> None:
    """A batch whose first update is done cannot be begun again: its rollouts are not saved."""
    rows = pack_for_rank(rollout_documents(), 32, 0, 1)
    assert len(rows) > 1
    for num_beats, steps in ((len(rows) - 1, 0), (len(rows), 2)):
        watch: Any = StopAfter(num_beats)
        engine = TorchEngine(copy.deepcopy(tiny_model), OPTIMIZER, 8, replace(ALONE, watch=watch))
        learner = Learner(engine, grpo_config(2))
        if steps == 0:
            with pytest.raises(StopRequested):
                learner.update(rows)
        else:
            learner.update(rows)
            assert watch.stop_requested
        assert engine.steps_done == steps


def test_updates_that_do_not_divide_the_steps_are_refused() -> None:
    check_grpo(GRPOConfig(num_steps=6, updates_per_batch=3))
    with pytest.raises(InputError, match=r"grpo\.num_steps=7: updates_per_batch=3"):
        check_grpo(GRPOConfig(num_steps=7, updates_per_batch=3))


def test_a_reference_beside_sharded_weights_is_refused() -> None:
    with_kl = GRPOLossConfig(kl_coefficient=0.04)
    check_reference(with_kl, zero_stage=2, adapter_rank=0)
    check_reference(with_kl, zero_stage=3, adapter_rank=8)
    check_reference(GRPOLossConfig(), zero_stage=3, adapter_rank=0)
    with pytest.raises(InputError, match=r"grpo\.loss\.kl_coefficient=0\.04: .* engine\.zero_stage=3"):
        check_reference(with_kl, zero_stage=3, adapter_rank=0)
