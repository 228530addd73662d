"""What is known of the rollouts that run, on the host: their tokens and logprobs so far, their limits, their stops.

The device holds only what it computes with, by slot; slots change places. Each rollout has a row of its own here, which
does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.rollout.sampler import Overseer, RolloutRequest, rollout_uniforms
from falcon_h1r.rollout.stop_strings import StopStrings
from falcon_h1r.types import Rollout, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Begun:
    """A rollout that runs, or one that waits to go on."""

    request: RolloutRequest
    order: int  # of submission
    group: int  # requests that share their prompt's reading have one number
    tokens: list[int]
    logprobs: list[float]
    first_version: int | None = None
    later_versions: list[tuple[int, int]] = field(default_factory=list)
    top_logprobs: list[NDArray[np.float32]] = field(default_factory=list)  # rows of (k)

    @classmethod
    def of(cls, request: RolloutRequest, order: int, group: int) -> Begun:
        partial, k = request.partial, request.settings.num_top_logprobs
        if partial is None or not partial.response_ids:
            return cls(request, order, group, [], [])
        begun = cls(request, order, group, list(partial.response_ids), list(partial.sampler_logprobs))
        begun.first_version, begun.later_versions = partial.policy_version, list(partial.later_versions)
        if k:
            kept = np.full((len(begun.tokens), k), np.nan, np.float32)  # not known of what others drew without them
            if partial.top_logprobs is not None:
                shared = min(k, partial.top_logprobs.shape[1])
                kept[:, :shared] = partial.top_logprobs[:, :shared]
            begun.top_logprobs = list(kept)
        return begun

    @property
    def newest_version(self) -> int | None:
        return self.later_versions[-1][1] if self.later_versions else self.first_version

    @property
    def limit(self) -> int:
        own = self.request.max_response_tokens
        return self.request.settings.max_response_tokens if own is None else own

    @property
    def document(self) -> list[int]:
        """What is to be read before the next token is drawn."""
        return [*self.request.prompt.input_ids, *self.tokens]

    def uniforms(self) -> NDArray[np.float64]:
        """Of all its tokens, those already drawn included."""
        settings = replace(self.request.settings, max_response_tokens=self.limit)
        return rollout_uniforms(settings, *self.request.key)

    def rollout(self, reason: StopReason, version: int, text: str) -> Rollout:
        settings = self.request.settings
        none = np.zeros((0, settings.num_top_logprobs), np.float32)
        tops = np.stack(self.top_logprobs) if self.top_logprobs else none
        return Rollout(
            problem_uid=self.request.prompt.problem_uid,
            sample_index=self.request.sample_index,
            prompt_ids=self.request.prompt.input_ids,
            response_ids=self.tokens,
            sampler_logprobs=self.logprobs,
            stop_reason=reason,
            policy_version=version if self.first_version is None else self.first_version,
            text=text,
            later_versions=tuple(self.later_versions),
            top_logprobs=tops if settings.num_top_logprobs else None,
        )


@dataclass(frozen=True, slots=True)
class Burst:
    """What some steps drew, on the host: (steps, B)."""

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    top_logprobs: NDArray[np.float32] | None  # (steps, B, k)


class Running:
    """The rollouts in the slots, slot by slot."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        vocab_size: int,
        overseer: Overseer | None = None,
    ) -> None:
        self.tokenizer, self.overseer = tokenizer, overseer
        self.is_stop: NDArray[np.bool_] = np.zeros(vocab_size, np.bool_)
        self.is_stop[[token for token in stop_ids if token < vocab_size]] = True
        self._stop_strings: dict[tuple[str, ...], StopStrings] = {}
        self.clear()

    def clear(self) -> None:
        self.slots: list[Begun] = []
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)  # of each slot
        self._free: list[int] = []
        self._tokens: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._logprobs: NDArray[np.float64] = np.zeros((0, 0))
        self._uniforms: NDArray[np.float64] = np.zeros((0, 0))
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._limits: NDArray[np.int64] = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.slots)

    # -------------------------------------------------------------------------
    # Slots

    def admit(self, begun: Sequence[Begun]) -> None:
        """Put these into the next slots."""
        self._make_room(len(begun), max(each.limit for each in begun))
        rows = [self._free.pop() for _ in begun]
        for row, each in zip(rows, begun, strict=True):
            count, uniforms = len(each.tokens), each.uniforms()
            self._tokens[row, :count] = each.tokens
            self._logprobs[row, :count] = each.logprobs
            self._uniforms[row, : len(uniforms)] = uniforms
            self._counts[row], self._limits[row] = count, each.limit
            if self.overseer is not None:
                self.overseer.began(row, each.request, count)
        self.slots.extend(begun)
        self._rows = np.concatenate([self._rows, np.array(rows, np.int64)])

    def _make_room(self, num_rollouts: int, limit: int) -> None:
        rows, columns = self._tokens.shape
        more = max(0, num_rollouts - len(self._free))
        if more or limit > columns:
            grow = ((0, more), (0, max(0, limit - columns)))
            self._tokens = np.pad(self._tokens, grow)
            self._logprobs, self._uniforms = np.pad(self._logprobs, grow), np.pad(self._uniforms, grow)
            self._counts, self._limits = np.pad(self._counts, (0, more)), np.pad(self._limits, (0, more))
            self._free.extend(reversed(range(rows, rows + more)))

    def moved(self, to: Sequence[int], origin: Sequence[int], num_slots: int) -> None:
        """As `SlotCache.release` moved slots."""
        for slot, source in zip(to, origin, strict=True):
            self.slots[slot] = self.slots[source]
        self._rows[list(to)] = self._rows[list(origin)]
        del self.slots[num_slots:]
        self._rows = self._rows[:num_slots]

    def reorder(self, order: NDArray[np.int64]) -> None:
        self.slots = [self.slots[slot] for slot in order.tolist()]
        self._rows = self._rows[order]

    # -------------------------------------------------------------------------
    # Tokens

    def uniforms(self, num_steps: int) -> NDArray[np.float64]:
        """Of the next tokens: (num_steps, B). What a rollout would draw beyond its limit is thrown away."""
        columns = self._counts[self._rows] + np.arange(num_steps)[:, None]
        return self._uniforms[self._rows, np.minimum(columns, self._limits[self._rows] - 1)]

    @property
    def have_stop_strings(self) -> bool:
        return any(begun.request.settings.stop_strings for begun in self.slots)

    def drew(self, burst: Burst) -> dict[int, StopReason]:
        """Write down what was drawn, as far as each rollout goes. Returns which slots have ended, and why.

        Where stop strings are asked for, a burst has to be of one step. The overseer's word counts at a rollout's last
        token, too.
        """
        rows, before = self._rows, self._counts[self._rows]
        limits, num_steps = self._limits[rows], len(burst.tokens)
        columns = before + np.arange(num_steps)[:, None]  # (steps, B)
        inside = columns < limits
        where = np.broadcast_to(rows, columns.shape)[inside], columns[inside]
        self._tokens[where], self._logprobs[where] = burst.tokens[inside], burst.logprobs[inside]
        stops = self.is_stop[burst.tokens]
        counts = np.minimum(before + np.where(stops.any(0), stops.argmax(0) + 1, num_steps), limits)
        stopped = self.is_stop[self._tokens[rows, counts - 1]]
        if self.have_stop_strings:
            assert num_steps == 1
            stopped |= [self._ends_in_stop_string(slot, counts[slot]) for slot in range(len(self))]
        ended: NDArray[np.bool_] = stopped | (counts >= limits)
        halted: NDArray[np.bool_] = np.zeros(len(self), np.bool_)
        if self.overseer is not None:
            halts = self.overseer.drew(rows, before, counts - before, burst.logprobs, burst.top_logprobs)
            halted = halts > 0
            counts = np.where(halted, before + halts, counts)
        self._counts[rows] = counts
        if burst.top_logprobs is not None:
            for slot, begun in enumerate(self.slots):
                num_drawn, k = int(counts[slot] - before[slot]), begun.request.settings.num_top_logprobs
                if k:
                    begun.top_logprobs.extend(burst.top_logprobs[:num_drawn, slot, :k])
        reasons: list[StopReason] = np.where(halted, "confidence", np.where(stopped, "stop", "length")).tolist()
        return {slot: reasons[slot] for slot in np.flatnonzero(ended | halted).tolist()}

    def _ends_in_stop_string(self, slot: int, count: int) -> bool:
        strings = self.slots[slot].request.settings.stop_strings
        if not strings:
            return False
        if strings not in self._stop_strings:
            self._stop_strings[strings] = StopStrings(self.tokenizer, strings)
        return self._stop_strings[strings].ended_by(self._tokens[self._rows[slot], :count])

    def collect(self, slots: Sequence[int], version: int) -> list[Begun]:
        """What was drawn in these slots, by this version of the policy; the slots are to be released next."""
        collected = []
        for slot in slots:
            begun, row = self.slots[slot], int(self._rows[slot])
            start, count = len(begun.tokens), int(self._counts[row])
            if count > start and begun.first_version is None:
                begun.first_version = version
            elif count > start and begun.newest_version != version:
                begun.later_versions.append((start, version))
            begun.tokens = self._tokens[row, :count].tolist()
            begun.logprobs = self._logprobs[row, :count].tolist()
            if self.overseer is not None:
                self.overseer.ended(row, begun.request, count)
            self._free.append(row)
            collected.append(begun)
        return collected

    def text_ids(self, begun: Begun) -> list[int]:
        """A response without its stop token."""
        stopped = bool(begun.tokens) and bool(self.is_stop[begun.tokens[-1]])
        return begun.tokens[:-1] if stopped else begun.tokens
