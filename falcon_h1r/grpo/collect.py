"""The first half of a step: groups are begun, sampled and judged on all ranks until a batch of them has contrast.

All ranks go through the same meetings, one after each stretch of `rollout.meeting_tokens` decoded by every slot. At a
meeting they tell what has come out and how much room they have, and the next problems of the shared stream go, as whole
groups, to whoever has most (falcon_h1r.grpo.ledger). A rank without work just meets.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from falcon_h1r.checkpoint.stopping import gather_unless_stopped
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.carried import CarriedRollouts, PartialGroup, Summary, SurplusGroup
from falcon_h1r.grpo.ledger import Ledger, Scored
from falcon_h1r.grpo.metrics import GroupFacts
from falcon_h1r.grpo.own_groups import OwnGroups
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.grpo.surplus import Spare, Withdrawal, bounded, withdraw
from falcon_h1r.rollout.sampler import Sampler
from falcon_h1r.types import RolloutGroup

SAMPLES_A_STEP = 2  # groups whose transcripts are logged


@dataclass(slots=True)
class GroupBatch:
    """What a step trains on, and what was sampled to get it. The same on every rank, but for what is called own."""

    chosen: list[Scored]  # with contrast, in the order drawn; where they are duplicated, some of them repeatedly
    drawn: list[GroupFacts]  # all that came out in this step, in the order drawn, for honest averages
    counts: dict[str, float]  # for the log
    own_groups: dict[int, RolloutGroup]  # by number: those of `chosen` that this rank holds
    own_samples: list[RolloutGroup]  # of the first that were drawn, for people to read: those this rank holds
    own_sums: dict[str, float]  # for the log, to be added over ranks
    own_seconds: dict[str, float]  # by phase
    thinking_opened: bool = False  # by the prompt: of the samples

    @property
    def rewards(self) -> list[list[float]]:
        """Of all chosen groups: (P, G)."""
        return [[rollout.reward for rollout in each.facts.rollouts] for each in self.chosen]


class Collector:
    """Fills batches: what one needs for it, beside the ranks that meet."""

    def __init__(
        self,
        stream: ProblemStream,
        sampler: Sampler,
        scorer: Scorer,
        carried: CarriedRollouts,
        config: GRPOConfig,
        seed: int,
    ) -> None:
        """
        Args:
            seed: of the run.
        """
        self.stream, self.sampler, self.scorer, self.carried = stream, sampler, scorer, carried
        self.config, self.seed = config, seed

    def collect(self, world: World) -> GroupBatch:
        """The next step's batch: up to `problems_per_step` groups with contrast.

        Where groups without contrast are replaced, the batch keeps its size, which trained more stably than leaving
        them out or repeating others (Falcon-H1R report, section 3.3). It is filled in the order drawn, not in that of
        arrival: a batch of whoever came first would be one of short responses.

        Raises:
            StopRequested: on every rank, with the stream further on.
        """
        started = time.perf_counter()
        self.stream.begin_step()
        own = OwnGroups(self.sampler, self.scorer, self.config, self.seed, world.watch)
        told = gather_unless_stopped(world, lambda: (self.carried.summary(), own.free_slots))
        summaries = [summary for summary, _ in told]
        cache = withdraw(summaries, self.stream.step, self.config)
        ledger = self._open_ledger(summaries, cache)
        try:
            self._sample(own, ledger, world, [free - _num_open(summary) for summary, free in told])
        except StopRequested:
            self.sampler.abort()
            raise
        batch = self._settle(own, ledger, cache, world)
        in_phases = own.sampling_seconds + own.verdict_seconds
        batch.own_seconds = {
            "sampling": own.sampling_seconds,
            "verdicts": own.verdict_seconds,
            "meetings": time.perf_counter() - started - in_phases,
        }
        return batch

    def _open_ledger(self, summaries: Sequence[Summary], cache: Withdrawal) -> Ledger:
        if self.config.surplus_cache_refresh:
            for spare in cache.expired:
                self.stream.draw_again(spare.scored.facts.problem_uid)
        open_groups = {each.number: each.problem_uid for summary in summaries for each in summary.partials}
        in_use = [spare.scored.facts.problem_uid for spare in (*cache.used, *cache.kept)]
        num_needed = self.config.problems_per_step - len(cache.used)
        return Ledger(self.stream, self.config, num_needed, open_groups, in_use)

    def _sample(self, own: OwnGroups, ledger: Ledger, world: World, free_slots: list[int]) -> None:
        """Stretches and meetings until the ledger says that it is enough."""
        for partial in self.carried.partials:
            own.go_on(partial, *self.stream[partial.rollouts[0].problem_uid])
        while not ledger.is_over:
            for ticket in ledger.deal(free_slots)[world.rank]:
                own.begin(ticket.number, self.stream.step, *self.stream[ticket.uid])
            reports = gather_unless_stopped(world, own.advance)
            ledger.take_in(reports)
            free_slots = [report.free_slots for report in reports]
        if ledger.awaits_verdicts:
            ledger.take_in(gather_unless_stopped(world, own.judge))

    # -------------------------------------------------------------------------
    # What becomes of what was sampled

    def _settle(self, own: OwnGroups, ledger: Ledger, cache: Withdrawal, world: World) -> GroupBatch:
        """Choose the batch, and keep or drop the rest."""
        scored = [ledger.scored[number] for number in sorted(ledger.scored)]
        found = [each for each in scored if each.facts.has_contrast]
        used = [spare.scored for spare in cache.used]
        chosen = sorted([*used, *found[: ledger.num_needed]], key=lambda each: each.number)
        over = [Spare(self.stream.step, each) for each in found[ledger.num_needed :]]
        kept, evicted = bounded([*cache.kept, *over], self.config)
        for each in scored:
            if all(rollout.status == "correct" for rollout in each.facts.rollouts):
                self.stream.mark_solved(each.facts.problem_uid)

        held = {each.number: each.group for each in self.carried.surplus} | own.scored
        own_groups = {each.number: held[each.number] for each in chosen if each.owner == world.rank}
        own_kept = [spare for spare in kept if spare.scored.owner == world.rank]
        self.carried.surplus = tuple(
            SurplusGroup(spare.scored.number, spare.added_step, held[spare.scored.number], spare.scored.facts)
            for spare in own_kept
        )
        own_lost = [spare for spare in (*evicted, *cache.expired) if spare.scored.owner == world.rank]
        own_sums = self._carry(own, sum(_num_tokens(spare.scored.facts) for spare in own_lost))
        if self.config.zero_variance == "duplicate" and chosen:
            chosen = [chosen[index % len(chosen)] for index in range(max(len(chosen), self.config.problems_per_step))]
        counts = {
            "num_groups": len(chosen),
            "num_rollouts": sum(len(each.facts.rollouts) for each in chosen),
            "num_backfill_groups": ledger.num_replaced,
            "cache_used_groups": len(used),
            "cache_groups": len(kept),
            "cache_expired_groups": len(cache.expired),
            "cache_evicted_groups": len(evicted),
            "solved_problems": self.stream.num_solved,
            "solved_drawn_groups": ledger.num_solved_drawn,
            "empty_responses": sum(r.response_tokens == 0 for each in scored for r in each.facts.rollouts),
        }
        return GroupBatch(
            chosen=chosen,
            drawn=[each.facts for each in scored],
            counts={name: float(count) for name, count in counts.items()},
            own_groups=own_groups,
            own_samples=[own.scored[each.number] for each in scored[:SAMPLES_A_STEP] if each.number in own.scored],
            own_sums=own_sums,
            own_seconds={},
            thinking_opened=self.scorer.thinking_opened,
        )

    def _carry(self, own: OwnGroups, num_lost_tokens: int) -> dict[str, float]:
        """Take over, or drop, what still runs; sums for the log.

        Args:
            num_lost_tokens: of groups that left the cache unused.
        """
        cut = own.cut()
        self.carried.partials = tuple(partial for partial in cut if self._goes_on(partial))
        num_dropped_tokens = sum(partial.num_tokens for partial in cut if not self._goes_on(partial))
        sums = {
            "sampled_tokens": own.sampled_tokens,
            "dropped_tokens": num_lost_tokens + num_dropped_tokens,
            "carried_rollouts": sum(partial.num_unfinished for partial in self.carried.partials),
            "carried_tokens": sum(partial.num_tokens for partial in self.carried.partials),
        }
        return {name: float(value) for name, value in sums.items()}

    def _goes_on(self, partial: PartialGroup) -> bool:
        """Whether the next step is not one too many for it."""
        return self.stream.step + 1 - partial.begun_step <= self.config.rollout.max_partial_steps


def _num_open(summary: Summary) -> int:
    """Slots that a rank's carried rollouts take."""
    return sum(partial.num_unfinished for partial in summary.partials)


def _num_tokens(facts: GroupFacts) -> int:
    return sum(rollout.response_tokens for rollout in facts.rollouts)
