"""After a sync: does the sampler compute the trainer's logprobs?

    gap = mean over tokens of |log pi_sampler(token) - log pi_trainer(token)|

of a few short rollouts, drawn by every rank that samples and scored by the trainer in one packed row. Servers have left
out weights of the SSM on reload (D, A_log) without a word. Importance weights would then correct for a policy that
nobody trains, so a gap beyond the bound ends the run before a step is trained on such rollouts.

What it sees is a weight that matters: one that is missing but has hardly moved since the server loaded it makes no gap
yet. Servers that start with random weights (vLLM's `--load-format dummy`, as launch/vllm_serve.sh does) leave no such
hiding place: every weight that is not sent is wrong at the first check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from falcon_h1r.data.packing import Document, pack_row_evenly
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.rollout.sampler import Prompt, Sampler, SamplingSettings
from falcon_h1r.types import Rollout

PROBE_TEXTS = ("Compute 12 + 30.", "Compute 7.", "The answer is 42. Compute 3 + 4 and the answer.")
PROBE_SAMPLES, PROBE_TOKENS = 2, 24


class SamplerOutOfSync(RuntimeError):
    """The sampler does not compute what the trainer does."""


@dataclass(frozen=True, slots=True)
class SyncCheck:
    """What to draw, how, and how far apart the logprobs may be."""

    prompts: Sequence[Prompt]
    settings: SamplingSettings
    max_gap: float  # mean |sampler - trainer|
    advice: str = ""  # what may have gone wrong with this sampler

    @classmethod
    def of_probes(
        cls, encode: Callable[[str], list[int]], temperature: float, max_gap: float, advice: str = ""
    ) -> SyncCheck:
        """With a few fixed questions, at the temperature that rollouts are drawn at."""
        prompts = [Prompt(f"sync/{index}", encode(text)) for index, text in enumerate(PROBE_TEXTS)]
        return cls(prompts, SamplingSettings(PROBE_SAMPLES, PROBE_TOKENS, temperature), max_gap, advice)


def check_sync(engine: Engine, sampler: Sampler, check: SyncCheck) -> float | None:
    """The largest gap of all ranks that sample. Every rank has to call it, with the weights of a policy that is still.

    Nothing is checked, and None returned, where the run is to stop: it starts with this check when it goes on.

    Raises:
        SamplerOutOfSync: on every rank, where the gap is beyond the bound or no number.
    """
    settings = replace(check.settings, seed=sampler.policy_version)
    drawn: list[Rollout] | None
    try:
        drawn = sampler.generate(check.prompts, settings) if sampler.free_slots else []
    except StopRequested:
        drawn = None
    gathered = engine.world.gather(drawn)
    by_rank = [rollouts for rollouts in gathered if rollouts is not None]
    if len(by_rank) < len(gathered):
        return None
    gaps = logprob_gaps(engine, by_rank, settings.temperature or 1.0)
    samplers = [rank for rank, rollouts in enumerate(by_rank) if rollouts]
    if not samplers:
        raise SamplerOutOfSync("no rank samples: there is nobody to compare the trainer's logprobs with")
    worst = max(samplers, key=lambda rank: _badness(gaps[rank]))
    if not gaps[worst] <= check.max_gap:  # true for NaN, too
        raise SamplerOutOfSync(
            f"sampler of rank {worst}, policy {sampler.policy_version}: its logprobs are {gaps[worst]:.3g} from the "
            f"trainer's, {check.max_gap:g} allowed (mean over {_num_tokens(by_rank[worst])} tokens). {check.advice}"
        )
    return gaps[worst]


@torch.no_grad()
def logprob_gaps(engine: Engine, by_rank: Sequence[Sequence[Rollout]], temperature: float) -> list[float]:
    """Mean |sampler - trainer| of each rank's rollouts; 0 for a rank without. All ranks score the same row."""
    rollouts = [rollout for each in by_rank for rollout in each]
    documents = [_document(rollout) for rollout in rollouts]
    row = pack_row_evenly(documents, engine.world.sequence.size).to(engine.world.device)
    logprobs, _ = engine.logprobs(row, temperature)
    trainer = iter(logprobs[row.loss_weights != 0].double().tolist())
    gaps = []
    for each in by_rank:
        sampled = [logprob for rollout in each for logprob in rollout.sampler_logprobs]
        gaps.append(fmean(abs(value - next(trainer)) for value in sampled) if sampled else 0.0)
    return gaps


def _document(rollout: Rollout) -> Document:
    weights = [0.0] * len(rollout.prompt_ids) + [1.0] * len(rollout.response_ids)
    return Document(rollout.prompt_ids + rollout.response_ids, weights)


def _badness(gap: float) -> float:
    """NaN is the worst of all."""
    return gap if gap == gap else float("inf")


def _num_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.response_ids) for rollout in rollouts)
