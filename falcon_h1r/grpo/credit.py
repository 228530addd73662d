"""Credit within a group: how much better than its siblings a rollout was."""

from __future__ import annotations

from torch import Tensor

STD_EPSILON = 1e-4


def normalise_within_group(rewards: Tensor) -> Tensor:
    """Advantages A = (R - mean) / (std + 1e-4), over each problem's rollouts: (P, G) -> (P, G).

    The GRPO advantage (Shao et al. 2024, arXiv 2402.03300, section 4.1). The standard deviation has G - 1 degrees
    of freedom and the epsilon is added outside the root, both as in TRL. A group of equal rewards gets zeros.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)
