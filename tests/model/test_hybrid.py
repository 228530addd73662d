"""The packed forward: transformers' numbers for each document, and nothing between documents."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.config import ModelConfig
from falcon_h1r.data.packing import PackedBatch, pack_row
from falcon_h1r.model.conv import packed_conv
from falcon_h1r.model.hybrid import packed_hidden_states
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


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5))
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changing_one_document_leaves_the_others_alone(tiny_model, random_documents, dtype) -> None:
    """Logits of the other documents, and the gradients of their loss, within 1e-6 in float32."""
    model = tiny_model.to(dtype)
    documents = random_documents(LENGTHS)
    changed = list(documents)
    changed[2] = dataclasses.replace(documents[2], input_ids=[7] * len(documents[2]))

    def others(batch: PackedBatch) -> tuple[Tensor, list[Tensor]]:
        mask = batch.seq_idx != 2
        hidden = packed_hidden_states(model, batch)
        logits = (model.lm_head(hidden) * model.model.lm_head_multiplier)[mask]
        loss = (packed_logprobs(model, hidden, batch)[0] * batch.loss_weights)[mask].sum()
        return logits, list(torch.autograd.grad(loss, list(model.parameters())))

    logits_before, gradients_before = others(pack_row(documents))
    logits_after, gradients_after = others(pack_row(changed))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert (logits_before - logits_after).abs().max() <= tolerance
    for before, after in zip(gradients_before, gradients_after, strict=True):
        assert (before - after).abs().max() <= tolerance * max(1.0, before.abs().max().item())


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
