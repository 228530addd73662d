"""A sampler with weights of its own follows the trainer's, however those are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import FalconH1ForCausalLM

from falcon_h1r.config import LoRAConfig
from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.engine import Engine, TorchEngine
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.world import World
from falcon_h1r.model.lora import add_adapters, is_adapter
from falcon_h1r.model.precision import FULL_PRECISION
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.rollout.weights_copy import empty_copy, fill
from falcon_h1r.sft.loop import train_step
from falcon_h1r.types import Rollout

ALONE = World(0, 1, torch.device("cpu"))
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, clip_grad_norm=1.0)
PROMPTS = [Prompt("a", [5, 6, 7]), Prompt("b", list(range(20)))]
SETTINGS = SamplingSettings(num_samples=2, max_response_tokens=16, temperature=0.8, seed=5)


def drawn(rollouts: list[Rollout]) -> list[tuple[list[int], list[float]]]:
    return [(rollout.response_ids, rollout.sampler_logprobs) for rollout in rollouts]


def test_a_copy_in_the_same_dtype_draws_the_same_bits(tiny_model, tokenizer, random_documents) -> None:
    engine = TorchEngine(tiny_model, OPTIMIZER, 5, ALONE)
    copied = TorchSampler(tiny_model, tokenizer, dtype=torch.float64)
    shared = TorchSampler(tiny_model, tokenizer)
    assert drawn(copied.generate(PROMPTS, SETTINGS)) == drawn(shared.generate(PROMPTS, SETTINGS))
    before = drawn(copied.generate(PROMPTS, SETTINGS))
    train_step(engine, random_documents([9, 30]), row_tokens=64)
    assert drawn(copied.generate(PROMPTS, SETTINGS)) == before != drawn(shared.generate(PROMPTS, SETTINGS))
    copied.load_weights(engine)
    assert copied.policy_version == 1
    assert drawn(copied.generate(PROMPTS, SETTINGS)) == drawn(shared.generate(PROMPTS, SETTINGS))


def test_a_bfloat16_copy_keeps_the_ssm_in_float32(tiny_model, tokenizer) -> None:
    sampler = TorchSampler(tiny_model.float(), tokenizer, dtype=torch.bfloat16)
    for name, parameter in sampler.model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith(FULL_PRECISION) else torch.bfloat16), name
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}
    assert len(sampler.generate(PROMPTS, SETTINGS)) == 4


@pytest.mark.parametrize("tied", [False, True])
def test_the_copy_computes_what_the_model_computes(tiny_model, tied: bool) -> None:
    from falcon_h1r.model.decode_prefill import read_row

    tiny_model.config.tie_word_embeddings = tied
    model = FalconH1ForCausalLM(tiny_model.config).double().eval()
    copy = empty_copy(model, torch.float64)
    fill(copy, model.named_parameters(), model)
    assert all(not buffer.is_meta for buffer in copy.buffers())
    with torch.no_grad():
        ours, theirs = (read_row(each, [list(range(30))])[0].logits for each in (copy, model))
    assert torch.equal(ours, theirs)


def test_adapters_are_merged_on_their_way(tiny_model, tokenizer) -> None:
    add_adapters(tiny_model, LoRAConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if is_adapter(name):
                parameter.normal_(std=0.3)
    engine = TorchEngine(tiny_model, OPTIMIZER, 5, ALONE)
    sampler = TorchSampler(tiny_model, tokenizer, dtype=torch.float64)
    sampler.load_weights(engine)
    assert not any(is_adapter(name) for name, _ in sampler.model.named_parameters())
    expected = TorchSampler(tiny_model, tokenizer).generate(PROMPTS, SETTINGS)
    for ours, theirs in zip(sampler.generate(PROMPTS, SETTINGS), expected, strict=True):
        assert ours.response_ids == theirs.response_ids
        assert ours.sampler_logprobs == pytest.approx(theirs.sampler_logprobs, abs=1e-9)


@pytest.mark.parametrize("dropped", ["model.layers.1.mamba.D", "model.layers.0.mamba.A_log", "lm_head.weight"])
def test_a_weight_that_does_not_come_is_an_error(tiny_model, dropped: str) -> None:
    weights = [(name, parameter) for name, parameter in tiny_model.named_parameters() if name != dropped]
    with pytest.raises(RuntimeError, match=f"1 weights too few, {dropped}"):
        fill(empty_copy(tiny_model, torch.float32), weights, tiny_model)
    with pytest.raises(RuntimeError, match="no place for: other"):
        fill(empty_copy(tiny_model, torch.float32), [("other", torch.zeros(2))], tiny_model)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_under_zero_3_the_weights_are_gathered_for_the_sync_alone(
    tiny_model, tokenizer, random_documents, run_on_ranks: Callable[[int, Callable[[World], Any]], list[Any]], num_ranks
) -> None:
    pytest.importorskip("deepspeed")
    model, documents = tiny_model.float(), random_documents([30, 9, 12, 20])

    def work(world: World) -> Any:
        engine: Engine = open_engine(model, OPTIMIZER, 5, world, EngineConfig(name="deepspeed", zero_stage=3))
        sampler = TorchSampler(model, tokenizer, dtype=torch.float32)
        sampler.load_weights(engine)
        first = drawn(sampler.generate(PROMPTS, SETTINGS))
        train_step(engine, documents, row_tokens=64)
        assert drawn(sampler.generate(PROMPTS, SETTINGS)) == first
        sampler.load_weights(engine)
        is_sharded = any(parameter.numel() == 0 for parameter in model.parameters())
        with pytest.raises(RuntimeError, match="load_weights comes before"):
            TorchSampler(model, tokenizer, dtype=torch.float32).generate(PROMPTS, SETTINGS)
        second = drawn(sampler.generate(PROMPTS, SETTINGS))  # no rank waits for another in it
        with engine.whole():
            expected = drawn(TorchSampler(model, tokenizer).generate(PROMPTS, SETTINGS))
        return is_sharded, first != second, second == expected

    assert run_on_ranks(num_ranks, work) == [(True, True, True)] * num_ranks
