"""The sampler in plain torch: requests join as others end, a group's prompt is read once, states are forked.

A row of the running batch is a slot. Every iteration reads waiting prompts into free slots, feeds each slot the token
that it drew last, and draws the next. Slots that have ended are released at once, and nobody else's memory is copied
for it (falcon_h1r.model.decode_cache). The same calls give the same rollouts, bit by bit; other company in the batch
changes a rollout by rounding alone, since its random numbers are its own.

The policy's own module samples, so that there is nothing to sync and its logprobs are the trainer's; or, where a dtype
is asked for, a copy that `load_weights` refreshes (falcon_h1r.rollout.weights_copy).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import FalconH1ForCausalLM

from falcon_h1r.data.tokenisation import stop_token_ids
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.model.decode import decode_step
from falcon_h1r.model.decode_cache import DocumentState, SlotCache
from falcon_h1r.model.decode_graphs import DecodeGraphs
from falcon_h1r.model.decode_prefill import read_documents
from falcon_h1r.model.decode_weights import DecodeWeights, decode_weights
from falcon_h1r.rollout.drawing import Drawn, DrawRules, draw_tokens
from falcon_h1r.rollout.running import Begun, Burst, Running
from falcon_h1r.rollout.sampler import (
    Overseer,
    Prompt,
    RolloutKey,
    RolloutRequest,
    SamplingSettings,
    draw_all,
)
from falcon_h1r.rollout.weights_copy import are_whole, empty_copy, fill
from falcon_h1r.types import Rollout, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Steps between two looks of the host at what was drawn. A look makes a GPU wait; a slot that has ended decodes on until
# the next one, in vain.
BURST_STEPS = {"cpu": 1, "cuda": 8}
ADMITTED_SHARE = 16  # prompts are read once this fraction of the slots is free: a row of one prompt is slow to read


class TorchSampler:
    """Generates with the policy's own module or a copy of it. See `falcon_h1r.rollout.sampler.Sampler`."""

    def __init__(
        self,
        model: FalconH1ForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        max_slots: int = 512,
        on_finished: Callable[[int], None] | None = None,
        watch: Watch | None = None,
        prefill_tokens: int = 8192,
        dtype: torch.dtype | None = None,
        use_graphs: bool = False,
        overseer: Overseer | None = None,
    ) -> None:
        """
        Args:
            max_slots: rows generated at once; bounds the memory of the caches.
            on_finished: told the number of tokens of each finished rollout, for a progress bar.
            watch: told of every decoded token; where the run is to stop, sampling raises StopRequested.
            prefill_tokens: of prompts read at once; a longer prompt is read in chunks of so many.
            dtype: of a copy of the weights to sample from. None: the model itself, which has to be whole while
                rollouts are drawn, as `Engine.whole` makes it.
            use_graphs: record decode steps as CUDA graphs (falcon_h1r.model.decode_graphs); the caches are then kept
                between calls.
            overseer: sees every token drawn, and may end rollouts inside the running batch, with reason "confidence".
        """
        self.tokenizer, self.max_slots, self.prefill_tokens = tokenizer, max_slots, prefill_tokens
        self.on_finished, self.watch = on_finished, watch or Watch()
        self.policy_version = 0
        self.model = model if dtype is None else empty_copy(model, dtype)
        self.has_copy, self._is_filled = dtype is not None, True
        if dtype is not None:
            self._is_filled = are_whole(model)
            if self._is_filled:
                fill(self.model, model.named_parameters(), model)
        stop_ids = stop_token_ids(tokenizer)
        self.stop_ids = torch.tensor(stop_ids, device=model.device)
        self._running = Running(tokenizer, stop_ids, model.config.vocab_size, overseer)
        self._num_overseen = 0 if overseer is None else overseer.num_top_logprobs
        self.burst_steps = BURST_STEPS.get(model.device.type, 1)
        self._num_submitted = self._num_groups = 0
        self.use_graphs = use_graphs
        self._graphs: DecodeGraphs | None = None
        self._weights: DecodeWeights | None = None
        self._forget()

    def _forget(self) -> None:
        """Nothing runs and nothing waits."""
        self._running.clear()
        self._waiting: deque[Begun] = deque()
        self._keys: set[RolloutKey] = set()  # of all that runs or waits
        self._ended: list[Rollout] = []
        self._shared: tuple[int, DocumentState] | None = None  # the group whose members have not all begun
        self._cache: SlotCache | None = None
        self._logits: Tensor | None = None  # (B, V), where the next token can be drawn of all slots
        self._newest: Tensor | None = None  # (B), tokens drawn and not yet read
        self._rules: DrawRules | None = None
        self._is_stale = True

    # -------------------------------------------------------------------------
    # The protocol

    @property
    def shares_weights(self) -> bool:
        """Whether it samples with the trainer's own module."""
        return not self.has_copy

    def ignore_stop_tokens(self) -> None:
        """Let every rollout run to its limit, or its stop string: what a benchmark of given lengths wants."""
        self._running.is_stop[:] = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits, or has ended and was not returned yet."""
        return not (self._running.slots or self._waiting or self._ended)

    @property
    def free_slots(self) -> int:
        return max(0, self.max_slots - len(self._running) - len(self._waiting))

    def submit(self, requests: Iterable[RolloutRequest]) -> None:
        """See `Sampler.submit`.

        Raises:
            ValueError: where a request's problem and sample are in the sampler already; none of them is taken then.
        """
        requests, keys = list(requests), set(self._keys)
        for request in requests:
            if request.key in keys:
                sample, problem = request.sample_index, request.prompt.problem_uid
                raise ValueError(f"sample {sample} of {problem} is being drawn already")
            keys.add(request.key)
        self._keys = keys
        previous: RolloutRequest | None = None
        for request in requests:
            together = previous is not None and previous.prompt == request.prompt
            if not together or request.partial is not None or (previous is not None and previous.partial is not None):
                self._num_groups += 1
            begun = Begun.of(request, self._num_submitted, self._num_groups)
            self._num_submitted += 1
            previous = request
            if len(begun.tokens) >= begun.limit:
                self._ended += self._finished([(begun, "length")])
            else:
                self._waiting.append(begun)

    @torch.no_grad()
    def advance(self, num_tokens: int) -> list[Rollout]:
        """See `Sampler.advance`."""
        try:
            done = 0
            while done < num_tokens and (self._running.slots or self._waiting):
                done += self._iterate(num_tokens - done)
        except StopRequested:
            self._forget()
            raise
        ended, self._ended = self._ended, []
        return ended

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[Rollout]:
        """See `Sampler.abort`. In the order in which they were submitted."""
        wanted = None if keys is None else set(keys)

        def is_wanted(begun: Begun) -> bool:
            return wanted is None or begun.request.key in wanted

        slots = [slot for slot, begun in enumerate(self._running.slots) if is_wanted(begun)]
        taken = self._release(slots)
        taken += [begun for begun in self._waiting if is_wanted(begun)]
        self._waiting = deque(begun for begun in self._waiting if not is_wanted(begun))
        self._rest_if_idle()
        return self._finished([(begun, "abort") for begun in sorted(taken, key=lambda each: each.order)])

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        """See `Sampler.generate`. What was submitted before goes on meanwhile."""
        self._is_stale = True  # the trainer may have moved the weights that it shares
        rollouts, others = draw_all(self, prompts, settings, self.burst_steps)
        self._ended = others + self._ended
        return rollouts

    def load_weights(self, policy: Any) -> None:
        """See `Sampler.load_weights`. What runs is read anew by the new policy before it goes on.

        The module itself may be shared with the trainer: then only the version moves.
        """
        self._requeue()
        if self.has_copy:
            fill(self.model, policy.full_weights(), policy.model)
            self._is_filled = True
        self.policy_version += 1
        self._is_stale = True

    # -------------------------------------------------------------------------
    # An iteration

    def _iterate(self, most_steps: int) -> int:
        """Read the last tokens, admit, draw. Returns how many tokens each slot drew."""
        self.watch.beat("sampling")
        self.watch.check()
        self._follow_weights()
        self._tidy()
        if self._newest is not None:
            self._logits = self._step(self._newest)
            self._newest = None
        self._admit()
        num_steps = 1 if self._running.have_stop_strings else min(most_steps, self.burst_steps)
        burst = self._draw(num_steps)
        ended = self._running.drew(burst)
        released = self._release(list(ended))
        self._ended += self._finished(list(zip(released, ended.values(), strict=True)))
        self._rest_if_idle()
        return num_steps

    def _follow_weights(self) -> None:
        if not self._is_stale:
            return
        if not self._is_filled:
            raise RuntimeError("the sampler's copy has no weights yet: load_weights comes before the first rollout")
        if self._weights is None:
            self._weights = decode_weights(self.model)
        else:
            self._weights.refresh()
        self._is_stale = False

    def _tidy(self) -> None:
        """Sort slots by length where that spares reading."""
        if self._cache is None or self._newest is None or (order := self._cache.better_order()) is None:
            return
        self._cache.reorder(order)
        self._running.reorder(order)
        self._newest = self._newest[torch.from_numpy(order).to(self._newest.device)]
        self._rules = None

    def _step(self, newest: Tensor) -> Tensor:
        assert self._weights is not None and self._cache is not None
        if not self.use_graphs:
            return decode_step(self._weights, self._cache, newest)
        if self._graphs is None or self._graphs.cache is not self._cache:
            self._graphs = DecodeGraphs(self._weights, self._cache)
        return self._graphs.step(newest)

    def _admit(self) -> None:
        """Read waiting requests' documents into free slots, once a group, and fork their states."""
        free = self.max_slots - len(self._running)
        if not self._waiting or free == 0 or (self._running.slots and free < min(len(self._waiting), self._quantum)):
            return
        if self._cache is None:
            num_slots = self.max_slots if self.use_graphs else min(self.max_slots, len(self._waiting))
            self._cache = SlotCache(self.model, num_slots, self.model.device)
        admitted: list[list[Begun]] = []
        num_tokens = 0
        while self._waiting and free:
            group = self._waiting[0].group
            cost = 0 if self._is_shared(group) else len(self._waiting[0].document)
            if admitted and num_tokens + cost > self.prefill_tokens:
                break
            num_tokens += cost
            members = []
            while self._waiting and free and self._waiting[0].group == group:
                members.append(self._waiting.popleft())
                free -= 1
            admitted.append(members)
        self._fork(admitted)

    @property
    def _quantum(self) -> int:
        return max(1, self.max_slots // ADMITTED_SHARE)

    def _is_shared(self, group: int) -> bool:
        return self._shared is not None and self._shared[0] == group

    def _fork(self, groups: Sequence[Sequence[Begun]]) -> None:
        """Put the members of each group into slots, going on from their document's state."""
        assert self._cache is not None
        unread = [members for members in groups if not self._is_shared(members[0].group)]
        documents = [members[0].document for members in unread]
        states = dict(
            zip(
                (members[0].group for members in unread),
                read_documents(self.model, documents, self.prefill_tokens) if documents else [],
                strict=True,
            )
        )
        if self._shared is not None:
            states.setdefault(*self._shared)
        logits = [] if self._logits is None else [self._logits]
        self._cache.make_slots(len(self._running) + sum(map(len, groups)), self.max_slots)
        for members in groups:
            state = states[members[0].group]
            self._cache.admit(state, len(members))
            logits.append(state.logits.expand(len(members), -1))
        self._logits = torch.cat(logits)
        self._running.admit([begun for members in groups for begun in members])
        self._rules = None
        last = groups[-1][0].group
        is_split = bool(self._waiting) and self._waiting[0].group == last
        if not is_split:
            self._shared = None
        elif not self._is_shared(last):
            self._shared = last, states[last].own()

    def _draw(self, num_steps: int) -> Burst:
        """Draw so many tokens in every slot, reading all but the last of them."""
        assert self._logits is not None
        if self._rules is None:
            settings = [begun.request.settings for begun in self._running.slots]
            self._rules = DrawRules.of(settings, self._logits.device, self._num_overseen)
        uniforms = torch.from_numpy(self._running.uniforms(num_steps)).to(self._logits.device)
        drawn: list[Drawn] = []
        for step in range(num_steps):
            if step:
                self._logits = self._step(drawn[-1].tokens)
            drawn.append(draw_tokens(self._logits, uniforms[step], self._rules))
        self._newest, self._logits = drawn[-1].tokens, None
        tops = [each.top_logprobs for each in drawn if each.top_logprobs is not None]
        return Burst(
            tokens=torch.stack([each.tokens for each in drawn]).cpu().numpy(),
            logprobs=torch.stack([each.logprobs for each in drawn]).double().cpu().numpy(),
            top_logprobs=torch.stack(tops).cpu().numpy() if tops else None,
        )

    # -------------------------------------------------------------------------
    # Ends

    def _release(self, slots: Sequence[int]) -> list[Begun]:
        """Take rollouts out of their slots."""
        if not slots:
            return []
        assert self._cache is not None
        collected = self._running.collect(slots, self.policy_version)
        to, origin = self._cache.release(slots)
        left = self._cache.num_slots
        self._running.moved(to, origin, left)
        if self._newest is not None:
            if to:
                target, source = (torch.tensor(each, device=self._newest.device) for each in (to, origin))
                self._newest[target] = self._newest[source]
            self._newest = self._newest[:left]
        self._rules = None
        return collected

    def _requeue(self) -> None:
        """Let all that runs wait again, in front, for its tokens to be read by other weights."""
        self._shared = None
        if self._running.slots:
            begun = self._release(range(len(self._running)))
            self._waiting.extendleft(reversed(sorted(begun, key=lambda each: each.order)))
            for each in begun:  # no two have drawn the same
                if each.tokens:
                    self._num_groups += 1
                    each.group = self._num_groups
        self._rest_if_idle()

    def _rest_if_idle(self) -> None:
        """Give the caches' memory back while nothing runs: the trainer has use for it."""
        if not self._running.slots:
            self._logits, self._newest, self._rules = None, None, None
            if not self.use_graphs:
                self._cache = None
            self._running.clear()
            if not self._waiting:
                self._shared = None
                self._is_stale = True  # what the trainer does meanwhile is not seen from here

    def _finished(self, ended: Sequence[tuple[Begun, StopReason]]) -> list[Rollout]:
        if not ended:
            return []
        texts = self.tokenizer.batch_decode([self._running.text_ids(begun) for begun, _ in ended])
        rollouts = []
        for (begun, reason), text in zip(ended, texts, strict=True):
            self._keys.discard(begun.request.key)
            rollouts.append(begun.rollout(reason, self.policy_version, text))
            if self.on_finished is not None and reason != "abort":
                self.on_finished(len(begun.tokens))
        return rollouts
