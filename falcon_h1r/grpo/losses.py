"""The GRPO objective on a packed row, as a pure function.

For token t of rollout i, with A_i its advantage:

    rho_t = exp(policy_t - old_t)                                   the ratio that clipping bounds
    s_t   = min(rho_t * A_i, clip(rho_t, 1 - low, 1 + high) * A_i)  clip-higher (DAPO, arXiv 2503.14476)
    c_t   = min(exp(old_t - sampler_t), cap)                        truncated importance weight, detached

    loss  = - sum_t w_t * c_t * s_t / sum of w over the step
            - beta * sum over correct rollouts of policy_t / number of such tokens in the step

The weights w are 1 / |rollout| where every rollout counts the same (`aggregation: sequence`, as in the Falcon-H1R
report), 1 where every token does (DAPO). c_t corrects for the sampler's numerics: it is the trainer's own policy that
is improved. The second term is the cross-entropy on positives (VAPO, arXiv 2504.05118). There is no KL term and so no
reference model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_h1r.config_grpo import GRPOLossConfig
from falcon_h1r.data.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class Denominators:
    """What the two terms are divided by: sums over all tokens of all ranks and micro-batches of a step."""

    weights: float
    positive_tokens: float


def loss_denominators(rows: Sequence[PackedBatch]) -> list[float]:
    """This rank's part of `Denominators`, in its order; to be summed over ranks before the first backward."""
    return [
        sum(row.loss_weights.sum(dtype=torch.float64).item() for row in rows),
        sum(row.positives.sum(dtype=torch.float64).item() for row in rows if row.positives is not None),
    ]


def grpo_loss(
    policy_logprobs: Tensor, batch: PackedBatch, denominators: Denominators, config: GRPOLossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """This row's part of the step's loss, and sums over its tokens for the log.

    Args:
        policy_logprobs: (T), with gradient. Where the batch holds no `old_policy_logprobs` they are their own old
            ones: one update a batch, rho = 1 in value and a gradient all the same.

    Returns:
        The loss, a scalar, and detached sums: `clipped` and `sampler_kl` over response tokens,
        `importance_ratio` of the sampler's correction, `tokens`.
    """
    assert batch.advantages is not None and batch.sampler_logprobs is not None and batch.positives is not None
    response = batch.loss_weights != 0
    advantages = batch.advantages.to(policy_logprobs.dtype)
    old_logprobs = batch.old_policy_logprobs if batch.old_policy_logprobs is not None else policy_logprobs.detach()
    sampler_gap = torch.where(response, old_logprobs - batch.sampler_logprobs, 0.0)
    importance = sampler_gap.exp().clamp(max=config.importance_cap)

    ratio = torch.where(response, policy_logprobs - old_logprobs, 0.0).exp()
    clipped_ratio = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    weights = batch.loss_weights.to(policy_logprobs.dtype)
    loss = -(weights * importance * surrogate).sum() / denominators.weights
    if config.cross_entropy_weight > 0 and denominators.positive_tokens > 0:
        likelihood = (policy_logprobs * batch.positives).sum() / denominators.positive_tokens
        loss = loss - config.cross_entropy_weight * likelihood

    with torch.no_grad():
        is_clipped = response & (clipped_ratio * advantages < ratio * advantages)
        stats = {
            "tokens": response.sum(),
            "clipped": is_clipped.sum(),
            "importance_ratio": (importance * response).sum(),
            # k3 estimate of KL(sampler || trainer) (Schulman 2020): e^d - d - 1 with d = old - sampler
            "sampler_kl": torch.where(response, sampler_gap.expm1() - sampler_gap, 0.0).sum(),
        }
    return loss, stats
