"""The GRPO objective against its formula, TRL's advantages, and its own denominators."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from falcon_h1r.config_grpo import GRPOLossConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_row
from falcon_h1r.grpo.credit import normalise_within_group
from falcon_h1r.grpo.losses import Denominators, grpo_loss, loss_denominators

PROMPT = 2


def rollout_row(advantages: list[float], lengths: list[int], aggregation: str = "sequence") -> PackedBatch:
    documents = []
    for advantage, length in zip(advantages, lengths, strict=True):
        weight = 1 / length if aggregation == "sequence" else 1.0
        documents.append(
            Document(
                input_ids=[1] * (PROMPT + length),
                loss_weights=[0.0] * PROMPT + [weight] * length,
                advantages=[0.0] * PROMPT + [advantage] * length,
                positives=[0.0] * PROMPT + [float(advantage > 0.5)] * length,
                sampler_logprobs=[0.0] * PROMPT + [-1.0] * length,
            )
        )
    return pack_row(documents)


def literal_loss(policy: torch.Tensor, old: torch.Tensor, row: PackedBatch, config: GRPOLossConfig) -> float:
    """The formula of the module's docstring, token by token."""
    assert row.advantages is not None and row.sampler_logprobs is not None and row.positives is not None
    surrogate = weights = positives = likelihood = 0.0
    for t in range(row.num_tokens):
        weight, advantage = row.loss_weights[t].item(), row.advantages[t].item()
        if weight == 0:
            continue
        rho = math.exp(policy[t].item() - old[t].item())
        clipped = min(max(rho, 1 - config.clip_low), 1 + config.clip_high)
        correction = min(math.exp(old[t].item() - row.sampler_logprobs[t].item()), config.importance_cap)
        surrogate += weight * correction * min(rho * advantage, clipped * advantage)
        weights += weight
        if row.positives[t].item() == 1.0:
            positives += 1
            likelihood += policy[t].item()
    return -surrogate / weights - config.cross_entropy_weight * likelihood / positives


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_loss_equals_the_formula_token_by_token(aggregation: str) -> None:
    row = rollout_row([1.2, -0.7, 0.4], [3, 8, 5], aggregation)
    generator = torch.Generator().manual_seed(0)
    policy = -torch.rand(row.num_tokens, generator=generator, dtype=torch.float64) * 2
    old = policy + 0.4 * torch.randn(row.num_tokens, generator=generator, dtype=torch.float64)
    row = dataclasses.replace(row, old_policy_logprobs=old)
    config = GRPOLossConfig(cross_entropy_weight=0.1)
    loss, stats = grpo_loss(policy, row, Denominators(*loss_denominators([row])), config)
    assert loss.item() == pytest.approx(literal_loss(policy, old, row, config), rel=1e-6)
    assert stats["tokens"].item() == 16
    assert 0 < stats["clipped"].item() < 16


def test_with_one_update_a_batch_the_gradient_is_the_policy_gradient() -> None:
    row = rollout_row([1.0, -1.0], [2, 4])
    policy = torch.full((row.num_tokens,), -1.0, dtype=torch.float64, requires_grad=True)
    loss, _ = grpo_loss(policy, row, Denominators(*loss_denominators([row])), GRPOLossConfig())
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient.tolist() == pytest.approx([0, 0, -0.25, -0.25, 0, 0, 0.125, 0.125, 0.125, 0.125], abs=1e-7)


def test_splitting_a_batch_over_rows_changes_no_loss() -> None:
    config = GRPOLossConfig(cross_entropy_weight=0.3)
    whole = rollout_row([1.0, -1.0, 0.5], [2, 4, 7])
    parts = [rollout_row([1.0], [2]), rollout_row([-1.0, 0.5], [4, 7])]
    sums = [sum(column) for column in zip(*(loss_denominators([part]) for part in parts), strict=True)]
    assert sums == pytest.approx(loss_denominators([whole]))

    def loss_of(row: PackedBatch) -> float:
        policy = torch.full((row.num_tokens,), -0.7, dtype=torch.float64)
        return grpo_loss(policy, row, Denominators(*sums), config)[0].item()

    assert sum(loss_of(part) for part in parts) == pytest.approx(loss_of(whole), rel=1e-9)


def test_the_importance_weight_is_capped_and_carries_no_gradient() -> None:
    row = rollout_row([1.0], [1])
    policy = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)  # exp(3 - (-1)) is far above 2
    loss, stats = grpo_loss(policy, row, Denominators(1.0, 1.0), GRPOLossConfig(importance_cap=2.0))
    assert loss.item() == -2.0
    assert stats["importance_ratio"].item() == 2.0
    assert torch.autograd.grad(loss, policy)[0].tolist() == [0.0, 0.0, -2.0]


def test_advantages_are_centred_and_scaled_within_their_group() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    advantages = normalise_within_group(rewards)
    # means 1/2 and 3/4; standard deviations with three degrees of freedom, sqrt(1/3) and 1/2
    scale = 1 / (3**-0.5 + 1e-4)
    assert advantages[0].tolist() == pytest.approx([0.5 * scale, -0.5 * scale, -0.5 * scale, 0.5 * scale])
    assert advantages[1].tolist() == pytest.approx([0.25 / 0.5001] * 3 + [-0.75 / 0.5001])
    assert advantages[2].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert advantages[:2].sum(1).abs().max() < 1e-6
