"""What is known of a step's rollouts: a few facts of each, which ranks exchange, and numbers for the log from them.

docs/rewards.md has the table of the metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from falcon_h1r.grpo.rewards import is_cut, is_fault, wants_program, well_formed
from falcon_h1r.grpo.text_signals import other_script_share, repeated_ngram_share, think_fault
from falcon_h1r.types import RolloutGroup
from falcon_h1r.verifier import count_boxed, extract_boxed

COMPARED_K = 4  # of pass@k, so that runs with other group sizes can be compared
MOST_OF_A_GROUP = 4  # transcripts: a group of long ones would be megabytes a step
MOST_FAMILIES = 20  # whose rewards are logged: the largest of the batch


@dataclass(frozen=True, slots=True)
class RolloutFacts:
    """Of one rollout, without its tokens."""

    reward: float
    parts: dict[str, float]  # what the reward is summed from
    status: str  # of the verdict
    is_fault: bool  # no verdict, and the response is not to blame
    verify_seconds: float
    response_tokens: int
    stop_reason: str
    num_boxes: int | None  # after </think>; None where a program is asked for
    is_well_formed: bool
    is_empty: bool  # nothing but white space
    other_script_share: float  # of its letters
    repeated_ngram_share: float  # of its tokens


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """Of one group."""

    problem_uid: str
    family: str
    has_contrast: bool
    rollouts: tuple[RolloutFacts, ...]  # (G)

    @property
    def num_correct(self) -> int:
        return sum(rollout.status == "correct" for rollout in self.rollouts)


def group_facts(group: RolloutGroup, thinking_opened: bool = False) -> GroupFacts:
    """What other ranks are told of a group.

    Args:
        thinking_opened: as of the `Scorer`.
    """
    rollouts = []
    scored = zip(group.rollouts, group.rewards, group.parts, group.verdicts, strict=True)
    for rollout, reward, parts, verdict in scored:
        text = rollout.text
        rollouts.append(
            RolloutFacts(
                reward=reward,
                parts=parts,
                status=verdict.status,
                is_fault=is_fault(verdict),
                verify_seconds=verdict.seconds,
                response_tokens=len(rollout.response_ids),
                stop_reason=rollout.stop_reason,
                num_boxes=None if wants_program(group.problem) else count_boxed(text, after_think=True),
                is_well_formed=well_formed(text, thinking_opened, is_cut(rollout)),
                is_empty=not text.strip(),
                other_script_share=other_script_share(text, group.problem.question),
                repeated_ngram_share=repeated_ngram_share(rollout.response_ids),
            )
        )
    return GroupFacts(group.problem.uid, group.problem.family, group.has_contrast, tuple(rollouts))


def rollout_metrics(drawn: Sequence[GroupFacts]) -> dict[str, float]:
    """What was sampled, over all groups drawn: those without contrast count in every average.

    A mean over nothing (the length of right answers where none is right) is left out.
    """
    rollouts = [rollout for group in drawn for rollout in group.rollouts]
    if not rollouts:
        return {"sampled_tokens": 0.0}

    def share(of: Callable[[RolloutFacts], object]) -> float:
        return sum(bool(of(rollout)) for rollout in rollouts) / len(rollouts)

    metrics = {
        "reward_mean": _mean([rollout.reward for rollout in rollouts]),
        "pass_at_1": share(lambda r: r.status == "correct"),
        "pass_at_group": _mean([float(group.num_correct > 0) for group in drawn]),
        "zero_variance_share": _mean([float(not group.has_contrast) for group in drawn]),
        "all_right_share": _mean([float(group.num_correct == len(group.rollouts)) for group in drawn]),
        "all_wrong_share": _mean([float(group.num_correct == 0) for group in drawn]),
        "format_broken_share": share(lambda r: not r.is_well_formed),
        "several_boxes_share": share(lambda r: r.num_boxes is not None and r.num_boxes > 1),
        "no_box_share": share(lambda r: r.num_boxes == 0),
        "empty_share": share(lambda r: r.is_empty),
        "language_mixing_share": _mean([rollout.other_script_share for rollout in rollouts]),
        "repeated_ngrams_share": _mean([rollout.repeated_ngram_share for rollout in rollouts]),
        "truncated_share": share(lambda r: r.stop_reason == "length"),
        "undecided_share": share(lambda r: r.status == "undecided"),
        "verifier_fault_share": share(lambda r: r.is_fault),
        "unverifiable_gold_share": share(lambda r: r.status == "unverifiable_gold"),
        "verify_p95_seconds": _p95([rollout.verify_seconds for rollout in rollouts]),
    }
    return metrics | _part_means(rollouts) | _lengths(rollouts) | _pass_at_k(drawn) | _families(drawn)


def _part_means(rollouts: Sequence[RolloutFacts]) -> dict[str, float]:
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.parts)
    return {f"reward_{name}_mean": _mean([rollout.parts.get(name, 0.0) for rollout in rollouts]) for name in names}


def _lengths(rollouts: Sequence[RolloutFacts]) -> dict[str, float]:
    lengths = [rollout.response_tokens for rollout in rollouts]
    metrics = {
        "response_tokens_mean": _mean(lengths),
        "response_tokens_p95": _p95(lengths),
        "response_tokens_max": float(max(lengths)),
        "sampled_tokens": float(sum(lengths)),
    }
    for name, status in (("right", "correct"), ("wrong", "wrong")):
        if of_these := [rollout.response_tokens for rollout in rollouts if rollout.status == status]:
            metrics[f"response_tokens_{name}_mean"] = _mean(of_these)
    return metrics


def _pass_at_k(drawn: Sequence[GroupFacts]) -> dict[str, float]:
    """pass@4 of groups of more than four: 1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2021, arXiv 2107.03374)."""
    counted = [(len(group.rollouts), group.num_correct) for group in drawn if len(group.rollouts) > COMPARED_K]
    if not counted:
        return {}
    missed = [comb(size - right, COMPARED_K) / comb(size, COMPARED_K) for size, right in counted]
    return {f"pass_at_{COMPARED_K}": 1.0 - _mean(missed)}


def _families(drawn: Sequence[GroupFacts]) -> dict[str, float]:
    """Reward and pass@1 of each family, where there is more than one."""
    sizes = Counter(group.family for group in drawn)
    if len(sizes) < 2:
        return {}
    metrics = {}
    for family in sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_FAMILIES]:
        rollouts = [rollout for group in drawn if group.family == family for rollout in group.rollouts]
        metrics[f"family_reward_mean/{family}"] = _mean([rollout.reward for rollout in rollouts])
        metrics[f"family_pass_at_1/{family}"] = _mean([float(rollout.status == "correct") for rollout in rollouts])
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _p95(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.95))


# -----------------------------------------------------------------------------
# Transcripts


def chosen_rollouts(group: RolloutGroup, most: int = MOST_OF_A_GROUP) -> list[int]:
    """The positions in a group of the rollouts to look at, in order.

    The best and the worst reward, then the longest and the one that repeats itself most, then the first of the rest.
    """
    positions = range(len(group.rollouts))
    lengths = [len(rollout.response_ids) for rollout in group.rollouts]
    repeated = [repeated_ngram_share(rollout.response_ids) for rollout in group.rollouts]
    best = max(positions, key=lambda i: group.rewards[i])
    worst = min(positions, key=lambda i: group.rewards[i])
    longest, oddest = max(positions, key=lambda i: lengths[i]), max(positions, key=lambda i: repeated[i])
    return sorted(list(dict.fromkeys([best, worst, longest, oddest, *positions]))[:most])


def sample_rows(groups: Sequence[RolloutGroup], step: int, thinking_opened: bool = False) -> list[dict[str, object]]:
    """Transcripts for samples.jsonl, with what their rewards are summed from and what their text shows."""
    rows: list[dict[str, object]] = []
    for group in groups:
        problem = group.problem
        has_boxes = not wants_program(problem)
        for position in chosen_rollouts(group):
            rollout, verdict = group.rollouts[position], group.verdicts[position]
            row: dict[str, object] = {
                "step": step,
                "problem_uid": problem.uid,
                "question": problem.question,
                "gold": problem.answer,
                "family": problem.family,
                "sample_index": rollout.sample_index,
                "response": rollout.text,
                "prediction": extract_boxed(rollout.text, after_think=True) if has_boxes else None,
                "reward": group.rewards[position],
                "parts": group.parts[position],
                "status": verdict.status,
                "stage": verdict.stage,
                "reason": verdict.reason,
                "stop_reason": rollout.stop_reason,
                "response_tokens": len(rollout.response_ids),
                "structure": think_fault(rollout.text, thinking_opened) or "whole",
                "num_boxes": count_boxed(rollout.text, after_think=True) if has_boxes else None,
                "other_script_share": round(other_script_share(rollout.text, problem.question), 4),
                "repeated_ngram_share": round(repeated_ngram_share(rollout.response_ids), 4),
            }
            rows.append(row)
    return rows
