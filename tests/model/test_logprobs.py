"""Chunked logprobs equal the naive ones."""

from __future__ import annotations

import torch

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model import logprobs as logprobs_module
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs


def test_chunks_equal_the_whole_softmax_in_values_and_gradients(tiny_model, random_documents, monkeypatch) -> None:
    batch = pack_row(random_documents([30, 12, 25]))
    hidden = packed_hidden_states(tiny_model, batch).detach().requires_grad_()
    logits = tiny_model.lm_head(hidden[:-1]) * tiny_model.model.lm_head_multiplier / 0.7
    naive = torch.log_softmax(logits, -1)
    expected = naive.gather(1, batch.input_ids[1:, None]).squeeze(1)
    expected = torch.cat([expected.new_zeros(1), expected]) * (batch.loss_weights != 0)
    expected_entropy = torch.cat([naive.new_zeros(1), -(naive.exp() * naive).sum(-1)]) * (batch.loss_weights != 0)
    weights = [hidden, tiny_model.lm_head.weight]
    expected_gradients = torch.autograd.grad((expected * batch.loss_weights).sum(), weights)

    monkeypatch.setattr(logprobs_module, "CHUNK_LOGITS", 10 * tiny_model.config.vocab_size)
    chunked, entropies = packed_logprobs(tiny_model, hidden, batch, temperature=0.7)
    assert torch.allclose(chunked, expected, atol=1e-12)
    assert torch.allclose(entropies, expected_entropy, atol=1e-12)
    gradients = torch.autograd.grad((chunked * batch.loss_weights).sum(), weights)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected_gradient, atol=1e-11)


def test_a_row_without_targets_has_a_gradient_of_zero(tiny_model) -> None:
    batch = pack_row([Document([3, 4], [0.0, 0.0])])
    logprobs, _ = packed_logprobs(tiny_model, packed_hidden_states(tiny_model, batch), batch)
    logprobs.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in tiny_model.parameters())
    assert tiny_model.model.layers[0].mamba.A_log.grad is not None
