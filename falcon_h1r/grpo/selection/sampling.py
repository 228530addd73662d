"""The SFT model's pass rates: rollouts of every problem, block by block, each block on the disk before the next.

A block is a stretch of problems in the order of the file, shared over the ranks by position. Each rank samples and
judges its share, giving signs of life all the while, and meets the others once a block. A rollout's random numbers
depend on (seed, problem, sample) alone, so the rates do not depend on the number of ranks or on where a run was cut,
up to the rounding of float32, which depends on what shares a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from falcon_h1r.checkpoint.stopping import gather_unless_stopped
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.config_selection import selection_limits
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.rewards import Scorer, await_verdicts, wants_program
from falcon_h1r.grpo.selection.rates_file import PassRateFile, rate_row
from falcon_h1r.grpo.selection.rules import Tally, tally_rollouts
from falcon_h1r.rollout.sampler import Prompt, Sampler, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.types import Problem, content_hash
from falcon_h1r.verifier import canonical_answer

if TYPE_CHECKING:
    from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase

    from falcon_h1r.config import Config
    from falcon_h1r.tracking import Tracker

# Times that a block fills a rank's slots: ranks wait for the slowest at the end of each block, and a kill costs one.
FILLS_OF_A_BLOCK = 4


def sampling_settings(grpo: GRPOConfig, seed: int) -> SamplingSettings:
    """How the SFT model is sampled; its random numbers are not those of an evaluation of the same seed."""
    selection = grpo.selection
    return SamplingSettings(
        num_samples=selection.num_rollouts,
        max_response_tokens=selection_limits(grpo).response_tokens,
        temperature=selection.temperature,
        top_p=selection.top_p,
        seed=int(content_hash(f"select/{seed}"), 16),
    )


def problems_of_a_block(grpo: GRPOConfig, num_ranks: int) -> int:
    return num_ranks * max(1, FILLS_OF_A_BLOCK * grpo.rollout.max_slots // grpo.selection.num_rollouts)


def measure_pass_rates(
    config: Config,
    model: FalconH1ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    rates: PassRateFile,
    tracker: Tracker,
    world: World,
) -> None:
    """Sample all problems, or with `resume` those that the file lacks, with a bar that counts rollouts and tokens.

    Raises:
        StopRequested: on every rank; the blocks that were whole are on the disk.
    """
    grpo = config.grpo
    num_done = world.on_main(lambda: rates.open(problems, config.resume))
    completed, total = (
        len(world.share(range(number))) * grpo.selection.num_rollouts for number in (num_done, len(problems))
    )
    with tracker.progress(total, "select", "rollouts of this rank", completed) as progress:
        sampler = TorchSampler(
            model,
            tokenizer,
            grpo.rollout.max_slots,
            on_finished=lambda tokens: progress.advance(1, tokens),
            watch=world.watch,
        )
        settings, size = sampling_settings(grpo, config.seed), problems_of_a_block(grpo, world.size)
        sample_blocks(problems[num_done:], prompts[num_done:], sampler, scorer, settings, rates, size, world)
    if world.is_main and (tallies := list(rates.tallies().values())):
        tracker.log(rate_metrics(tallies), step=0)


def rate_metrics(tallies: Sequence[Tally]) -> dict[str, float]:
    """Means over all problems, for the log."""
    num_rollouts = sum(tally.num_rollouts for tally in tallies)
    return {
        "pass_rate_mean": sum(tally.num_correct for tally in tallies) / num_rollouts,
        "truncated_share": sum(tally.num_truncated for tally in tallies) / num_rollouts,
        "undecided_share": sum(tally.num_undecided for tally in tallies) / num_rollouts,
        "response_tokens_mean": sum(tally.mean_response_tokens for tally in tallies) / len(tallies),
    }


def sample_blocks(
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    sampler: Sampler,
    scorer: Scorer,
    settings: SamplingSettings,
    rates: PassRateFile,
    block_size: int,
    world: World,
) -> None:
    """Sample and judge the problems, appending a row for each to the file.

    Args:
        prompts: token ids of each problem's prompt.
        block_size: problems between two meetings of the ranks.

    Raises:
        StopRequested: on every rank; the blocks that were whole are on the disk.
    """
    for start in range(0, len(problems), block_size):
        stretch = slice(start, start + block_size)
        block = list(zip(problems[stretch], prompts[stretch], strict=True))
        work = partial(tally_problems, world.share(block), sampler, scorer, settings, world.watch)
        try:
            by_rank = gather_unless_stopped(world, work)
        except StopRequested:
            left = len(problems) - start
            raise StopRequested(f"stopped with {left:,} problems left to sample; resume=true goes on there") from None
        if world.is_main:
            rates.append(
                rate_row(problem.uid, by_rank[i % world.size][i // world.size]) for i, (problem, _) in enumerate(block)
            )


def tally_problems(
    own: Sequence[tuple[Problem, list[int]]],
    sampler: Sampler,
    scorer: Scorer,
    settings: SamplingSettings,
    watch: Watch,
) -> list[Tally]:
    """One rank's part of a block: rollouts of its problems, judged and counted.

    Raises:
        StopRequested: where the run is to stop.
    """
    size = settings.num_samples
    rollouts = sampler.generate([Prompt(problem.uid, ids) for problem, ids in own], settings)
    problems = [problem for problem, _ in own for _ in range(size)]
    futures = [scorer.submit(problem, rollout) for problem, rollout in zip(problems, rollouts, strict=True)]
    verdicts = await_verdicts(futures, watch)
    tallies = []
    for start in range(0, len(rollouts), size):
        watch.beat("voting")
        watch.check()
        group = rollouts[start : start + size]
        voting = not wants_program(problems[start])  # two programs that differ may do the same
        tallies.append(
            tally_rollouts(
                statuses=[verdict.status for verdict in verdicts[start : start + size]],
                truncated=[rollout.stop_reason == "length" for rollout in group],
                keys=[answer_key(rollout.text, scorer) if voting else None for rollout in group],
                num_tokens=[len(rollout.response_ids) for rollout in group],
            )
        )
    return tallies


def answer_key(text: str, scorer: Scorer) -> str | None:
    """What a response's answer is known by in a vote."""
    return canonical_answer(text, scorer.verifier.after_think, scorer.verifier.fallbacks)
