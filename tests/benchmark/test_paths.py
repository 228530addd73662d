"""Both sides of every comparison compute the same, or the page says that one of them does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import FalconH1ForCausalLM

from falcon_h1r.benchmark import paths
from falcon_h1r.benchmark.cases import BY_DOCUMENT, LEAKING, OURS, PADDED
from falcon_h1r.data.packing import Document, PackedBatch, pack_row
from falcon_h1r.model.load import keep_full_precision


@pytest.fixture
def row(random_documents: Callable[..., list[Document]]) -> PackedBatch:
    documents = random_documents([40, 23, 5])
    return pack_row([Document(doc.input_ids, [0.0] + [1.0] * (len(doc) - 1)) for doc in documents])


@pytest.fixture
def model(tiny_model: FalconH1ForCausalLM) -> FalconH1ForCausalLM:
    """transformers' scan works in float32 whatever it is given, so the comparison does."""
    model = tiny_model.float()
    keep_full_precision(model)
    return model


def loss_and_gradient(path: str, model: FalconH1ForCausalLM, row: PackedBatch) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for compute_loss in paths.losses(path, model, row):
        loss = compute_loss()
        loss.backward()
        total += loss.item()
    return total, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("path", [BY_DOCUMENT, PADDED])
def test_transformers_right_ways_give_our_loss_and_gradient(
    path: str, model: FalconH1ForCausalLM, row: PackedBatch
) -> None:
    ours, our_gradient = loss_and_gradient(OURS, model, row)
    theirs, their_gradient = loss_and_gradient(path, model, row)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert (our_gradient - their_gradient).norm() < 1e-4 * their_gradient.norm()


def test_one_row_through_transformers_leaks(model: FalconH1ForCausalLM, row: PackedBatch) -> None:
    ours, _ = loss_and_gradient(OURS, model, row)
    leaking, _ = loss_and_gradient(LEAKING, model, row)
    assert abs(ours - leaking) > 1e-3


def test_a_mixer_is_the_same_on_both_sides(
    model: FalconH1ForCausalLM, random_documents: Callable[..., list[Document]]
) -> None:
    mixer = model.model.layers[0].mamba
    hidden = torch.randn(50, model.config.hidden_size)
    ours = paths.our_mixer(mixer, pack_row(random_documents([50])))(hidden)
    torch.testing.assert_close(ours, paths.transformers_mixer(mixer)(hidden), rtol=1e-4, atol=1e-5)


def test_a_scan_is_the_same_on_both_sides(random_documents: Callable[..., list[Document]]) -> None:
    x, dt = torch.randn(50, 4, 8), 0.1 * torch.rand(50, 4)
    B, C, D = torch.randn(50, 2, 6), torch.randn(50, 2, 6), torch.randn(4)
    tensors = (x, dt, -torch.arange(1.0, 5.0), B, C, D)
    ours = paths.our_scan(pack_row(random_documents([50])))(*tensors)
    torch.testing.assert_close(ours, paths.transformers_scan(16)(*tensors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["naive", "TRL, chunked"])
def test_logprobs_of_the_head_are_the_same(
    path: str, model: FalconH1ForCausalLM, random_documents: Callable[..., list[Document]]
) -> None:
    row = pack_row(random_documents([30]))
    hidden = torch.randn(30, model.config.hidden_size)
    ours = paths.head_logprobs(OURS, model, row)(hidden)
    theirs = paths.head_logprobs(path, model, row)(hidden)
    torch.testing.assert_close(ours[1:], theirs, rtol=1e-4, atol=1e-5)
