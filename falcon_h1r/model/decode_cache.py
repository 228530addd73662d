"""The memory of the slots that decode: KV cache, convolution tail and SSM state of each, in tensors that stay.

Slots 0..B-1 are in use, of `max_slots` for which there is room. A rollout that ends leaves a hole, into which the last
slot moves: what the others hold is not touched. The KV caches grow in blocks of tokens with the longest slot.

A step attends over spans of neighbouring slots, each as far as its longest: `reorder` sorts slots by length where that
spares a good part of what is read.

Shapes: B slots, S cache entries, K KV heads of width d, C convolution channels, H SSM heads (P x N each).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import FalconH1ForCausalLM

from falcon_h1r.model.decode_kernels import by_group, choose_decode_kernels
from falcon_h1r.model.precision import compute_dtype

BLOCK_TOKENS = 128  # by which the caches grow, at least
GROWTH = 4  # ... and at least by this fraction of what they are
SPAN_SLOTS = 32  # that attend together, as far as the longest of them
REORDER_GAIN = 0.1  # share of the entries read that sorting has to spare


@dataclass(slots=True)
class DocumentState:
    """What decoding goes on from after a document: its next token's logits and, by layer, its memory."""

    length: int
    logits: Tensor  # (V)
    keys: list[Tensor]  # (length, K, d), after rotation
    values: list[Tensor]  # (length, K, d)
    conv: list[Tensor]  # (C, kernel - 1), oldest first
    ssm: list[Tensor]  # (H, P, N), float32 at least

    def own(self) -> DocumentState:
        """The same in memory of its own: a view would keep the whole row that it was cut from."""
        parts = ([tensor.clone() for tensor in part] for part in (self.keys, self.values, self.conv, self.ssm))
        return DocumentState(self.length, self.logits.clone(), *parts)


@dataclass(slots=True)
class LayerCache:
    """One layer's memory of all slots."""

    keys: Tensor  # (max_slots, K, S, d)
    values: Tensor  # (max_slots, K, S, d)
    conv: Tensor  # (max_slots, kernel - 1, C), oldest first
    ssm: Tensor  # (max_slots, ...) as falcon_h1r.model.decode_kernels has states, float32 at least


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring slots and how many cache entries they attend over."""

    start: int
    stop: int
    entries: int


class SlotCache:
    """All layers' memory of all slots."""

    def __init__(self, model: FalconH1ForCausalLM, max_slots: int, device: torch.device) -> None:
        self.max_slots, self.num_slots = max_slots, 0
        self.lengths = torch.zeros(max_slots, dtype=torch.int64, device=device)  # of the tokens read so far
        self.host_lengths: NDArray[np.int64] = np.zeros(max_slots, np.int64)
        self.capacity = 0  # S
        dtype = compute_dtype(model)
        wide = torch.promote_types(dtype, torch.float32)
        self.by_group = choose_decode_kernels(device.type, dtype).by_group
        self.num_groups = model.config.mamba_n_groups
        self.layers = []
        for layer in model.model.layers:
            mixer, attention = layer.mamba, layer.self_attn
            heads, width, states = mixer.num_heads, mixer.head_dim, mixer.ssm_state_size
            grouped = (self.num_groups, states, heads // self.num_groups * width)
            kv = (max_slots, model.config.num_key_value_heads, 0, attention.head_dim)
            self.layers.append(
                LayerCache(
                    keys=torch.zeros(kv, dtype=dtype, device=device),
                    values=torch.zeros(kv, dtype=dtype, device=device),
                    conv=torch.zeros(max_slots, mixer.conv_kernel_size - 1, mixer.conv_dim, dtype=dtype, device=device),
                    ssm=torch.zeros(
                        (max_slots, *(grouped if self.by_group else (heads, width, states))), dtype=wide, device=device
                    ),
                )
            )

    @property
    def longest(self) -> int:
        return int(self.host_lengths[: self.num_slots].max(initial=0))

    def make_slots(self, num_slots: int, most: int) -> None:
        """Make room for `num_slots` slots, and for some that may come, up to `most`."""
        if num_slots <= self.max_slots:
            return
        more = min(most, max(num_slots, 2 * self.max_slots)) - self.max_slots
        self.lengths = _with_slots(self.lengths, more)
        self.host_lengths = np.pad(self.host_lengths, (0, more))
        for cache in self.layers:
            cache.keys, cache.values, cache.conv, cache.ssm = (
                _with_slots(tensor, more) for tensor in (cache.keys, cache.values, cache.conv, cache.ssm)
            )
        self.max_slots += more

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` entries a slot, one layer after the other, so that little exists twice."""
        if tokens <= self.capacity:
            return
        wanted = max(tokens, self.capacity + self.capacity // GROWTH)
        capacity = -(-wanted // BLOCK_TOKENS) * BLOCK_TOKENS
        used, kept = self.num_slots, min(self.longest, self.capacity)
        for cache in self.layers:
            cache.keys = _grown(cache.keys, capacity, used, kept)
            cache.values = _grown(cache.values, capacity, used, kept)
        self.capacity = capacity

    def admit(self, document: DocumentState, num_forks: int) -> None:
        """Let the next `num_forks` slots go on from this document."""
        self.reserve(document.length + 1)
        slots = slice(self.num_slots, self.num_slots + num_forks)
        assert slots.stop <= self.max_slots
        for index, cache in enumerate(self.layers):
            cache.keys[slots, :, : document.length] = document.keys[index].transpose(0, 1)
            cache.values[slots, :, : document.length] = document.values[index].transpose(0, 1)
            cache.conv[slots] = document.conv[index].t()
            state = document.ssm[index]
            cache.ssm[slots] = by_group(state, self.num_groups) if self.by_group else state
        self.lengths[slots] = document.length
        self.host_lengths[slots] = document.length
        self.num_slots = slots.stop

    def advanced(self) -> None:
        """Every slot has read one token more."""
        self.lengths[: self.num_slots] += 1
        self.host_lengths[: self.num_slots] += 1

    def release(self, slots: Sequence[int]) -> tuple[list[int], list[int]]:
        """Free these slots; the last ones move into the holes. Returns where slots moved to, and where from."""
        gone, left = set(slots), self.num_slots - len(set(slots))
        to = sorted(slot for slot in gone if slot < left)
        origin = [slot for slot in range(left, self.num_slots) if slot not in gone]
        if to:
            longest = int(self.host_lengths[origin].max())
            target, source = (torch.tensor(each, device=self.lengths.device) for each in (to, origin))
            for tensor in self._by_slot(longest):
                tensor[target] = tensor[source]
            self.host_lengths[to] = self.host_lengths[origin]
        self.lengths[left : self.num_slots] = 0  # a step that is rounded up reads and writes them, too
        self.num_slots = left
        return to, origin

    def better_order(self) -> NDArray[np.int64] | None:
        """Slots from long to short, where steps then read much less."""
        lengths = self.host_lengths[: self.num_slots]
        order = np.argsort(-lengths, kind="stable")
        spared = _entries_read(lengths) - _entries_read(lengths[order])
        return order if spared > REORDER_GAIN * lengths.sum() else None

    def reorder(self, order: NDArray[np.int64]) -> None:
        """Slot i becomes what slot `order[i]` was."""
        index = torch.from_numpy(order).to(self.lengths.device)
        for tensor in self._by_slot(self.longest):
            tensor[: len(order)] = tensor.index_select(0, index)
        self.host_lengths[: len(order)] = self.host_lengths[order]

    def spans(self) -> list[Span]:
        """The slots in use by neighbourhoods; each token about to be read counts."""
        starts = range(0, self.num_slots, SPAN_SLOTS)
        stops = [min(start + SPAN_SLOTS, self.num_slots) for start in starts]
        lengths = self.host_lengths
        return [
            Span(start, stop, int(lengths[start:stop].max()) + 1) for start, stop in zip(starts, stops, strict=True)
        ]

    def _by_slot(self, tokens: int) -> Iterator[Tensor]:
        """Every tensor of the slots, caches as far as `tokens`."""
        yield self.lengths
        for cache in self.layers:
            yield cache.keys[:, :, :tokens]
            yield cache.values[:, :, :tokens]
            yield cache.conv
            yield cache.ssm


def _with_slots(tensor: Tensor, more: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])


def _grown(cache: Tensor, capacity: int, used: int, kept: int) -> Tensor:
    slots, heads, _, width = cache.shape
    grown = cache.new_empty(slots, heads, capacity, width)
    grown[:used, :, :kept] = cache[:used, :, :kept]
    grown[:used, :, kept:].zero_()  # what was never written is masked, which takes finite numbers
    grown[used:].zero_()
    return grown


def _entries_read(lengths: NDArray[np.int64]) -> int:
    spans = (lengths[start : start + SPAN_SLOTS] for start in range(0, len(lengths), SPAN_SLOTS))
    return sum(int(span.max()) * len(span) for span in spans)
