"""The first half of a step: draw problems, sample groups, score them, replace those without contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from falcon_h1r.checkpoint.stopping import gather_unless_stopped
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.rewards import Scorer, await_verdicts
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.rollout.sampler import Prompt, Sampler, SamplingSettings
from falcon_h1r.types import Problem, RolloutGroup, content_hash


@dataclass(slots=True)
class GroupBatch:
    """What a step trains on, and what was drawn to get it. The same on every rank."""

    groups: list[RolloutGroup] = field(default_factory=list)  # with contrast, in the order drawn
    drawn: list[RolloutGroup] = field(default_factory=list)  # all, for honest averages
    num_rounds: int = 0


def collect_groups(
    stream: ProblemStream, sampler: Sampler, scorer: Scorer, config: GRPOConfig, world: World, seed: int
) -> GroupBatch:
    """Sample and score groups until `problems_per_step` have contrast, or the backfill rounds are spent.

    Backfilling keeps the batch's size steady, which trained more stably than dropping groups or repeating others
    (Falcon-H1R report, section 3.3). Every round draws as many problems as are missing, shares them over the ranks
    and gathers the groups on all of them: the batch does not depend on the number of ranks, up to the rounding of
    float32 in sampling.

    Args:
        seed: of this step; the rounds derive theirs.

    Raises:
        StopRequested: on every rank.
    """
    batch = GroupBatch()
    while len(batch.groups) < config.problems_per_step and batch.num_rounds <= config.max_backfill_rounds:
        drawn = stream.take(config.problems_per_step - len(batch.groups))
        settings = SamplingSettings(
            num_samples=config.group_size,
            max_response_tokens=config.limits.response_tokens,
            temperature=config.rollout.temperature,
            seed=int(content_hash(f"{seed}/{batch.num_rounds}"), 16),
        )
        own = world.share(drawn)
        sample = partial(sample_and_score, own, sampler, settings, scorer, world.watch)
        by_rank = gather_unless_stopped(world, sample)
        groups = [by_rank[i % world.size][i // world.size] for i in range(len(drawn))]
        batch.drawn.extend(groups)
        batch.groups.extend(group for group in groups if group.has_contrast)
        batch.num_rounds += 1
    return batch


def sample_and_score(
    drawn: Sequence[tuple[Problem, Prompt]],
    sampler: Sampler,
    settings: SamplingSettings,
    scorer: Scorer,
    watch: Watch,
) -> list[RolloutGroup]:
    """A group of each problem: this rank's own work, which a stop may interrupt."""
    rollouts = sampler.generate([prompt for _, prompt in drawn], settings)
    size = settings.num_samples
    problems = [problem for problem, _ in drawn for _ in range(size)]
    pending = [scorer.submit(problem, rollout) for problem, rollout in zip(problems, rollouts, strict=True)]
    verdicts = await_verdicts(pending, watch)
    own = [slice(start, start + size) for start in range(0, len(rollouts), size)]
    return [
        scorer.score(problem, rollouts[each], verdicts[each]) for (problem, _), each in zip(drawn, own, strict=True)
    ]
