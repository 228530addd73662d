"""The GRPO objective on a packed row, as a pure function. Its terms are in falcon_h1r.grpo.objectives.

    loss = - sum_t w_t c_t s_t / D                          the surrogate s_t: clip, gspo or cispo
           + kl_coefficient * sum_t w_t KL_t / D            of the policy to the reference
           - cross_entropy_weight * sum over correct rollouts of policy_t / their tokens
           - entropy_coefficient * sum_t H_t / tokens

over the response tokens of a step, on all ranks and micro-batches. c_t is the truncated importance weight of the
sampler. Weights and D make the aggregation:

    sequence   w = 1 / |rollout|     D = rollouts        every rollout counts the same (the Falcon-H1R report)
    token      w = 1                 D = tokens          every token does (DAPO, arXiv 2503.14476)
    constant   w = 1 / max length    D = rollouts        Dr. GRPO (arXiv 2503.20783): no length in the denominator

Rollouts that are masked, by weights of 0, stay in the number of rollouts and leave the number of tokens, as in TRL: a
batch of truncated rollouts makes a small step, not a few rollouts a large one. The cross-entropy on positives is VAPO's
(arXiv 2504.05118). The entropy's mean is over tokens in every aggregation, as in TRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falcon_h1r.config_grpo import GRPOLossConfig
from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.grpo.objectives import (
    Surrogate,
    cispo_surrogate,
    clipped_surrogate,
    kl_estimate,
    reference_kl,
    response_log_ratio,
    truncated_importance,
)


@dataclass(frozen=True, slots=True)
class Denominators:
    """What the terms are divided by: sums over all tokens of all ranks and micro-batches of a step."""

    rollouts: float  # masked ones included
    tokens: float  # of responses that carry a loss
    positive_tokens: float

    def of_surrogate(self, aggregation: str) -> float:
        """D of the module's docstring; 1 where the step has nothing to sum."""
        return (self.tokens if aggregation == "token" else self.rollouts) or 1.0


def loss_denominators(rows: Sequence[PackedBatch]) -> list[float]:
    """This rank's part of `Denominators`, in its order; to be summed over ranks before the first backward."""
    return [
        float(sum(uid != "" for row in rows for uid in row.uids)),  # a row's tail is nobody's
        float(sum(row.loss_weights.count_nonzero().item() for row in rows)),
        sum(row.positives[row.loss_weights != 0].sum().item() for row in rows if row.positives is not None),
    ]


def grpo_loss(
    policy_logprobs: Tensor,
    entropies: Tensor,
    batch: PackedBatch,
    denominators: Denominators,
    config: GRPOLossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """This row's part of the step's loss, and sums over its tokens for the log.

    A sampler's logprob that is not finite says nothing of what it drew: the token has no part in the surrogate, and is
    counted (`unscored`). It stays in the denominators. (TRL gives a token whose logprob is NaN the weight 1.)

    Args:
        policy_logprobs: (T), with gradient. Where the batch holds no `old_policy_logprobs` they are their own old
            ones: one update a batch, rho = 1 in value and a gradient all the same.
        entropies: (T), with gradient where `entropy_coefficient` > 0.

    Returns:
        The loss, a scalar, and detached sums over response tokens, with the loss's terms beside them (`*_loss`).
    """
    assert batch.advantages is not None and batch.sampler_logprobs is not None and batch.positives is not None
    response = batch.loss_weights != 0
    weights = batch.loss_weights.to(policy_logprobs.dtype) / denominators.of_surrogate(config.aggregation)
    old_logprobs = batch.old_policy_logprobs if batch.old_policy_logprobs is not None else policy_logprobs.detach()
    scored = response & batch.sampler_logprobs.isfinite()
    sampler_gap = torch.where(scored, old_logprobs - batch.sampler_logprobs, 0.0)
    importance = torch.where(scored, truncated_importance(sampler_gap, config.importance_cap), 0.0)
    log_ratio = torch.where(response, policy_logprobs - old_logprobs, 0.0)
    if config.objective == "gspo":
        log_ratio = response_log_ratio(log_ratio, response, batch.lengths)
    surrogate = _surrogate(policy_logprobs, log_ratio, batch.advantages.to(policy_logprobs.dtype), config)

    terms = {"surrogate_loss": -(weights * importance * surrogate.values).sum()}
    stats: dict[str, Tensor] = {}
    if config.kl_coefficient > 0:
        assert batch.reference_logprobs is not None
        kl = torch.where(response, reference_kl(policy_logprobs, batch.reference_logprobs, log_ratio), 0.0)
        terms["kl_loss"] = config.kl_coefficient * (weights * kl).sum()
        stats["reference_kl"] = kl.detach().sum()
    if config.cross_entropy_weight > 0:
        likelihood = torch.where(response, policy_logprobs * batch.positives, 0.0).sum()
        terms["cross_entropy_loss"] = -config.cross_entropy_weight * likelihood / (denominators.positive_tokens or 1.0)
    if config.entropy_coefficient > 0:
        terms["entropy_loss"] = -config.entropy_coefficient * entropies.sum() / (denominators.tokens or 1.0)
    loss = torch.stack(list(terms.values())).sum()

    with torch.no_grad():
        stats |= {
            "tokens": response.sum(),
            "entropy": entropies.sum(),
            "clipped_low": (response & surrogate.is_clipped_low).sum(),
            "clipped_high": (response & surrogate.is_clipped_high).sum(),
            "importance_ratio": importance.sum(),
            "capped": (scored & (sampler_gap.exp() > config.importance_cap)).sum(),
            "sampler_kl": kl_estimate(sampler_gap).sum(),  # of KL(sampler || trainer): d = old - sampler
            "unscored": (response & ~scored).sum(),
            "loss": loss,
            **terms,
        }
    return loss, {name: value.detach() for name, value in stats.items()}


def _surrogate(policy_logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, config: GRPOLossConfig) -> Surrogate:
    """What the config's objective maximises, at each token."""
    if config.objective == "cispo":
        return cispo_surrogate(policy_logprobs, log_ratio, advantages, config.cispo_cap)
    return clipped_surrogate(log_ratio, advantages, config.clip_low, config.clip_high)
