"""Advantages: centred in their group, scaled as asked, as TRL has them."""

from __future__ import annotations

import pytest
import torch

from falcon_h1r.grpo.credit import normalise_within_group

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])


def test_advantages_are_centred_and_scaled_within_their_group() -> None:
    advantages = normalise_within_group(REWARDS)
    # means 1/2 and 3/4; standard deviations with three degrees of freedom, sqrt(1/3) and 1/2
    scale = 1 / (3**-0.5 + 1e-4)
    assert advantages[0].tolist() == pytest.approx([0.5 * scale, -0.5 * scale, -0.5 * scale, 0.5 * scale])
    assert advantages[1].tolist() == pytest.approx([0.25 / 0.5001] * 3 + [-0.75 / 0.5001])
    assert advantages[2].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert advantages[:2].sum(1).abs().max() < 1e-6


def test_without_a_scale_advantages_are_differences_of_rewards() -> None:
    assert normalise_within_group(REWARDS, "none")[1].tolist() == [0.25, 0.25, 0.25, -0.75]


def test_the_batch_has_one_deviation_also_of_rewards_that_are_not_learnt_from() -> None:
    own = normalise_within_group(REWARDS, "batch")
    deviation = torch.tensor([1.0] * 9 + [0.0] * 3).std().item()
    assert own[1].tolist() == pytest.approx([0.25 / (deviation + 1e-4)] * 3 + [-0.75 / (deviation + 1e-4)])
    kept = normalise_within_group(REWARDS[:2], "batch", batch_rewards=REWARDS)
    assert torch.equal(kept, own[:2])
    assert not torch.allclose(normalise_within_group(REWARDS[:2], "batch"), own[:2], atol=1e-3)
