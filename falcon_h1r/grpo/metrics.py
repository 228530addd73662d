"""What is known of a step's rollouts: a few facts of each, which ranks exchange, and numbers for the log from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from falcon_h1r.types import RolloutGroup
from falcon_h1r.verifier import count_boxed


@dataclass(frozen=True, slots=True)
class RolloutFacts:
    """Of one rollout, without its tokens."""

    reward: float
    parts: dict[str, float]  # what the reward is summed from
    status: str  # of the verdict
    response_tokens: int
    stop_reason: str
    num_boxes: int  # after </think>


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """Of one group."""

    problem_uid: str
    family: str
    has_contrast: bool
    rollouts: tuple[RolloutFacts, ...]  # (G)


def group_facts(group: RolloutGroup) -> GroupFacts:
    """What other ranks are told of a group."""
    rollouts = tuple(
        RolloutFacts(
            reward=reward,
            parts=parts,
            status=verdict.status,
            response_tokens=len(rollout.response_ids),
            stop_reason=rollout.stop_reason,
            num_boxes=count_boxed(rollout.text, after_think=True),
        )
        for rollout, reward, parts, verdict in zip(
            group.rollouts, group.rewards, group.parts, group.verdicts, strict=True
        )
    )
    return GroupFacts(group.problem.uid, group.problem.family, group.has_contrast, rollouts)


def rollout_metrics(drawn: Sequence[GroupFacts]) -> dict[str, float]:
    """What was sampled, over all groups drawn: those without contrast count in every average."""
    rollouts = [rollout for group in drawn for rollout in group.rollouts]
    lengths = [rollout.response_tokens for rollout in rollouts]

    def share(of: Sequence[bool]) -> float:
        return sum(of) / len(of)

    return {
        "reward_mean": sum(rollout.reward for rollout in rollouts) / len(rollouts),
        "pass_at_1": share([rollout.status == "correct" for rollout in rollouts]),
        "pass_at_group": share([any(r.status == "correct" for r in group.rollouts) for group in drawn]),
        "several_boxes_share": share([rollout.num_boxes > 1 for rollout in rollouts]),
        "undecided_share": share([rollout.status == "undecided" for rollout in rollouts]),
        "zero_variance_share": share([not group.has_contrast for group in drawn]),
        "response_tokens_mean": sum(lengths) / len(lengths),
        "response_tokens_max": float(max(lengths)),
        "truncated_share": share([rollout.stop_reason == "length" for rollout in rollouts]),
        "sampled_tokens": float(sum(lengths)),
    }


def sample_rows(groups: Sequence[RolloutGroup], step: int) -> list[dict[str, object]]:
    """Transcripts for samples.jsonl."""
    return [
        {
            "step": step,
            "problem_uid": group.problem.uid,
            "question": group.problem.question,
            "gold": group.problem.answer,
            "family": group.problem.family,
            "sample_index": rollout.sample_index,
            "response": rollout.text,
            "reward": reward,
            "status": verdict.status,
            "stage": verdict.stage,
            "stop_reason": rollout.stop_reason,
            "response_tokens": len(rollout.response_ids),
        }
        for group in groups
        for rollout, reward, verdict in zip(group.rollouts, group.rewards, group.verdicts, strict=True)
    ]
