"""Credit within a group: how much better than its siblings a rollout was."""

from __future__ import annotations

from torch import Tensor

STD_EPSILON = 1e-4


def normalise_within_group(rewards: Tensor, scale: str = "group", batch_rewards: Tensor | None = None) -> Tensor:
    """Advantages A = (R - mean) / (std + 1e-4), over each problem's rollouts: (P, G) -> (P, G).

    The GRPO advantage (Shao et al. 2024, arXiv 2402.03300, section 4.1). A standard deviation of n rewards has n - 1
    degrees of freedom and the epsilon is added outside the root, both as in TRL. A group of equal rewards gets zeros.

        group   std of the group's own rewards
        batch   std of all rewards of the batch (Liu et al. 2025, arXiv 2508.08221): groups with little contrast
                are not blown up
        none    A = R - mean (Dr. GRPO, arXiv 2503.20783): an easy or a hard problem weighs no more than others

    Args:
        batch_rewards: any shape, the rewards that `batch` takes its deviation over; None: these.
    """
    assert scale in ("group", "batch", "none")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    if scale == "group":
        return centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)
    return centred / ((rewards if batch_rewards is None else batch_rewards).std() + STD_EPSILON)
