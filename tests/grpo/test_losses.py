"""The GRPO objective against its formulas, token by token, and its own denominators."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from falcon_h1r.config_grpo import GRPOLossConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_row, weightless_document
from falcon_h1r.grpo.losses import Denominators, grpo_loss, loss_denominators
from falcon_h1r.grpo.objectives import truncated_importance

PROMPT = 2
MAX_RESPONSE = 10
EVERYTHING = {"cross_entropy_weight": 0.3, "kl_coefficient": 0.2, "entropy_coefficient": 0.1}


def rollout_document(advantage: float, length: int, aggregation: str = "sequence", masked: bool = False) -> Document:
    weight = {"sequence": 1 / length, "token": 1.0, "constant": 1 / MAX_RESPONSE}[aggregation]
    return Document(
        input_ids=[1] * (PROMPT + length),
        loss_weights=[0.0] * PROMPT + [0.0 if masked else weight] * length,
        advantages=[0.0] * PROMPT + [advantage] * length,
        positives=[0.0] * PROMPT + [float(advantage > 0.5)] * length,
        sampler_logprobs=[0.0] * PROMPT + [-1.0] * length,
        uid=f"{advantage}/{length}",
    )


def rollout_row(advantages: list[float], lengths: list[int], aggregation: str = "sequence") -> PackedBatch:
    documents = [rollout_document(a, n, aggregation) for a, n in zip(advantages, lengths, strict=True)]
    return pack_row([*documents, weightless_document(3, documents)])


def with_random_logprobs(row: PackedBatch, seed: int = 0) -> tuple[Tensor, Tensor, PackedBatch]:
    """Policy logprobs and entropies, and the row with old and reference logprobs; 0 where the weight is 0."""
    generator = torch.Generator().manual_seed(seed)
    response = (row.loss_weights != 0).double()

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(row.num_tokens, generator=generator, dtype=torch.float64) * response

    policy = (noise(0.5) - 1) * response
    row = dataclasses.replace(row, old_policy_logprobs=policy + noise(0.4), reference_logprobs=policy + noise(0.3))
    return policy.requires_grad_(), noise(1.0).abs().requires_grad_(), row


def literal_loss(policy: Tensor, entropies: Tensor, row: PackedBatch, config: GRPOLossConfig) -> float:
    """The formulas of the docstrings, rollout by rollout and token by token."""
    fields = (row.loss_weights, row.advantages, row.sampler_logprobs, row.positives)
    weight, advantage, sampler, positive = (field.tolist() for field in fields if field is not None)
    assert row.old_policy_logprobs is not None and row.reference_logprobs is not None
    old, reference = row.old_policy_logprobs.tolist(), row.reference_logprobs.tolist()
    new, entropy = policy.tolist(), entropies.tolist()
    ends = list(itertools.accumulate(row.lengths))
    rollouts = [range(start + PROMPT, end) for start, end in zip([0, *ends], ends[:-1], strict=False)]  # no tail
    surrogate = kl = likelihood = 0.0
    for tokens in rollouts:
        mean_ratio = math.exp(sum(new[t] - old[t] for t in tokens) / len(tokens))
        for t in tokens:
            rho = mean_ratio if config.objective == "gspo" else math.exp(new[t] - old[t])
            bounded = min(max(rho, 1 - config.clip_low), 1 + config.clip_high)
            value = min(rho * advantage[t], bounded * advantage[t])
            if config.objective == "cispo":
                value = min(rho, config.cispo_cap) * advantage[t] * new[t]
            surrogate += weight[t] * min(math.exp(old[t] - sampler[t]), config.importance_cap) * value
            gap = reference[t] - new[t]
            rho = mean_ratio if config.objective == "gspo" else math.exp(new[t] - old[t])
            kl += weight[t] * rho * (math.exp(gap) - gap - 1)
            likelihood += positive[t] * new[t]
    num_tokens = sum(map(len, rollouts))
    divisor = num_tokens if config.aggregation == "token" else len(rollouts)
    return (
        -surrogate / divisor
        + config.kl_coefficient * kl / divisor
        - config.cross_entropy_weight * likelihood / sum(positive)
        - config.entropy_coefficient * sum(entropy) / num_tokens
    )


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_loss_equals_the_formula_token_by_token(objective: str, aggregation: str) -> None:
    policy, entropies, row = with_random_logprobs(rollout_row([1.2, -0.7, 0.4], [3, 8, 5], aggregation), seed=1)
    config = GRPOLossConfig(
        objective=objective, aggregation=aggregation, cispo_cap=1.4, clip_low=0.02, clip_high=0.03, **EVERYTHING
    )
    loss, stats = grpo_loss(policy, entropies, row, Denominators(*loss_denominators([row])), config)
    assert loss.item() == pytest.approx(literal_loss(policy, entropies, row, config), rel=1e-6)
    assert stats["tokens"].item() == 16
    assert 0 < stats["clipped_high"].item() + stats["clipped_low"].item() < 16
    assert sum(stats[f"{name}_loss"].item() for name in ("surrogate", "kl", "cross_entropy", "entropy")) == (
        pytest.approx(loss.item())
    )


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo"])
def test_the_gradient_is_that_of_the_formula_by_finite_differences(objective: str) -> None:
    policy, entropies, row = with_random_logprobs(rollout_row([1.2, -0.7], [3, 5]))
    config = GRPOLossConfig(objective=objective, **EVERYTHING)
    denominators = Denominators(*loss_denominators([row]))
    found = torch.autograd.grad(grpo_loss(policy, entropies, row, denominators, config)[0], policy)[0]
    old_policy = policy.detach().clone()

    def value(moved: Tensor) -> float:
        loss = grpo_loss(moved, entropies, row, denominators, config)[0].item()
        if objective != "cispo":
            return loss
        # its ratio is a constant: what the moved ratio adds is taken back
        assert row.advantages is not None and row.sampler_logprobs is not None and row.old_policy_logprobs is not None
        importance = (row.old_policy_logprobs - row.sampler_logprobs).exp().clamp(max=config.importance_cap)
        bound = [(p - row.old_policy_logprobs).exp().clamp(max=config.cispo_cap) for p in (moved, old_policy)]
        extra = row.loss_weights * importance * (bound[0] - bound[1]) * row.advantages * moved
        return loss + extra.sum().item() / denominators.rollouts

    for t in (row.loss_weights != 0).nonzero().flatten().tolist():
        step = torch.zeros_like(old_policy)
        step[t] = 1e-6
        slope = (value(old_policy + step) - value(old_policy - step)) / 2e-6
        assert found[t].item() == pytest.approx(slope, abs=2e-7)
    assert not found[row.loss_weights == 0].any()


def test_with_one_update_a_batch_the_gradient_is_the_policy_gradient() -> None:
    row = rollout_row([1.0, -1.0], [2, 4])
    expected = [0, 0, -0.25, -0.25, 0, 0, 0.125, 0.125, 0.125, 0.125, 0, 0, 0]
    for objective in ("clip", "cispo", "gspo"):
        policy = torch.full((row.num_tokens,), -1.0, dtype=torch.float64, requires_grad=True)
        config = GRPOLossConfig(objective=objective)
        loss, _ = grpo_loss(policy, torch.zeros(13), row, Denominators(*loss_denominators([row])), config)
        (gradient,) = torch.autograd.grad(loss, policy)
        assert gradient.tolist() == pytest.approx(expected, abs=1e-7), objective


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_splitting_a_batch_over_rows_changes_no_loss_and_no_gradient(objective: str, aggregation: str) -> None:
    config = GRPOLossConfig(objective=objective, aggregation=aggregation, **EVERYTHING)
    documents = [rollout_document(a, n, aggregation) for a, n in ((1.0, 2), (-1.0, 4), (0.7, 7))]
    policy, entropies, whole = with_random_logprobs(pack_row(documents))
    denominators = Denominators(*loss_denominators([whole]))
    loss, stats = grpo_loss(policy, entropies, whole, denominators, config)
    gradient = torch.autograd.grad(loss, policy)[0]

    parts = [pack_row(documents[:1]), pack_row(documents[1:])]
    sums = [sum(column) for column in zip(*(loss_denominators([part]) for part in parts), strict=True)]
    assert sums == pytest.approx(loss_denominators([whole]))
    total, totals, gradients = 0.0, dict.fromkeys(stats, 0.0), []
    for part, cut in zip(parts, (slice(0, 4), slice(4, None)), strict=True):
        assert whole.old_policy_logprobs is not None and whole.reference_logprobs is not None
        part = dataclasses.replace(
            part, old_policy_logprobs=whole.old_policy_logprobs[cut], reference_logprobs=whole.reference_logprobs[cut]
        )
        own = policy.detach()[cut].requires_grad_()
        part_loss, part_stats = grpo_loss(own, entropies[cut], part, denominators, config)
        total += part_loss.item()
        totals = {name: totals[name] + value.item() for name, value in part_stats.items()}
        gradients.append(torch.autograd.grad(part_loss, own)[0])
    assert total == pytest.approx(loss.item(), rel=1e-12)
    assert totals == pytest.approx({name: value.item() for name, value in stats.items()}, rel=1e-12)
    assert torch.allclose(torch.cat(gradients), gradient, rtol=1e-12, atol=1e-14)


def test_the_importance_weight_is_capped_counted_and_carries_no_gradient() -> None:
    row = pack_row([rollout_document(1.0, 1)])
    policy = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)  # exp(3 - (-1)) is far above 2
    config = GRPOLossConfig(importance_cap=2.0)
    loss, stats = grpo_loss(policy, torch.zeros(3), row, Denominators(1.0, 1.0, 1.0), config)
    assert loss.item() == -2.0
    assert stats["importance_ratio"].item() == 2.0
    assert stats["capped"].item() == 1
    assert torch.autograd.grad(loss, policy)[0].tolist() == [0.0, 0.0, -2.0]


def test_an_importance_weight_is_a_constant_whatever_it_is_made_from() -> None:
    gap = torch.tensor([0.0, 5.0, -1.0], requires_grad=True)
    weights = truncated_importance(gap, cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weights.requires_grad


@pytest.mark.parametrize("unknown", [math.nan, -math.inf, math.inf])
def test_a_token_without_a_sampler_logprob_is_counted_and_left_out(unknown: float) -> None:
    row = rollout_row([1.0, -1.0], [2, 4])
    assert row.sampler_logprobs is not None
    row.sampler_logprobs[3] = unknown
    policy = torch.full((row.num_tokens,), -1.0, dtype=torch.float64, requires_grad=True)
    loss, stats = grpo_loss(policy, torch.zeros(13), row, Denominators(*loss_denominators([row])), GRPOLossConfig())
    gradient = torch.autograd.grad(loss, policy)[0].tolist()
    assert gradient == pytest.approx([0, 0, -0.25, 0, 0, 0, 0.125, 0.125, 0.125, 0.125, 0, 0, 0], abs=1e-7)
    assert stats["unscored"].item() == 1
    assert stats["sampler_kl"].item() == 0
    assert all(value.isfinite() for value in stats.values())


def test_masked_rollouts_stay_in_the_number_of_rollouts_and_leave_that_of_tokens() -> None:
    documents = [rollout_document(1.0, 2), rollout_document(0.7, 4, masked=True)]
    row = pack_row([*documents, weightless_document(5, documents)])
    assert Denominators(*loss_denominators([row])) == Denominators(rollouts=2, tokens=2, positive_tokens=2)


def test_cispo_keeps_the_gradient_that_clipping_takes_away() -> None:
    row = pack_row([rollout_document(1.0, 1)])
    row = dataclasses.replace(row, old_policy_logprobs=torch.tensor([0.0, 0.0, -2.0]))
    policy = torch.tensor([0.0, 0.0, -0.5], dtype=torch.float64, requires_grad=True)  # rho = e^1.5 = 4.5
    gradients = {}
    for objective in ("clip", "cispo"):
        config = GRPOLossConfig(objective=objective, importance_cap=1.0, cispo_cap=3.0)
        row.sampler_logprobs[2] = -2.0  # type: ignore[index]
        loss, _ = grpo_loss(policy, torch.zeros(3), row, Denominators(1.0, 1.0, 1.0), config)
        gradients[objective] = torch.autograd.grad(loss, policy)[0][2].item()
    assert gradients == {"clip": 0.0, "cispo": -3.0}
