"""What every rollout engine promises: requests in, rollouts with logprobs out. The caller cannot tell which it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.types import Rollout, content_hash

RolloutKey = tuple[str, int]  # (problem_uid, sample_index): at most one such request is in a sampler at a time


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
    stop_strings: tuple[str, ...] = ()  # end a response as a stop token does; they stay in its ids and text
    num_top_logprobs: int = 0  # raw logprobs at temperature 1 of so many best tokens, kept in `Rollout.top_logprobs`


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One rollout to be drawn. Requests of one sampler may differ in settings."""

    prompt: Prompt
    sample_index: int
    settings: SamplingSettings
    partial: Rollout | None = None  # go on from it: its tokens and logprobs stay, its prompt and tokens are read anew
    max_response_tokens: int | None = None  # of this rollout alone; None: the settings'

    @property
    def key(self) -> RolloutKey:
        return self.prompt.problem_uid, self.sample_index


class Overseer(Protocol):
    """Looks at every token that a sampler draws, and may end a rollout there.

    Rollouts are told apart by row numbers, which are given again once a rollout has ended. Shapes: B rollouts running.
    """

    num_top_logprobs: int  # it wants to see so many raw logprobs of the best tokens at every position; 0: none

    def began(self, row: int, request: RolloutRequest, num_drawn: int) -> None:
        """A rollout took this row. `num_drawn` of its tokens were drawn before.

        Raises:
            ValueError: where it cannot be judged from there on.
        """
        ...

    def drew(
        self,
        rows: NDArray[np.int64],  # (B)
        before: NDArray[np.int64],  # (B), tokens that were there before
        drawn: NDArray[np.int64],  # (B), of the steps, those that belong to the rollout
        logprobs: NDArray[np.float64],  # (steps, B)
        top_logprobs: NDArray[np.float32] | None,  # (steps, B, at least num_top_logprobs)
    ) -> NDArray[np.int64]:
        """(B): after how many of the tokens drawn each rollout has to end; 0 where it may go on."""
        ...

    def ended(self, row: int, request: RolloutRequest, num_tokens: int) -> None:
        """The rollout left its row with so many tokens."""
        ...


class Sampler(Protocol):
    """A rollout engine.

    Logprobs are at the sampling temperature and untruncated: what the trainer would compute for the same tokens.
    Greedy rollouts carry logprobs at temperature 1.
    """

    policy_version: int  # moves with every `load_weights`

    @property
    def free_slots(self) -> int:
        """Rollouts that could begin at once, beside those submitted; 0 where this rank samples nothing."""
        ...

    def submit(self, requests: Iterable[RolloutRequest]) -> None:
        """Queue requests. Those of one prompt that come together share its processing."""
        ...

    def advance(self, num_tokens: int) -> list[Rollout]:
        """Decode up to `num_tokens` more tokens of every running rollout, waiting ones taking freed slots meanwhile.

        Returns the rollouts that ended, at once where nothing is left to do. An engine that cannot be interrupted
        may run all that was submitted to their ends.

        Raises:
            StopRequested: where the run is to stop; all that was submitted is forgotten.
        """
        ...

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[Rollout]:
        """Take running and waiting requests out, all of them or these, and return what they have drawn so far.

        Their `stop_reason` is "abort"; one that had not begun has no tokens. Unknown keys are ignored.
        """
        ...

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        """All rollouts of these prompts, to their ends: ordered by prompt, then by sample index."""
        ...

    def load_weights(self, policy: Any) -> None:
        """Sample from this policy (an `Engine`) from now on; rollouts carry its version. Every rank calls it."""
        ...


def requests_for(prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutRequest]:
    """`num_samples` requests for every prompt, ordered by prompt, then by sample index."""
    return [RolloutRequest(prompt, sample, settings) for prompt in prompts for sample in range(settings.num_samples)]


def draw_all(
    sampler: Sampler, prompts: Sequence[Prompt], settings: SamplingSettings, num_tokens: int
) -> tuple[list[Rollout], list[Rollout]]:
    """`Sampler.generate` by the rest of the protocol, looking every `num_tokens` tokens.

    Returns the prompts' rollouts in order, and what ended meanwhile of what was submitted before.
    """
    requests = requests_for(prompts, settings)
    missing = {request.key for request in requests}
    found: dict[RolloutKey, Rollout] = {}
    others: list[Rollout] = []
    sampler.submit(requests)
    while missing:
        for rollout in sampler.advance(num_tokens):
            key = rollout.problem_uid, rollout.sample_index
            if key in missing:
                missing.discard(key)
                found[key] = rollout
            else:
                others.append(rollout)
    return [found[request.key] for request in requests], others


def rollout_uniforms(settings: SamplingSettings, problem_uid: str, sample_index: int) -> np.ndarray:
    """The random numbers of one rollout, one a token: (max_response_tokens) float64 in [0, 1).

    A counter-based generator keyed by (seed, problem, sample): a rollout is the same whatever else is in the batch,
    and whichever rank draws it.
    """
    stream = int(content_hash(f"{problem_uid}/{sample_index}"), 16)
    key = np.array([settings.seed % 2**64, stream], dtype=np.uint64)  # a list would pass through float64
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.random(settings.max_response_tokens)
