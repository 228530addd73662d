"""Adapters: at first they change nothing, then they alone are trained, and what is published is a plain model."""

from __future__ import annotations

import builtins
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import FalconH1ForCausalLM

from falcon_h1r.config import LoRAConfig, ModelConfig
from falcon_h1r.config_stage import OptimizerConfig, ParameterGroupConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.dry_run.arithmetic import count_adapter_parameters
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.load import planned_config
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.model.lora import add_adapters, has_adapters, is_adapter, merged_state
from falcon_h1r.model.parameter_groups import parameter_groups
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.sft.loop import train_step
from falcon_h1r.types import InputError

ALONE = World(0, 1, torch.device("cpu"))
SETTINGS = LoRAConfig(rank=3, alpha=6.0)
Documents = Callable[..., list[Document]]


def adapted_copy(model: FalconH1ForCausalLM, settings: LoRAConfig = SETTINGS) -> FalconH1ForCausalLM:
    return add_adapters(copy.deepcopy(model), settings, seed=0)


def with_random_adapters(model: FalconH1ForCausalLM) -> FalconH1ForCausalLM:
    """As after training: B is no longer zero."""
    adapted = adapted_copy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if is_adapter(name):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return adapted


def merged_copy(model: FalconH1ForCausalLM, adapted: FalconH1ForCausalLM) -> FalconH1ForCausalLM:
    """A plain model with the merged weights."""
    merged = copy.deepcopy(model)
    merged.load_state_dict(merged_state(adapted))
    return merged


def loss_of(model: FalconH1ForCausalLM, documents: list[Document]) -> Tensor:
    row = pack_row(documents)
    logprobs, _ = packed_logprobs(model, packed_hidden_states(model, row), row)
    return -(logprobs * row.loss_weights).sum()


def adapters_of(model: FalconH1ForCausalLM) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


# -----------------------------------------------------------------------------
# What they compute


def test_at_first_they_change_no_logit(tiny_model: FalconH1ForCausalLM, random_documents: Documents) -> None:
    row = pack_row(random_documents([9, 17, 4]))
    adapted = adapted_copy(tiny_model)
    assert has_adapters(adapted) and not has_adapters(tiny_model)
    assert torch.equal(packed_hidden_states(adapted, row), packed_hidden_states(tiny_model, row))


def test_the_model_stays_what_others_take_it_for(tiny_model: FalconH1ForCausalLM) -> None:
    adapted = adapted_copy(tiny_model)
    assert type(adapted) is FalconH1ForCausalLM
    assert len(adapted.model.layers) == adapted.config.num_hidden_layers
    assert adapted.lm_head.weight.shape == tiny_model.lm_head.weight.shape


@pytest.mark.parametrize("target", LoRAConfig().target_modules)
def test_every_target_reaches_the_packed_forward(
    tiny_model: FalconH1ForCausalLM, random_documents: Documents, target: str
) -> None:
    """One that did not would be trained without effect, and get no gradient."""
    adapted = adapted_copy(tiny_model, LoRAConfig(rank=2, target_modules=[target]))
    loss_of(adapted, random_documents([9, 17, 4])).backward()
    ups = {name: tensor for name, tensor in adapters_of(adapted).items() if "lora_B" in name}
    assert len(ups) == tiny_model.config.num_hidden_layers
    for name, up in ups.items():
        assert target in name
        assert up.grad is not None and up.grad.abs().max() > 0, name


def test_the_merged_model_computes_the_same(tiny_model: FalconH1ForCausalLM, random_documents: Documents) -> None:
    row = pack_row(random_documents([9, 17, 4]))
    adapted = with_random_adapters(tiny_model)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    merged = merged_copy(tiny_model, adapted)
    expected = packed_hidden_states(adapted, row)
    assert (packed_hidden_states(tiny_model, row) - expected).abs().max() > 0.1
    torch.testing.assert_close(packed_hidden_states(merged, row), expected, rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items()), "merging moved it"


def test_the_sampler_decodes_with_them(tiny_model: FalconH1ForCausalLM, tokenizer: Any) -> None:
    adapted = with_random_adapters(tiny_model)
    prompts = [Prompt("a", [5, 6, 7]), Prompt("b", list(range(20)))]
    settings = SamplingSettings(num_samples=2, max_response_tokens=16, temperature=0.8, seed=5)
    with_adapters, merged = (
        TorchSampler(model, tokenizer).generate(prompts, settings)
        for model in (adapted, merged_copy(tiny_model, adapted))
    )
    for first, second in zip(with_adapters, merged, strict=True):
        assert first.response_ids == second.response_ids
        assert first.sampler_logprobs == pytest.approx(second.sampler_logprobs, abs=1e-9)


def test_gradients_are_those_of_the_merged_weights(
    tiny_model: FalconH1ForCausalLM, random_documents: Documents
) -> None:
    """W' = W + s B A, so dL/dB = s dL/dW' A^T and dL/dA = s B^T dL/dW'."""
    documents = random_documents([9, 17, 4])
    adapted = with_random_adapters(tiny_model)
    merged = merged_copy(tiny_model, adapted)
    loss_of(adapted, documents).backward()
    loss_of(merged, documents).backward()
    scale = SETTINGS.alpha / SETTINGS.rank
    found = adapters_of(adapted)
    for name in (name for name in found if "lora_A" in name):
        down, up = found[name], found[name.replace("lora_A", "lora_B")]
        of_weight = merged.get_parameter(name.replace("lora_A.default.", "")).grad
        assert of_weight is not None and down.grad is not None and up.grad is not None
        torch.testing.assert_close(up.grad, scale * of_weight @ down.T, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(down.grad, scale * up.T @ of_weight, rtol=1e-8, atol=1e-9)


# -----------------------------------------------------------------------------
# What is trained


def test_only_adapters_are_trained(tiny_model: FalconH1ForCausalLM, random_documents: Documents) -> None:
    adapted = adapted_copy(tiny_model)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    engine = TorchEngine(adapted, OptimizerConfig(learning_rate=1e-2, schedule="constant"), 5, ALONE)
    losses = [train_step(engine, random_documents([20, 7, 13]), 64)["loss"] for _ in range(5)]
    assert losses[-1] < losses[0]
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, before[name]) is not is_adapter(name), name
        assert parameter.grad is None


def test_groups_go_by_the_adapters_names(tiny_model: FalconH1ForCausalLM) -> None:
    settings = OptimizerConfig(weight_decay=0.5, groups=[ParameterGroupConfig("lora_B", 16.0, 0.0)])
    adapted = adapted_copy(tiny_model)
    groups = parameter_groups(adapted.named_parameters(), settings)
    found = {(group["learning_rate_multiplier"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert found == {(1.0, 0.5): 16, (16.0, 0.0): 16}  # eight projections, two layers
    with pytest.raises(InputError, match="pattern=A_log"):
        parameter_groups(adapted.named_parameters(), OptimizerConfig(groups=[ParameterGroupConfig("A_log")]))


def test_the_seed_decides_and_the_generator_is_left_alone(tiny_model: FalconH1ForCausalLM) -> None:
    """Every rank makes its own: they have to start alike."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = adapters_of(adapted_copy(tiny_model))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = adapters_of(adapted_copy(tiny_model))
    other = adapters_of(add_adapters(copy.deepcopy(tiny_model), SETTINGS, seed=1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_bfloat16_model_has_float32_adapters(tiny_model: FalconH1ForCausalLM, random_documents: Documents) -> None:
    adapted = with_random_adapters(tiny_model.bfloat16())
    assert all(parameter.dtype == torch.float32 for parameter in adapters_of(adapted).values())
    assert packed_hidden_states(adapted, pack_row(random_documents([9, 4]))).dtype == torch.bfloat16
    merged = merged_state(adapted)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    name = "model.layers.0.mamba.in_proj"
    module = adapted.get_submodule(name)
    exact = module.base_layer.weight.double() + module.get_delta_weight("default").double()
    assert torch.equal(merged[f"{name}.weight"], exact.to(torch.bfloat16)), "rounded more than once"


def test_the_count_is_rank_times_the_sides_of_every_target() -> None:
    shape, _ = planned_config(ModelConfig(architecture={"num_hidden_layers": 3}))
    head_dim = shape.hidden_size // shape.num_attention_heads
    queries, keys = head_dim * shape.num_attention_heads, head_dim * shape.num_key_value_heads
    sides = 2 * (shape.hidden_size + queries) + 2 * (shape.hidden_size + keys)
    sides += 3 * (shape.hidden_size + shape.intermediate_size)
    conv = shape.mamba_d_ssm + 2 * shape.mamba_n_groups * shape.mamba_d_state
    sides += shape.hidden_size + shape.mamba_d_ssm + conv + shape.mamba_n_heads
    assert count_adapter_parameters(shape, LoRAConfig(rank=4)) == 3 * 4 * sides
    assert count_adapter_parameters(shape, LoRAConfig()) == 0


def test_without_peft_the_way_out_is_told(tiny_model: FalconH1ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without_peft(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(InputError, match=r"model\.lora\.rank=3: needs peft: pip install"):
        adapted_copy(tiny_model)
