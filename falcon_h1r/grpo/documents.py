"""Rollouts with their credit as documents to learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.grpo.credit import normalise_within_group
from falcon_h1r.types import RolloutGroup


def rollout_documents(groups: Sequence[RolloutGroup], config: GRPOConfig) -> list[Document]:
    """Groups with their credit as documents: weights 1/length (`sequence`) or 1 (`token`) on response tokens."""
    advantages = normalise_within_group(torch.tensor([group.rewards for group in groups]))  # (P, G)
    documents = []
    for group, group_advantages in zip(groups, advantages.tolist(), strict=True):
        credits = zip(group.rollouts, group_advantages, group.verdicts, strict=True)
        for rollout, advantage, verdict in credits:
            length = len(rollout.response_ids)
            weight = 1.0 / length if config.loss.aggregation == "sequence" else 1.0
            blank = [0.0] * len(rollout.prompt_ids)
            documents.append(
                Document(
                    input_ids=rollout.prompt_ids + rollout.response_ids,
                    loss_weights=blank + [weight] * length,
                    advantages=blank + [advantage] * length,
                    positives=blank + [float(verdict.correct)] * length,
                    sampler_logprobs=blank + rollout.sampler_logprobs,
                    uid=f"{rollout.problem_uid}/{rollout.sample_index}",
                )
            )
    return documents
