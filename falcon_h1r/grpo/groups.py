"""Filling a GRPO batch: draw problems, sample groups, score them, replace those without contrast."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from falcon_h1r.checkpoint.stopping import gather_unless_stopped
from falcon_h1r.config import Config
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.rollout.sampler import Prompt, Sampler, SamplingSettings
from falcon_h1r.types import THINK_END, THINK_START, InputError, Problem, Rollout, RolloutGroup, Verdict, content_hash
from falcon_h1r.verifier import Verifier, count_boxed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOK_SECONDS = 1.0  # between two signs of life while verdicts are waited for


class ProblemStream:
    """RL problems in an endless shuffled order that depends on the seed alone; equal on every rank."""

    def __init__(self, problems: Sequence[Problem], prompts: Sequence[list[int]], seed: int) -> None:
        """
        Args:
            prompts: token ids of each problem's prompt.
        """
        assert len(problems) == len(prompts) > 0
        self._problems, self._prompts, self._seed = problems, prompts, seed
        self._position = 0
        self._order: tuple[int, list[int]] = (-1, [])  # (epoch, its permutation)

    def take(self, count: int) -> list[tuple[Problem, Prompt]]:
        """The next `count` problems with their prompts, all different: across an epoch's border a repeat is skipped."""
        assert count <= len(self._problems)
        taken: dict[str, tuple[Problem, Prompt]] = {}
        while len(taken) < count:
            problem, prompt = self._next()
            taken.setdefault(problem.uid, (problem, prompt))
        return list(taken.values())

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it counts in."""
        return {"position": self._position, "num_problems": len(self._problems)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position.

        Raises:
            InputError: where it counts in other problems.
        """
        if state["num_problems"] != len(self._problems):
            raise InputError(
                f"grpo.data: {len(self._problems)} usable problems, where the checkpoint counts {state['num_problems']}"
            )
        self._position = state["position"]

    def _next(self) -> tuple[Problem, Prompt]:
        epoch, index = divmod(self._position, len(self._problems))
        if epoch != self._order[0]:
            order = list(range(len(self._problems)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        self._position += 1
        problem = self._problems[self._order[1][index]]
        return problem, Prompt(problem.uid, self._prompts[self._order[1][index]])


def open_stream(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    verifier: Verifier,
) -> tuple[ProblemStream, dict[str, int]]:
    """The stream of problems that can be used, and the counts of those that cannot.

    A gold that the verifier cannot read would be scored wrong whatever is answered, and a prompt beyond the limit
    would be cut: both are left out and counted, and so are domains that `grpo.selection` does not name.

    Raises:
        InputError: where nothing is left.
    """
    prompts = encode_prompts(tokenizer, problems, config.system_prompt)
    usable: dict[str, tuple[Problem, list[int]]] = {}
    counts = {"other_domain": 0, "repeated": 0, "unverifiable_gold": 0, "prompt_too_long": 0}
    for problem, prompt in zip(problems, prompts, strict=True):
        if problem.domain not in config.grpo.selection.domains:
            counts["other_domain"] += 1
        elif problem.uid in usable:
            counts["repeated"] += 1
        elif len(prompt) > config.grpo.limits.prompt_tokens:
            counts["prompt_too_long"] += 1
        elif not verifier.check_gold(problem.answer):
            counts["unverifiable_gold"] += 1
        else:
            usable[problem.uid] = problem, prompt
    if len(usable) < config.grpo.problems_per_step:
        raise InputError(
            f"{config.grpo.data.path}: {len(usable)} usable problems are fewer than "
            f"grpo.problems_per_step={config.grpo.problems_per_step} ({counts['prompt_too_long']} prompts beyond "
            f"grpo.limits.prompt_tokens={config.grpo.limits.prompt_tokens}, {counts['unverifiable_gold']} golds that "
            f"cannot be verified, {counts['other_domain']} of other domains than grpo.selection.domains)"
        )
    kept, kept_prompts = zip(*usable.values(), strict=True)
    return ProblemStream(kept, kept_prompts, config.seed), counts


@dataclass(slots=True)
class GroupBatch:
    """What a step trains on, and what was drawn to get it. The same on every rank."""

    groups: list[RolloutGroup] = field(default_factory=list)  # with contrast, in the order drawn
    drawn: list[RolloutGroup] = field(default_factory=list)  # all, for honest averages
    num_rounds: int = 0


def collect_groups(
    stream: ProblemStream, sampler: Sampler, verifier: Verifier, config: GRPOConfig, world: World, seed: int
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
        sample = partial(sample_and_score, own, sampler, settings, verifier, config, world.watch)
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
    verifier: Verifier,
    config: GRPOConfig,
    watch: Watch,
) -> list[RolloutGroup]:
    """A group of each problem: this rank's own work, which a stop may interrupt."""
    rollouts = sampler.generate([prompt for _, prompt in drawn], settings)
    return score_groups([problem for problem, _ in drawn], rollouts, verifier, config, watch)


def score_groups(
    problems: Sequence[Problem],
    rollouts: Sequence[Rollout],
    verifier: Verifier,
    config: GRPOConfig,
    watch: Watch,
) -> list[RolloutGroup]:
    """Verify each rollout against its problem's gold; rollouts come group by group."""
    size = config.group_size
    golds = [problem.answer for problem in problems for _ in range(size)]
    texts = [rollout.text for rollout in rollouts]
    verdicts = await_verdicts([verifier.submit(text, gold) for text, gold in zip(texts, golds, strict=True)], watch)
    groups = []
    for index, problem in enumerate(problems):
        own = slice(index * size, (index + 1) * size)
        rewards = [
            float(verdict.correct)
            - config.reward.format_penalty * (not well_formed(rollout.text))
            - config.reward.several_boxes_penalty * (count_boxed(rollout.text, after_think=True) > 1)
            for rollout, verdict in zip(rollouts[own], verdicts[own], strict=True)
        ]
        groups.append(RolloutGroup(problem, list(rollouts[own]), rewards, verdicts[own]))
    return groups


def await_verdicts(futures: Sequence[Future[Verdict]], watch: Watch) -> list[Verdict]:
    """Their verdicts in order.

    Raises:
        StopRequested: where the run is to stop.
    """
    waiting = set(futures)
    while waiting:
        watch.beat("verifying")
        watch.check()
        waiting = wait(waiting, timeout=LOOK_SECONDS).not_done
    return [future.result() for future in futures]


def well_formed(text: str) -> bool:
    """One <think>...</think> at the start, then an answer."""
    return (
        text.startswith(THINK_START)
        and text.count(THINK_START) == 1
        and text.count(THINK_END) == 1
        and text.split(THINK_END)[1].strip() != ""
    )
