"""What every rollout engine promises: prompts in, rollouts with logprobs out. The caller cannot tell which it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from falcon_h1r.types import Rollout, content_hash


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt and the problem it came from."""

    problem_uid: str
    input_ids: list[int]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to sample. Reinforcement learning wants top_p 1 and top_k 0: its logprobs are of the whole distribution."""

    num_samples: int  # rollouts per prompt, G
    max_response_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    seed: int = 0


class Sampler(Protocol):
    """A rollout engine."""

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        """All rollouts, ordered by prompt, then by sample index.

        Logprobs are at the sampling temperature and untruncated: what the trainer would compute for the same
        tokens. Greedy rollouts carry logprobs at temperature 1.
        """
        ...

    def load_weights(self, policy: Any) -> None:
        """Sample from this policy from now on; rollouts carry its version."""
        ...


def rollout_uniforms(settings: SamplingSettings, problem_uid: str, sample_index: int) -> np.ndarray:
    """The random numbers of one rollout, one a token: (max_response_tokens) float64 in [0, 1).

    A counter-based generator keyed by (seed, problem, sample): a rollout is the same whatever else is in the batch,
    and whichever rank draws it.
    """
    stream = int(content_hash(f"{problem_uid}/{sample_index}"), 16)
    key = np.array([settings.seed % 2**64, stream], dtype=np.uint64)  # a list would pass through float64
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.random(settings.max_response_tokens)
