"""One step's groups as all ranks know them: who samples what, what has come out, and whether that will do.

Every rank keeps the same ledger: it is told the same reports in the same order, and draws from the same stream. So
nobody has to hand out work, and a rank's decisions need no message.

How many groups are begun. N = oversampling times the groups that are needed, at once. Then, with `backfill`, as many
as it takes for the groups with contrast and those still open to make up what is needed, up to max_backfill_rounds
times as many again. Where the step waits for all that it began, the groups begun are the first D of the stream, with
D = max(N, the least number that holds enough contrast), whichever rank was fastest: the batch does not depend on the
number of ranks, nor on how many groups a rank runs at once. Groups that may be cut are no loss, and then N less those
found are kept open at all times.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.grpo.metrics import GroupFacts
from falcon_h1r.grpo.stream import ProblemStream


@dataclass(frozen=True, slots=True)
class Report:
    """What a rank tells at a meeting."""

    free_slots: int
    scored: tuple[tuple[int, GroupFacts], ...]  # groups' numbers and facts, since the last meeting
    num_whole: int  # groups that have ended, and whose verdicts are due at the next meeting
    sampled_tokens: int  # of response, in this step: exact for rollouts that have ended, at most so many for others


@dataclass(frozen=True, slots=True)
class Scored:
    """A group that has come out, and the rank that holds it."""

    number: int  # in the order drawn, over the whole run
    owner: int
    facts: GroupFacts


@dataclass(frozen=True, slots=True)
class Ticket:
    """A problem to begin: its group's number and uid."""

    number: int
    uid: str


class Ledger:
    """See the module's docstring."""

    def __init__(
        self,
        stream: ProblemStream,
        config: GRPOConfig,
        num_needed: int,
        open_groups: Mapping[int, str],
        in_use: Collection[str] = (),
    ) -> None:
        """
        Args:
            num_needed: groups with contrast that the step has still to find.
            open_groups: the uids of groups that earlier steps began, by number.
            in_use: uids of further problems that are not to be drawn.
        """
        self.config, self.num_needed, self._stream = config, num_needed, stream
        self.scored: dict[int, Scored] = {}  # by number
        self.num_drawn = 0  # new groups
        self.num_solved_drawn = 0  # of these, problems solved lately, for want of others
        self.sampled_tokens = 0
        self._open = dict(open_groups)
        self._in_use = {*in_use, *open_groups.values()}
        self._is_exhausted = False
        self._num_whole = 0
        self._num_begun_before = len(open_groups)
        self._num_at_once = math.ceil(config.rollout.oversampling * num_needed)
        is_backfilled = config.zero_variance == "backfill"
        self._most_begun = self._num_at_once + num_needed * config.max_backfill_rounds * is_backfilled

    # -------------------------------------------------------------------------
    # What is known

    @property
    def num_with_contrast(self) -> int:
        return sum(each.facts.has_contrast for each in self.scored.values())

    @property
    def is_full(self) -> bool:
        return self.num_with_contrast >= self.num_needed

    @property
    def is_over(self) -> bool:
        """Whether sampling ends: nothing is left to do, or what runs may be cut and the batch or the budget is full."""
        budget = self.config.rollout.step_tokens
        is_spent = budget is not None and self.sampled_tokens >= budget
        return is_spent or (self._may_cut and self.is_full) or not (self._open or self.num_owed)

    @property
    def awaits_verdicts(self) -> bool:
        """Whether, after the end, groups that are whole are judged for this step rather than carried to the next."""
        return self._num_whole > 0 and not (self._may_cut and self.is_full)

    @property
    def num_replaced(self) -> int:
        """Groups begun beyond those begun at once."""
        return min(self.num_drawn, max(0, self.num_drawn + self._num_begun_before - self._num_at_once))

    @property
    def num_owed(self) -> int:
        """Groups to be begun as soon as a rank has room."""
        if self._is_exhausted:
            return 0
        num_begun = self._num_begun_before + self.num_drawn
        num_wanted = self._num_at_once if self._may_cut else self.num_needed
        num_missing = num_wanted - self.num_with_contrast - len(self._open)
        return max(0, min(max(self._num_at_once - num_begun, num_missing), self._most_begun - num_begun))

    @property
    def _may_cut(self) -> bool:
        return self.config.rollout.max_partial_steps > 0

    # -------------------------------------------------------------------------
    # What happens

    def deal(self, free_slots: Sequence[int]) -> list[list[Ticket]]:
        """Draw problems while a rank has room, each for the rank with the most: whole groups, by rank.

        A group may be longer than the room: its last requests wait for slots there, so that none stays empty.

        Raises:
            RuntimeError: where no rank samples.
        """
        room = list(free_slots)
        dealt: list[list[Ticket]] = [[] for _ in room]
        while self.num_owed > 0 and max(room) > 0:
            number = self._stream.num_drawn
            if (uid := self._stream.draw(self._in_use)) is None:
                self._is_exhausted = True
                break
            rank = room.index(max(room))
            room[rank] -= self.config.group_size
            dealt[rank].append(Ticket(number, uid))
            self._open[number] = uid
            self._in_use.add(uid)
            self.num_drawn += 1
            self.num_solved_drawn += self._stream.was_solved(uid)
        if self.num_owed > 0 and not self._open:
            raise RuntimeError("no rank's sampler has a free slot, and none is at work")
        return dealt

    def take_in(self, reports: Sequence[Report]) -> None:
        """A meeting's reports, in the order of ranks."""
        for owner, report in enumerate(reports):
            for number, facts in report.scored:
                del self._open[number]
                self.scored[number] = Scored(number, owner, facts)
        self._num_whole = sum(report.num_whole for report in reports)
        self.sampled_tokens = sum(report.sampled_tokens for report in reports)
