"""The verdict on a problem, from how the SFT model fared on it. Pure functions; the table is in docs/selection.md.

The rule is the Falcon-H1R report's (section 3.1, arXiv 2601.02346), which gives it for eight rollouts:

    8 of 8 right        drop: nothing to learn
    1 to 7 right        keep
    0 right, all cut    keep a small random subset
    0 right, f >= 4     drop: the model is consistent, so the gold is suspect
    0 right, f < 4      keep a small random subset

f is how many rollouts agree on the commonest answer. The size of the subset, and what holds for another number of
rollouts, are choices of our own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_h1r.config_grpo import SelectionConfig
from falcon_h1r.types import content_hash

SOLVED, CONSISTENT_WRONG = "solved", "consistent_wrong"
UNSOLVED, UNSOLVED_TRUNCATED = "unsolved", "unsolved_truncated"
PUBLISHED_ROLLOUTS = 8  # that drop_consistent_wrong counts among
FEWEST_AGREEING = 2


@dataclass(frozen=True, slots=True)
class Tally:
    """How the rollouts of one problem ended."""

    num_rollouts: int
    num_correct: int
    num_truncated: int  # cut by the limit, right or not
    num_undecided: int  # without a verdict; they count as not right
    majority_frequency: int  # of the commonest answer among the rollouts that voted; 0: none did
    mean_response_tokens: float

    @property
    def pass_rate(self) -> float:
        return self.num_correct / self.num_rollouts


def tally_rollouts(
    statuses: Sequence[str], truncated: Sequence[bool], keys: Sequence[str | None], num_tokens: Sequence[int]
) -> Tally:
    """Count the rollouts of one problem; all arguments are (G).

    Args:
        statuses: of the verdicts. Whatever is neither correct nor wrong is undecided.
        keys: the canonical key of each answer (falcon_h1r.verifier.canonical), None without one. Rollouts that were cut
            do not vote: what stands in a box there was not their last word.

    Raises:
        ValueError: where the lengths differ, or there are none.
    """
    if not statuses:
        raise ValueError("no rollouts to count")
    votes = Counter(key for key, cut in zip(keys, truncated, strict=True) if key is not None and not cut)
    return Tally(
        num_rollouts=len(statuses),
        num_correct=sum(status == "correct" for status in statuses),
        num_truncated=sum(truncated),
        num_undecided=sum(status not in ("correct", "wrong") for status, _ in zip(statuses, keys, strict=True)),
        majority_frequency=max(votes.values(), default=0),
        mean_response_tokens=round(sum(num_tokens) / len(statuses), 1),
    )


def fewest_consistent(selection: SelectionConfig) -> int:
    """How many rollouts have to agree for a wrong answer to be consistent.

    `drop_consistent_wrong` counts among eight rollouts. Among n it is the same share, rounded up: 4 of 8 are 8 of 16
    and 2 of 3; and never fewer than two.
    """
    scaled = math.ceil(selection.drop_consistent_wrong * selection.num_rollouts / PUBLISHED_ROLLOUTS)
    return max(FEWEST_AGREEING, scaled)


def drop_reason(tally: Tally, selection: SelectionConfig, draw: float) -> str | None:
    """Why a problem is dropped; None: it is kept.

    Args:
        draw: the problem's own number in [0, 1); of the unsolved, those below `keep_unsolved_share` are kept.
    """
    if tally.num_correct:
        return SOLVED if tally.num_correct == tally.num_rollouts else None
    all_truncated = tally.num_truncated == tally.num_rollouts
    if not all_truncated and tally.majority_frequency >= fewest_consistent(selection):
        return CONSISTENT_WRONG
    if draw < selection.keep_unsolved_share:
        return None
    return UNSOLVED_TRUNCATED if all_truncated else UNSOLVED


def unit_draw(seed: int, uid: str) -> float:
    """A problem's number in [0, 1): the same in every run of one seed, whatever else is in the file."""
    return int(content_hash(f"unsolved/{seed}/{uid}"), 16) / 2**64


def describe_tally(tally: Tally) -> str:
    """In one line, for dropped.jsonl."""
    parts = [f"{tally.num_correct} of {tally.num_rollouts} right", f"{tally.majority_frequency} agree"]
    for number, name in ((tally.num_truncated, "cut by the limit"), (tally.num_undecided, "undecided")):
        if number:
            parts.append(f"{number} {name}")
    return ", ".join(parts)
