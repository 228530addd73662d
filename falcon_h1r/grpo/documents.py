"""Rollouts with their credit as documents to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.grpo.credit import normalise_within_group
from falcon_h1r.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class CreditedRollout:
    """What is to be known of a rollout to learn from it, small enough to send."""

    uid: str
    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    sampler_logprobs: NDArray[np.float32]  # as a packed row has them
    weight: float  # of each response token in the loss
    advantage: float
    positive: float

    def document(self) -> Document:
        """Every value on the response's tokens, 0 on the prompt's."""
        blank, length = [0.0] * len(self.prompt_ids), len(self.response_ids)
        return Document(
            input_ids=[*self.prompt_ids.tolist(), *self.response_ids.tolist()],
            loss_weights=blank + [self.weight] * length,
            advantages=blank + [self.advantage] * length,
            positives=blank + [self.positive] * length,
            sampler_logprobs=blank + self.sampler_logprobs.tolist(),
            uid=self.uid,
        )


def is_learnt_from(response_tokens: int, stop_reason: str, config: GRPOConfig) -> bool:
    """Whether a rollout has a part in the loss. All have one in their group's mean.

    Nothing can be learnt from an empty response. With `truncated: mask` those that the limit cut off have no part
    either (DAPO's overlong filtering, arXiv 2503.14476). Both still count among the batch's rollouts.
    """
    return response_tokens > 0 and not (config.truncated == "mask" and stop_reason == "length")


def credit_rollouts(
    groups: Sequence[RolloutGroup], config: GRPOConfig, batch_rewards: Tensor | None = None
) -> list[CreditedRollout | None]:
    """Every rollout of these groups with its credit, in order; None where it is not learnt from.

    A response token weighs 1/length (`sequence`), 1 (`token`) or 1/limits.response_tokens (`constant`).

    Args:
        batch_rewards: (P, G), of all groups of the batch on all ranks; None: these are all.
    """
    if not groups:
        return []
    rewards = torch.tensor([group.rewards for group in groups])
    advantages = normalise_within_group(rewards, config.loss.advantage_scale, batch_rewards)  # (P, G)
    credited: list[CreditedRollout | None] = []
    for group, group_advantages in zip(groups, advantages.tolist(), strict=True):
        for rollout, advantage, verdict in zip(group.rollouts, group_advantages, group.verdicts, strict=True):
            length = len(rollout.response_ids)
            if not is_learnt_from(length, rollout.stop_reason, config):
                credited.append(None)
                continue
            credited.append(
                CreditedRollout(
                    uid=f"{rollout.problem_uid}/{rollout.sample_index}",
                    prompt_ids=np.asarray(rollout.prompt_ids, np.int32),
                    response_ids=np.asarray(rollout.response_ids, np.int32),
                    sampler_logprobs=np.asarray(rollout.sampler_logprobs, np.float32),
                    weight=_token_weight(length, config),
                    advantage=advantage,
                    positive=float(verdict.correct),
                )
            )
    return credited


def _token_weight(length: int, config: GRPOConfig) -> float:
    weights = {"sequence": 1.0 / length, "token": 1.0, "constant": 1.0 / config.limits.response_tokens}
    return weights[config.loss.aggregation]
