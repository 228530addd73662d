"""The packed forward: transformers' numbers for each document, and nothing between documents."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.config import ModelConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_row
from falcon_h1r.model.conv import packed_conv
from falcon_h1r.model.hybrid import ForwardPlan, packed_hidden_states
from falcon_h1r.model.load import load_policy
from falcon_h1r.model.logprobs import packed_logprobs

LENGTHS = [1, 5, 33, 64, 2, 17]


def logprobs_of(model: FalconH1ForCausalLM, batch: PackedBatch) -> Tensor:
    return packed_logprobs(model, packed_hidden_states(model, batch), batch)[0]


def test_every_document_gets_transformers_hidden_states(tiny_model, random_documents) -> None:
    # transformers casts its norms to float32, so its float64 is only as good as that.
    documents = random_documents(LENGTHS)
    ours = packed_hidden_states(tiny_model, pack_row(documents))
    theirs = torch.cat(
        [tiny_model.model(input_ids=torch.tensor([d.input_ids])).last_hidden_state[0] for d in documents]
    )
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("gate", [{"mamba_rms_norm": False}, {"mamba_norm_before_gate": True}])
def test_both_kinds_of_gate_follow_transformers(tiny_model, random_documents, gate: dict[str, bool]) -> None:
    config = FalconH1Config(**{**tiny_model.config.to_dict(), **gate})
    model = FalconH1ForCausalLM(config)
    documents = random_documents([9, 21])
    ours = packed_hidden_states(model, pack_row(documents))
    theirs = torch.cat([model.model(input_ids=torch.tensor([d.input_ids])).last_hidden_state[0] for d in documents])
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


# Around the kernel's 4 taps and the scan's chunks of 64 tokens, and between.
CUTS = st.lists(st.one_of(st.integers(1, 5), st.integers(62, 66), st.integers(1, 140)), min_size=1, max_size=5)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=CUTS)
def test_a_packed_row_equals_its_documents_one_by_one(tiny_model, random_documents, lengths: list[int]) -> None:
    documents = random_documents(lengths)
    batch = pack_row(documents)
    packed = logprobs_of(tiny_model, batch)
    packed_gradients = torch.autograd.grad((packed * batch.loss_weights).sum(), list(tiny_model.parameters()))

    alone = [logprobs_of(tiny_model, pack_row([document])) for document in documents]
    assert (packed - torch.cat(alone)).abs().max() < 1e-10
    total = (torch.cat(alone) * batch.loss_weights).sum()
    for packed_gradient, gradient in zip(
        packed_gradients, torch.autograd.grad(total, list(tiny_model.parameters())), strict=True
    ):
        assert (packed_gradient - gradient).abs().max() < 1e-10 * max(1.0, gradient.abs().max().item())


def others_results(model: FalconH1ForCausalLM, documents: list[Document], changed: int) -> list[Tensor]:
    """Logits of all documents but one, and the gradients of their loss by parameter."""
    batch = pack_row(documents)
    batch = dataclasses.replace(batch, loss_weights=batch.loss_weights * (batch.seq_idx != changed))
    hidden = packed_hidden_states(model, batch)
    logits = (model.lm_head(hidden) * model.model.lm_head_multiplier)[batch.seq_idx != changed]
    loss = (packed_logprobs(model, hidden, batch)[0] * batch.loss_weights).sum()
    return [logits.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=CUTS, data=st.data())
def test_changing_one_document_leaves_the_others_bit_for_bit(
    tiny_model, random_documents, lengths: list[int], data: st.DataObject
) -> None:
    """In float32, to the last bit of every logit and gradient."""
    model, changed = tiny_model.float(), data.draw(st.integers(0, len(lengths) - 1))
    documents, others = random_documents(lengths), random_documents(lengths, seed=1)
    before = others_results(model, documents, changed)
    documents[changed] = others[changed]
    for one, other in zip(before, others_results(model, documents, changed), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=CUTS, new_length=st.integers(1, 140), data=st.data())
def test_another_length_of_one_document_leaves_the_others_to_rounding(
    tiny_model, random_documents, lengths: list[int], new_length: int, data: st.DataObject
) -> None:
    """In float32 and 1e-5 relative: chunks and blocks fall elsewhere, and so do the last bits."""
    model, changed = tiny_model.float(), data.draw(st.integers(0, len(lengths) - 1))
    documents = random_documents(lengths)
    before = others_results(model, documents, changed)
    documents[changed] = random_documents([new_length], seed=1)[0]
    after = others_results(model, documents, changed)
    rounding = 1e-7 * max(one.norm().item() for one in before)  # what is left of a gradient that cancels
    for one, other in zip(before, after, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm().item() + rounding


@pytest.mark.parametrize("settings", [("layer", False), ("layer", True), ("selective", False)])
def test_what_a_layer_keeps_changes_no_bit(tiny_model, random_documents, settings: tuple[str, bool]) -> None:
    """Activation checkpointing and its offload: logprobs and every gradient."""
    model, batch = tiny_model.float(), pack_row(random_documents(LENGTHS))

    mode, offload = settings
    recomputed = gradients_of(model, batch, ForwardPlan(recompute=mode, offload=offload))
    for one, other in zip(gradients_of(model, batch, ForwardPlan()), recomputed, strict=True):
        assert torch.equal(one, other)


def gradients_of(model: FalconH1ForCausalLM, batch: PackedBatch, plan: ForwardPlan) -> list[Tensor]:
    """Logprobs and the gradients that `backward` leaves on the parameters."""
    logprobs, _ = packed_logprobs(model, packed_hidden_states(model, batch, plan), batch)
    (logprobs * batch.loss_weights).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return [logprobs.detach(), *gradients]


class AttentionCalls(TorchDispatchMode):
    """Counts the attention that is really computed: it stands below the modes that hand out what was saved."""

    count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operator is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("mode", "times"), [("none", 1), ("selective", 1), ("layer", 2)])
def test_selective_checkpointing_runs_attention_once(tiny_model, random_documents, mode: str, times: int) -> None:
    batch = pack_row(random_documents([30, 30]))
    with AttentionCalls() as calls:
        gradients_of(tiny_model, batch, ForwardPlan(recompute=mode))
    assert calls.count == times * len(tiny_model.model.layers)


def test_offloaded_layers_train_under_frozen_embeddings(tiny_model, random_documents) -> None:
    """Nothing before the first layer has a gradient then, which the reentrant checkpoint has to be told."""
    batch = pack_row(random_documents([9, 21]))
    tiny_model.model.embed_tokens.weight.requires_grad_(False)
    plain = gradients_of(tiny_model, batch, ForwardPlan())
    offloaded = gradients_of(tiny_model, batch, ForwardPlan(recompute="layer", offload=True))
    for one, other in zip(plain, offloaded, strict=True):
        assert torch.equal(one, other)


def test_the_convolution_stops_at_a_documents_start() -> None:
    inputs = torch.randn(7, 3, dtype=torch.float64)
    weight, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    outputs = packed_conv(inputs, weight, bias, torch.tensor([0, 1, 2, 3, 4, 0, 1]))
    for start, end in ((0, 5), (5, 7)):
        padded = torch.nn.functional.pad(inputs[start:end].t()[None], (3, 0))
        expected = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=3)[0].t())
        assert torch.allclose(outputs[start:end], expected, atol=1e-12)


def test_a_loaded_checkpoint_has_the_multipliers_of_its_config(
    tiny_model, tokenizer, tmp_path, random_documents
) -> None:
    """transformers can leave the muP vectors of a loaded model as unwritten memory; ours never are."""
    folder = publish_model(tiny_model.float(), tokenizer, tmp_path / "model")
    batch = pack_row(random_documents([9, 21]))
    expected = packed_hidden_states(tiny_model, batch)
    for _ in range(3):
        torch.full((1 << 20,), float("nan"))  # dirty the memory that buffers are taken from
        model, _ = load_policy(ModelConfig(path=str(folder)), torch.device("cpu"))
        assert torch.equal(packed_hidden_states(model, batch), expected)
    plain = FalconH1ForCausalLM.from_pretrained(folder)
    assert torch.equal(packed_hidden_states(plain, batch), expected)
