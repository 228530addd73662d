"""A rollout while vLLM draws it: what has come so far, what is still to be asked for, and what it becomes.

vLLM is asked for one rollout at a time, not for n of a prompt: a seed of its own makes a rollout repeatable, and a
rollout that ended makes room for another. That a prompt is then read once for each of its rollouts costs a few
percent where responses are much longer than prompts; vLLM's prefix cache, where it is on, saves that too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from falcon_h1r.rollout.http_server import LostAnswer
from falcon_h1r.rollout.sampler import RolloutRequest, SamplingSettings
from falcon_h1r.types import InputError, Rollout, StopReason, content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_LOGPROB = -9000.0  # vLLM writes -9999 for minus infinity: no sampled token has that


@dataclass(slots=True)
class Draft:
    """One request with the tokens drawn for it so far, those of its partial rollout included."""

    request: RolloutRequest
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)  # (tokens, k), empty where none are asked for
    versions: list[tuple[int, int]] = field(default_factory=list)  # (index of the first token, policy) in order

    @classmethod
    def begin(cls, request: RolloutRequest) -> Draft:
        """With what is there of it already.

        Raises:
            InputError: where vLLM cannot draw with these settings.
        """
        check_settings(request.settings)
        draft, partial = cls(request), request.partial
        if partial is not None and partial.response_ids:
            draft.tokens, draft.logprobs = list(partial.response_ids), list(partial.sampler_logprobs)
            draft.versions = [(0, partial.policy_version), *partial.later_versions]
            if request.settings.num_top_logprobs:
                if partial.top_logprobs is None:
                    raise InputError("num_top_logprobs: a partial rollout that goes on has none for its first tokens")
                draft.top_logprobs = partial.top_logprobs.tolist()
        return draft

    @property
    def tokens_left(self) -> int:
        request = self.request
        limit = request.max_response_tokens
        return (request.settings.max_response_tokens if limit is None else limit) - len(self.tokens)

    @property
    def input_ids(self) -> list[int]:
        """What the next token is drawn after."""
        return self.request.prompt.input_ids + self.tokens

    def draw_with(self, policy_version: int) -> None:
        """From here on it is this policy that draws."""
        if self.versions and self.versions[-1][0] == len(self.tokens):  # the last one drew nothing
            self.versions.pop()
        if not self.versions or self.versions[-1][1] != policy_version:
            self.versions.append((len(self.tokens), policy_version))

    def add(self, tokens: Sequence[int], logprobs: Sequence[float], tops: Sequence[list[float]]) -> None:
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        self.top_logprobs.extend(tops)

    def rollout(
        self,
        stop_reason: StopReason,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Collection[int],
        policy_version: int,
    ) -> Rollout:
        """What has become of it. Its text is decoded here: a server's own follows the server's options.

        Args:
            policy_version: of one that has no tokens.
        """
        versions = [pair for pair in self.versions if pair[0] < len(self.tokens)]
        ends = stop_reason == "stop" and self.tokens[-1] in stop_ids
        num_top = self.request.settings.num_top_logprobs
        return Rollout(
            problem_uid=self.request.prompt.problem_uid,
            sample_index=self.request.sample_index,
            prompt_ids=self.request.prompt.input_ids,
            response_ids=self.tokens,
            sampler_logprobs=self.logprobs,
            stop_reason=stop_reason,
            policy_version=versions[0][1] if versions else policy_version,
            text=tokenizer.decode(self.tokens[:-1] if ends else self.tokens),
            later_versions=tuple(versions[1:]),
            top_logprobs=np.array(self.top_logprobs, np.float32).reshape(-1, num_top) if num_top else None,
        )


def check_settings(settings: SamplingSettings) -> None:
    """Refuse what would come back with other logprobs than `Sampler` promises.

    vLLM is set to return processed logprobs: of what it samples from, after temperature, top-p and top-k.

    Raises:
        InputError: naming the setting.
    """
    if settings.top_p < 1.0 or settings.top_k > 0:
        raise InputError(
            f"top_p={settings.top_p}, top_k={settings.top_k}: vLLM's logprobs would be those of the truncated "
            "distribution; sample from all of it (top_p 1, top_k 0), or with the torch sampler"
        )
    if settings.num_top_logprobs and settings.temperature not in (0.0, 1.0):
        raise InputError(
            f"num_top_logprobs={settings.num_top_logprobs}: raw logprobs are those of temperature 1, and vLLM's are of "
            f"temperature {settings.temperature}; sample at 1, or with the torch sampler"
        )


def draft_seed(draft: Draft) -> int:
    """Of the next tokens of this rollout: in [0, 2^63). One that goes on does not see its first numbers again."""
    prompt, settings = draft.request.prompt, draft.request.settings
    name = f"{settings.seed}/{prompt.problem_uid}/{draft.request.sample_index}/{len(draft.tokens)}"
    return int(content_hash(name), 16) % 2**63


def sampling_arguments(draft: Draft, stop_ids: Collection[int]) -> dict[str, Any]:
    """vLLM's names for how the rest of a rollout is drawn, the same for a server and for an engine in this process.

    All that a model's own generation config could change is said: what is left out comes from there. Of tokens, only
    ours end a response. `logprobs` 0 is that of the token drawn alone.

    A stop string that was cut in two where a rollout was interrupted is not found: vLLM sees the new tokens only.
    """
    settings = draft.request.settings
    return {
        "n": 1,
        "max_tokens": draft.tokens_left,
        "temperature": settings.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": draft_seed(draft),
        "stop": list(settings.stop_strings),
        "include_stop_str_in_output": True,
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": settings.num_top_logprobs,
    }


def best_logprobs(candidates: Collection[float], num_top: int) -> list[float]:
    """The `num_top` best of a position, best first. vLLM adds the token drawn, which may or may not be among them.

    Raises:
        LostAnswer: where there are fewer.
    """
    if len(candidates) < num_top:
        raise LostAnswer(f"{len(candidates)} logprobs at a position instead of {num_top}")
    return sorted(candidates, reverse=True)[:num_top]


def check_logprobs(logprobs: Sequence[Any], num_tokens: int) -> None:
    """
    Raises:
        LostAnswer: where there is not one finite logprob for each token.
    """
    if len(logprobs) != num_tokens:
        raise LostAnswer(f"{len(logprobs)} logprobs for {num_tokens} tokens")
    for value in logprobs:
        if not isinstance(value, float | int) or not math.isfinite(value) or value < LEAST_LOGPROB:
            raise LostAnswer(f"a logprob of {value}")


def checked_end(draft: Draft, finish_reason: str | None) -> StopReason:
    """How a rollout ended, by vLLM's word for it.

    Raises:
        InputError: where it was cut off below its limit, as by a server's --max-model-len.
        LostAnswer: where it did not end by itself: the server was paused, or failed.
    """
    if finish_reason == "stop" and draft.tokens:
        return "stop"
    if finish_reason == "length" and draft.tokens_left > 0:
        raise InputError(
            f"vLLM cut a response off after {len(draft.tokens)} tokens, {draft.tokens_left} before its limit: "
            "is --max-model-len below prompt and response together?"
        )
    if finish_reason == "length" and draft.tokens_left == 0:
        return "length"
    raise LostAnswer(f"ended by {finish_reason} after {len(draft.tokens)} tokens")
