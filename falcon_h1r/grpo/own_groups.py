"""The groups that one rank samples in one step: requests to its sampler, verification beside it, reports to the others.

Time is counted in decoded tokens, never in seconds: a stretch is `rollout.meeting_tokens` of every slot. What a rank
reports after a stretch depends on its sampler's tokens alone, so that a resumed run repeats the schedule. A group
whose last rollout ended in one stretch is reported after the next, for which its verdicts are waited for.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.grpo.carried import CUT, PartialGroup
from falcon_h1r.grpo.ledger import Report
from falcon_h1r.grpo.metrics import GroupFacts, group_facts
from falcon_h1r.grpo.rewards import Scorer, await_verdicts
from falcon_h1r.rollout.sampler import Prompt, RolloutKey, RolloutRequest, Sampler, SamplingSettings
from falcon_h1r.types import Problem, Rollout, RolloutGroup, Verdict, content_hash


@dataclass(slots=True)
class _Group:
    """One that is being sampled or judged."""

    number: int
    begun_step: int
    problem: Problem
    prompt: Prompt
    cut: dict[int, Rollout] = field(default_factory=dict)  # by sample: what earlier steps drew of those that go on
    ended: dict[int, Rollout] = field(default_factory=dict)  # by sample
    verdicts: dict[int, Future[Verdict]] = field(default_factory=dict)  # by sample, of those that ended


class OwnGroups:
    """See the module's docstring."""

    def __init__(self, sampler: Sampler, scorer: Scorer, config: GRPOConfig, seed: int, watch: Watch) -> None:
        """
        Args:
            seed: of the run. Random numbers are those of (seed, group's number, sample), so a rollout that goes on in
                a later step goes on with its own.
        """
        self.sampler, self.scorer, self.config, self.seed, self.watch = sampler, scorer, config, seed, watch
        self.scored: dict[int, RolloutGroup] = {}  # by number
        self.sampling_seconds = self.verdict_seconds = 0.0
        self.sampled_tokens = 0  # of response, of rollouts that have ended or been cut, without earlier steps' tokens
        self._groups: dict[str, _Group] = {}  # by problem, of those that are not yet scored
        self._num_slots = sampler.free_slots
        self._running: dict[RolloutKey, int] = {}  # in the order submitted: tokens drawn by now, at most

    @property
    def free_slots(self) -> int:
        return self.sampler.free_slots

    # -------------------------------------------------------------------------
    # Sampling

    def begin(self, number: int, step: int, problem: Problem, prompt: Prompt) -> None:
        """Submit a new group."""
        self._submit(_Group(number, step, problem, prompt))

    def go_on(self, partial: PartialGroup, problem: Problem, prompt: Prompt) -> None:
        """Submit what is left of a group that an earlier step began."""
        group = _Group(partial.number, partial.begun_step, problem, prompt)
        for rollout in partial.rollouts:
            if rollout.stop_reason == CUT:
                group.cut[rollout.sample_index] = rollout
            else:
                self._take(group, rollout)
        self._submit(group)

    def advance(self) -> Report:
        """One stretch of sampling; then the verdicts on groups that were whole before it.

        Raises:
            StopRequested: where the run is to stop.
        """
        self.watch.beat("sampling")
        self.watch.check()
        due = self._whole_groups()
        started = time.perf_counter()
        stretch, limit = self.config.rollout.meeting_tokens, self.config.limits.response_tokens
        for uid, sample in islice(self._running, self._num_slots):
            most = limit - self._tokens_before(self._groups[uid], sample)
            self._running[uid, sample] = min(self._running[uid, sample] + stretch, most)
        for rollout in self.sampler.advance(stretch):
            key = rollout.problem_uid, rollout.sample_index
            del self._running[key]
            group = self._groups[rollout.problem_uid]
            self.sampled_tokens += len(rollout.response_ids) - self._tokens_before(group, rollout.sample_index)
            self._take(group, rollout)
        self.sampling_seconds += time.perf_counter() - started
        return self._report(self._judge(due))

    def judge(self) -> Report:
        """The verdicts on all groups that are whole, without sampling on.

        Raises:
            StopRequested: where the run is to stop.
        """
        return self._report(self._judge(self._whole_groups()))

    def cut(self) -> list[PartialGroup]:
        """End the step: take out what runs, and return every group that is not scored."""
        drawn = {(r.problem_uid, r.sample_index): r for r in self.sampler.abort()}
        partials = []
        for uid, group in self._groups.items():
            rollouts = []
            for sample in range(self.config.group_size):
                if (ended := group.ended.get(sample)) is not None:
                    rollouts.append(ended)
                    continue
                # Of a request that had not begun to go on, what it brought with it.
                known = [r for r in (drawn.get((uid, sample)), group.cut.get(sample)) if r is not None]
                rollout = max(known, key=lambda r: len(r.response_ids), default=self._unbegun(group, sample))
                self.sampled_tokens += len(rollout.response_ids) - self._tokens_before(group, sample)
                rollouts.append(rollout)
            partials.append(PartialGroup(group.number, group.begun_step, tuple(rollouts)))
        self._groups.clear()
        self._running.clear()
        return sorted(partials, key=lambda partial: partial.number)

    def _submit(self, group: _Group) -> None:
        self._groups[group.problem.uid] = group
        settings = SamplingSettings(
            num_samples=self.config.group_size,
            max_response_tokens=self.config.limits.response_tokens,
            temperature=self.config.rollout.temperature,
            seed=int(content_hash(f"{self.seed}/grpo/{group.number}"), 16),
            stop_strings=tuple(self.config.rollout.stop_strings),
        )
        requests = [
            RolloutRequest(group.prompt, sample, settings, partial=self._begun(group, sample))
            for sample in range(self.config.group_size)
            if sample not in group.ended
        ]
        self._running.update((request.key, 0) for request in requests)
        self.sampler.submit(requests)

    def _take(self, group: _Group, rollout: Rollout) -> None:
        """One that has ended: its verification begins."""
        group.ended[rollout.sample_index] = rollout
        group.verdicts[rollout.sample_index] = self.scorer.submit(group.problem, rollout)

    @staticmethod
    def _begun(group: _Group, sample: int) -> Rollout | None:
        rollout = group.cut.get(sample)
        return rollout if rollout is not None and rollout.response_ids else None

    @staticmethod
    def _tokens_before(group: _Group, sample: int) -> int:
        return len(group.cut[sample].response_ids) if sample in group.cut else 0

    def _unbegun(self, group: _Group, sample: int) -> Rollout:
        version = self.sampler.policy_version
        return Rollout(group.problem.uid, sample, group.prompt.input_ids, [], [], CUT, version, "")

    # -------------------------------------------------------------------------
    # Judging

    def _whole_groups(self) -> list[_Group]:
        return [group for group in self._groups.values() if len(group.ended) == self.config.group_size]

    def _judge(self, due: list[_Group]) -> list[tuple[int, GroupFacts]]:
        """Score groups whose rollouts have all ended; what the others are told of them."""
        started = time.perf_counter()
        samples = range(self.config.group_size)
        verdicts = iter(await_verdicts([group.verdicts[sample] for group in due for sample in samples], self.watch))
        told = []
        for group in due:
            rollouts = [group.ended[sample] for sample in samples]
            scored = self.scorer.score(group.problem, rollouts, [next(verdicts) for _ in samples])
            self.scored[group.number] = scored
            del self._groups[group.problem.uid]
            told.append((group.number, group_facts(scored, self.scorer.thinking_opened)))
        self.verdict_seconds += time.perf_counter() - started
        return told

    def _report(self, scored: list[tuple[int, GroupFacts]]) -> Report:
        return Report(
            free_slots=self.sampler.free_slots,
            scored=tuple(scored),
            num_whole=len(self._whole_groups()),
            sampled_tokens=self.sampled_tokens + sum(self._running.values()),
        )
