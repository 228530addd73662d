"""What a rank keeps of its rollouts from one step to the next: groups cut off with their step, and groups to spare.

Groups stay on the rank that sampled them, and in its part of a checkpoint. Other ranks are told summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from falcon_h1r.grpo.metrics import GroupFacts, RolloutFacts
from falcon_h1r.types import Rollout, RolloutGroup, StopReason, Verdict, problem_from_row, to_row

CUT: StopReason = "abort"  # the stop reason of a rollout that goes on


@dataclass(frozen=True, slots=True)
class PartialGroup:
    """A group that its step ended before."""

    number: int  # in the order drawn, over the whole run
    begun_step: int
    rollouts: tuple[Rollout, ...]  # (G); those whose stop reason is "abort" go on

    @property
    def num_unfinished(self) -> int:
        return sum(rollout.stop_reason == CUT for rollout in self.rollouts)

    @property
    def num_tokens(self) -> int:
        """Of response, drawn so far."""
        return sum(len(rollout.response_ids) for rollout in self.rollouts)


@dataclass(frozen=True, slots=True)
class SurplusGroup:
    """A group with contrast beyond what its step needed."""

    number: int
    added_step: int
    group: RolloutGroup
    facts: GroupFacts


@dataclass(frozen=True, slots=True)
class PartialSummary:
    """What other ranks know of a partial group."""

    number: int
    problem_uid: str
    num_unfinished: int


@dataclass(frozen=True, slots=True)
class SurplusSummary:
    """What other ranks know of a group to spare."""

    number: int
    added_step: int
    facts: GroupFacts


@dataclass(frozen=True, slots=True)
class Summary:
    """What a rank carries, as the others know it."""

    partials: tuple[PartialSummary, ...]
    surplus: tuple[SurplusSummary, ...]


class CarriedRollouts:
    """This rank's. Groups are immutable and their tuples replaced whole: a snapshot costs nothing."""

    def __init__(self) -> None:
        self.partials: tuple[PartialGroup, ...] = ()
        self.surplus: tuple[SurplusGroup, ...] = ()
        self._held: tuple[tuple[PartialGroup, ...], tuple[SurplusGroup, ...]] | None = None

    def summary(self) -> Summary:
        """For the other ranks."""
        partials = (PartialSummary(p.number, p.rollouts[0].problem_uid, p.num_unfinished) for p in self.partials)
        surplus = (SurplusSummary(s.number, s.added_step, s.facts) for s in self.surplus)
        return Summary(tuple(partials), tuple(surplus))

    # -------------------------------------------------------------------------
    # State

    def hold(self) -> None:
        """Until `release`, `snapshot` tells of this moment."""
        self._held = self.partials, self.surplus

    def release(self) -> None:
        """See `hold`."""
        self._held = None

    def snapshot(self) -> Callable[[], Iterator[dict[str, Any]]]:
        """What is carried now, as rows of JSON that are made later, in any thread."""
        partials, surplus = self._held or (self.partials, self.surplus)

        def rows() -> Iterator[dict[str, Any]]:
            for partial in partials:
                yield {"number": partial.number, "begun_step": partial.begun_step, **_rollout_rows(partial.rollouts)}
            for each in surplus:
                yield {
                    "number": each.number,
                    "added_step": each.added_step,
                    "problem": to_row(each.group.problem),
                    "rewards": each.group.rewards,
                    "verdicts": [to_row(verdict) for verdict in each.group.verdicts],
                    "parts": each.group.parts,
                    "facts": asdict(each.facts),
                    **_rollout_rows(each.group.rollouts),
                }

        return rows

    def restore(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take on what `snapshot` told, on this rank or others."""
        partials, surplus = [], []
        for row in rows:
            rollouts = _rollouts(row)
            if "begun_step" in row:
                partials.append(PartialGroup(row["number"], row["begun_step"], tuple(rollouts)))
                continue
            verdicts = [Verdict(**verdict) for verdict in row["verdicts"]]
            group = RolloutGroup(problem_from_row(row["problem"]), rollouts, row["rewards"], verdicts, row["parts"])
            surplus.append(SurplusGroup(row["number"], row["added_step"], group, _facts(row["facts"])))
        self.partials, self.surplus = tuple(partials), tuple(surplus)


def _rollout_rows(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """A group's rollouts, with what they share said once. Raw logprobs of other tokens are for confidence alone."""
    first = rollouts[0]
    own = [
        {
            "sample_index": rollout.sample_index,
            "response_ids": rollout.response_ids,
            "sampler_logprobs": rollout.sampler_logprobs,
            "stop_reason": rollout.stop_reason,
            "policy_version": rollout.policy_version,
            "text": rollout.text,
            "later_versions": rollout.later_versions,
        }
        for rollout in rollouts
    ]
    return {"problem_uid": first.problem_uid, "prompt_ids": first.prompt_ids, "rollouts": own}


def _rollouts(row: dict[str, Any]) -> list[Rollout]:
    shared = {"problem_uid": row["problem_uid"], "prompt_ids": row["prompt_ids"]}
    return [
        Rollout(**{**own, **shared, "later_versions": tuple(tuple(pair) for pair in own["later_versions"])})
        for own in row["rollouts"]
    ]


def _facts(row: dict[str, Any]) -> GroupFacts:
    return GroupFacts(**{**row, "rollouts": tuple(RolloutFacts(**rollout) for rollout in row["rollouts"])})
