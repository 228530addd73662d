"""The terms of the RL objectives, as pure functions of logprobs: (T) in, (T) out.

For token t of rollout i: rho_t = exp(policy_t - old_t), the ratio that is bounded; A_i the rollout's advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """What is maximised, and where its bounds hold; (T) each."""

    values: Tensor
    is_clipped_low: Tensor  # the ratio is below its lower bound and the advantage would push it further down
    is_clipped_high: Tensor  # likewise above its upper bound


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    """s_t = min(rho_t A_i, clip(rho_t, 1 - low, 1 + high) A_i).

    PPO's surrogate (arXiv 1707.06347) with an upper bound of its own, "clip-higher" (DAPO, arXiv 2503.14476, eq. 8).
    With GSPO's ratio in place of rho it is GSPO's.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return Surrogate(
        torch.minimum(ratio * advantages, clipped * advantages),
        (ratio < 1.0 - clip_low) & (advantages < 0),
        (ratio > 1.0 + clip_high) & (advantages > 0),
    )


def response_log_ratio(log_ratio: Tensor, response: Tensor, lengths: Sequence[int]) -> Tensor:
    """log s_i = mean of log rho_t over the response of rollout i, at each of its document's tokens.

    GSPO's ratio of whole responses, to the power 1 / |response| (arXiv 2507.18071, eq. 7). The paper's old policy is
    the one that sampled; ours is the trainer's before the update, and the sampler's difference to it is in the
    importance weight, per token, as TRL has it.

    Args:
        log_ratio: (T), with gradient.
        response: (T), whether a token belongs to a response.
        lengths: of the row's documents, in order.
    """
    parts = zip(log_ratio.split(list(lengths)), response.split(list(lengths)), strict=True)
    means = [torch.where(own, ratios, 0.0).sum() / own.sum().clamp(min=1) for ratios, own in parts]
    return torch.cat([mean.expand(length) for mean, length in zip(means, lengths, strict=True)])


def cispo_surrogate(policy_logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, cap: float) -> Surrogate:
    """s_t = sg(min(rho_t, cap)) A_i policy_t, sg: without gradient.

    CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): every token keeps its gradient, the ratio is a bounded weight of
    it. As there, and in TRL, no lower bound; a cap far above 1 (TRL's documentation names 5, of arXiv 2510.13786).
    """
    ratio = log_ratio.detach().exp()
    values = ratio.clamp(max=cap) * advantages * policy_logprobs
    return Surrogate(values, torch.zeros_like(ratio, dtype=torch.bool), ratio > cap)


def truncated_importance(sampler_gap: Tensor, cap: float) -> Tensor:
    """c_t = min(exp(old_t - sampler_t), cap), without gradient: what the sampler drew, weighed as the trainer's own.

    Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"), per token. Where rollouts are of older policies, c_t corrects for their age as well as for the sampler's
    numerics, and rho_t bounds the step from `old` on: the decoupled objective of AReaL (arXiv 2505.24298, eq. 5).

    Args:
        sampler_gap: (T), old - sampler logprobs.
    """
    return sampler_gap.detach().exp().clamp(max=cap)


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """k3 = e^d - d - 1 >= 0 (Schulman 2020, "Approximating KL divergence").

    Its mean over samples of q, with d = log p - log q, is KL(q || p).
    """
    return log_ratio.expm1() - log_ratio


def reference_kl(policy_logprobs: Tensor, reference_logprobs: Tensor, log_ratio: Tensor) -> Tensor:
    """rho_t k3_t with d = reference - policy: KL(policy || reference) from tokens that the old policy drew.

    GRPO's estimate (arXiv 2402.03300, eq. 4) with the ratio of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1), as TRL
    has both. The ratio matters at rho = 1, too: with it, the gradient is -d times that of the policy's logprob, whose
    mean is the gradient of the KL. k3 alone has 1 - e^d in that place, the gradient of KL(reference || policy).
    """
    return log_ratio.exp() * kl_estimate(reference_logprobs - policy_logprobs)
