"""Logprobs of a packed row equal the naive ones."""

from __future__ import annotations

import torch

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs, token_logprobs


def test_a_row_equals_the_whole_softmax_in_values_and_gradients(tiny_model, random_documents) -> None:
    batch = pack_row(random_documents([30, 12, 25]))
    hidden = packed_hidden_states(tiny_model, batch).detach().requires_grad_()
    logits = tiny_model.lm_head(hidden[:-1]) * tiny_model.model.lm_head_multiplier / 0.7
    naive = torch.log_softmax(logits, -1)
    expected = naive.gather(1, batch.input_ids[1:, None]).squeeze(1)
    expected = torch.cat([expected.new_zeros(1), expected]) * (batch.loss_weights != 0)
    expected_entropy = torch.cat([naive.new_zeros(1), -(naive.exp() * naive).sum(-1)]) * (batch.loss_weights != 0)
    weights = [hidden, tiny_model.lm_head.weight]
    expected_loss = ((expected + 0.3 * expected_entropy) * batch.loss_weights).sum()
    expected_gradients = torch.autograd.grad(expected_loss, weights)

    logprobs, entropies = packed_logprobs(tiny_model, hidden, batch, temperature=0.7)
    assert torch.allclose(logprobs, expected, atol=1e-12)
    assert torch.allclose(entropies, expected_entropy, atol=1e-12)
    gradients = torch.autograd.grad(((logprobs + 0.3 * entropies) * batch.loss_weights).sum(), weights)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected_gradient, atol=1e-11)


def test_a_row_in_parts_has_the_logprobs_of_the_whole(tiny_model, random_documents) -> None:
    """As the ranks of a sequence-parallel group have it: hidden states here, their targets beside them."""
    batch = pack_row(random_documents([30, 12, 25]))
    hidden = packed_hidden_states(tiny_model, batch).detach()
    logprobs, entropies = packed_logprobs(tiny_model, hidden, batch, temperature=0.7)
    targets = batch.input_ids.roll(-1)
    parts = [
        token_logprobs(tiny_model, hidden[part], targets[part], temperature=0.7)
        for part in (slice(0, 33), slice(33, 66))
    ]
    weighted = batch.loss_weights[1:] != 0
    for whole, pieces in zip((logprobs, entropies), zip(*parts, strict=True), strict=True):
        assert torch.allclose(torch.cat(pieces)[weighted], whole[1:][weighted], atol=1e-12)


def test_entropies_of_tokens_carry_a_gradient(tiny_model, random_documents) -> None:
    batch = pack_row(random_documents([20]))
    hidden = packed_hidden_states(tiny_model, batch).detach().requires_grad_()
    _, entropies = token_logprobs(tiny_model, hidden[:-1], batch.input_ids[1:])
    gradient = torch.autograd.grad(entropies.sum(), hidden)[0]
    assert gradient[:-1].any(dim=1).all()


def test_a_row_without_targets_has_a_gradient_of_zero(tiny_model) -> None:
    batch = pack_row([Document([3, 4], [0.0, 0.0])])
    logprobs, _ = packed_logprobs(tiny_model, packed_hidden_states(tiny_model, batch), batch)
    logprobs.sum().backward()
    gradients = {name: parameter.grad for name, parameter in tiny_model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert not any(gradient.any() for gradient in gradients.values() if gradient is not None)
