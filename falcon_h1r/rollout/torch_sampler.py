"""The sampler in plain torch: prompts are processed once per group, finished rows leave the batch, others join.

The policy's own module generates, so there is nothing to sync and its logprobs are the trainer's. A row of the
running batch is a slot; when an eighth of the slots is done, or one has reached its limit, they are retired, and
when half are free, waiting prompts are admitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import FalconH1ForCausalLM

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.data.tokenisation import stop_token_ids
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.model.decode import DecodeState, decode_step, prefill
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings, rollout_uniforms
from falcon_h1r.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class _RunningBatch:
    """The slots that are generating. All tensors have B rows; R is the response limit."""

    owners: list[tuple[int, int]]  # (prompt index, sample index) of each slot
    state: DecodeState
    logits: Tensor  # (B, V), of the token to be drawn next
    uniforms: Tensor  # (B, R)
    tokens: Tensor  # (B, R) int64
    logprobs: Tensor  # (B, R)
    counts: Tensor  # (B) int64, tokens drawn
    stopped: Tensor  # (B) bool, drew a stop token

    def select(self, slots: Tensor) -> _RunningBatch:
        owners = [self.owners[slot] for slot in slots.tolist()]
        rows = (tensor.index_select(0, slots) for tensor in self._rows())
        return _RunningBatch(owners, self.state.select(slots), *rows)

    def joined(self, other: _RunningBatch) -> _RunningBatch:
        rows = (torch.cat(pair) for pair in zip(self._rows(), other._rows(), strict=True))
        return _RunningBatch(self.owners + other.owners, self.state.joined(other.state), *rows)

    def _rows(self) -> tuple[Tensor, ...]:
        return self.logits, self.uniforms, self.tokens, self.logprobs, self.counts, self.stopped


class TorchSampler:
    """Generates with the policy's own module. See `falcon_h1r.rollout.sampler.Sampler` for the contract."""

    def __init__(
        self,
        model: FalconH1ForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        max_slots: int = 256,
        on_finished: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """
        Args:
            max_slots: rows generated at once; bounds the memory of the caches.
            on_finished: told the number of tokens of each finished rollout, for a progress bar.
            watch: told of every decoded token; where the run is to stop, `generate` raises StopRequested.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.max_slots = max_slots
        self.on_finished = on_finished
        self.watch = watch or Watch()
        self.policy_version = 0
        self.stop_ids = torch.tensor(stop_token_ids(tokenizer), device=model.device)

    def load_weights(self, policy: Any) -> None:
        """The module is shared with the trainer: only the version moves."""
        self.policy_version += 1

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        """See `Sampler.generate`."""
        waiting = deque((p, s) for p in range(len(prompts)) for s in range(settings.num_samples))
        cache_tokens = max((len(prompt.input_ids) for prompt in prompts), default=0) + settings.max_response_tokens
        finished: dict[tuple[int, int], Rollout] = {}
        running: _RunningBatch | None = None
        while waiting or running is not None:
            self.watch.beat("sampling")
            self.watch.check()
            free = self.max_slots - (len(running.owners) if running is not None else 0)
            if waiting and free > 0 and (running is None or 2 * free >= self.max_slots):
                owners = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                admitted = self._admit(owners, prompts, settings, cache_tokens)
                running = admitted if running is None else running.joined(admitted)
            assert running is not None
            self._draw(running, settings)
            running = self._retire(running, prompts, settings, finished)
            if running is not None:
                newest = running.tokens.gather(1, running.counts[:, None] - 1).squeeze(1)
                running.logits = decode_step(self.model, running.state, newest)
                running.state.lengths -= running.stopped.long()  # done, but not yet retired: it stays where it is
        return [finished[owner] for owner in sorted(finished)]

    def _admit(
        self,
        owners: list[tuple[int, int]],
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        cache_tokens: int,
    ) -> _RunningBatch:
        """Process the owners' prompts in one packed row, each once, and fork their states."""
        prompt_indices = sorted({prompt for prompt, _ in owners})
        documents = [prompts[index].input_ids for index in prompt_indices]
        row = pack_row([Document(ids, [0.0] * len(ids)) for ids in documents])
        row = row.to(self.model.device)
        logits, state = prefill(self.model, row, cache_tokens)
        position = {prompt: slot for slot, prompt in enumerate(prompt_indices)}
        fork = torch.tensor([position[prompt] for prompt, _ in owners], device=logits.device)
        uniforms = [rollout_uniforms(settings, prompts[p].problem_uid, s) for p, s in owners]
        shape = (len(owners), settings.max_response_tokens)
        return _RunningBatch(
            owners=owners,
            state=state.select(fork),
            logits=logits[fork],
            uniforms=torch.from_numpy(np.stack(uniforms)).to(logits.device),
            tokens=torch.zeros(shape, dtype=torch.int64, device=logits.device),
            logprobs=torch.zeros(shape, dtype=logits.dtype, device=logits.device),
            counts=torch.zeros(len(owners), dtype=torch.int64, device=logits.device),
            stopped=torch.zeros(len(owners), dtype=torch.bool, device=logits.device),
        )

    def _draw(self, running: _RunningBatch, settings: SamplingSettings) -> None:
        """Draw the next token of every slot that still runs."""
        column = running.counts.clamp(max=settings.max_response_tokens - 1)[:, None]
        tokens, logprobs = draw_tokens(running.logits, running.uniforms.gather(1, column).squeeze(1), settings)
        going = ~running.stopped[:, None]
        running.tokens.scatter_(1, column, torch.where(going, tokens[:, None], running.tokens.gather(1, column)))
        running.logprobs.scatter_(1, column, torch.where(going, logprobs[:, None], running.logprobs.gather(1, column)))
        running.counts += ~running.stopped
        running.stopped |= torch.isin(tokens, self.stop_ids)

    def _retire(
        self,
        running: _RunningBatch,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        finished: dict[tuple[int, int], Rollout],
    ) -> _RunningBatch | None:
        """Move finished slots out, in bulk: each removal copies the caches of the slots that stay."""
        full = running.counts >= settings.max_response_tokens
        done = running.stopped | full
        num_done = int(done.sum())
        if num_done < len(running.owners) and num_done * 8 < len(running.owners) and not bool(full.any()):
            return running
        ends = done.nonzero().squeeze(1).tolist()
        texts = self.tokenizer.batch_decode([self._text_ids(running, slot) for slot in ends])
        for slot, text in zip(ends, texts, strict=True):
            prompt, sample_index = running.owners[slot]
            count = int(running.counts[slot])
            finished[prompt, sample_index] = Rollout(
                problem_uid=prompts[prompt].problem_uid,
                sample_index=sample_index,
                prompt_ids=prompts[prompt].input_ids,
                response_ids=running.tokens[slot, :count].tolist(),
                sampler_logprobs=running.logprobs[slot, :count].tolist(),
                stop_reason="stop" if bool(running.stopped[slot]) else "length",
                policy_version=self.policy_version,
                text=text,
            )
            if self.on_finished is not None:
                self.on_finished(count)
        return running.select((~done).nonzero().squeeze(1)) if num_done < len(running.owners) else None

    def _text_ids(self, running: _RunningBatch, slot: int) -> list[int]:
        """The response without its stop token."""
        count = int(running.counts[slot]) - int(running.stopped[slot])
        return running.tokens[slot, :count].tolist()


def draw_tokens(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution at `uniforms`: (B, V), (B) -> tokens (B), logprobs (B).

    Logprobs are those of the untruncated distribution; top-p and top-k only restrict what is drawn.
    """
    if settings.temperature == 0.0:
        tokens = logits.argmax(-1)
        return tokens, torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
    logprobs = torch.log_softmax(logits / settings.temperature, dim=-1)
    probabilities = truncated(logprobs.double().exp(), settings.top_p, settings.top_k)
    cumulative = probabilities.cumsum(-1)
    # 1 - u lies in (0, 1]: the first entry that reaches it has a probability above 0.
    threshold = (1.0 - uniforms[:, None]) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def truncated(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero all but the top k, then all but the smallest set that holds `top_p` of what is left: (B, V) -> (B, V)."""
    if top_p >= 1.0 and top_k <= 0:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        ordered[:, top_k:] = 0.0
    share = ordered / ordered.sum(-1, keepdim=True)
    before = share.cumsum(-1) - share
    ordered[before >= top_p] = 0.0
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)
