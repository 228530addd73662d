"""Decoding one token at a time for a batch of slots.

A slot is one running response. Slots have lengths of their own, so prompts of different lengths need no padding:
each attends to its own first cache entries. Their memory is falcon_h1r.model.decode_cache; documents are read by
falcon_h1r.model.decode_prefill, once, and forked for the rollouts of a group.

Shapes: B slots, E hidden, H heads of width d, K KV heads, S cache entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.model.decode_cache import LayerCache, SlotCache, Span
from falcon_h1r.model.decode_kernels import DecodeKernels, choose_decode_kernels
from falcon_h1r.model.decode_weights import DecodeWeights, LayerInputs, LayerWeights
from falcon_h1r.model.hybrid import rotary_angles, split_conv


def decode_step(weights: DecodeWeights, cache: SlotCache, input_ids: Tensor) -> Tensor:
    """Feed one token to every slot in use, updating the cache in place: (B) -> logits of the next token (B, V)."""
    cache.reserve(cache.longest + 1)
    logits = step_over(weights, cache, input_ids, cache.spans())
    cache.advanced()
    return logits


def step_over(weights: DecodeWeights, cache: SlotCache, input_ids: Tensor, spans: Sequence[Span]) -> Tensor:
    """The step itself, which asks the device nothing: slots 0..B-1, attending by these spans."""
    num_slots = len(input_ids)
    lengths = cache.lengths[:num_slots]
    rotation = rotary_angles(weights.model, lengths)
    hidden = weights.embed(input_ids)  # (B, E)
    kernels = choose_decode_kernels(hidden.device.type, hidden.dtype)
    masks = [attention_mask(lengths[span.start : span.stop], span.entries, hidden.dtype) for span in spans]
    heads, capacity = cache.layers[0].keys.shape[1:3]
    first = torch.arange(num_slots * heads, device=input_ids.device) * capacity
    entries = first + lengths.repeat_interleave(heads)  # where each slot's and head's new entry goes
    for layer, memory in zip(weights.layers, cache.layers, strict=True):
        inputs = layer.inputs(hidden, rotation)
        memory.keys.flatten(0, 2).index_copy_(0, entries, inputs.key.flatten(0, 1))
        memory.values.flatten(0, 2).index_copy_(0, entries, inputs.value.flatten(0, 1))
        attended = attend(inputs.query, memory, spans, masks, layer.scaling)
        scanned = mixer_step(layer, memory, inputs, kernels)
        hidden = layer.outputs(hidden, scanned, inputs.gate, attended)
    return weights.logits(hidden)


def attention_mask(lengths: Tensor, entries: int, dtype: torch.dtype) -> Tensor:
    """0 where a slot may look, its newest entry included, else -inf: (B) -> (B, 1, 1, entries)."""
    hidden = torch.arange(entries, device=lengths.device) > lengths[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=lengths.device).masked_fill_(hidden, -torch.inf)[:, None, None]


def attend(query: Tensor, memory: LayerCache, spans: Sequence[Span], masks: Sequence[Tensor], scaling: float) -> Tensor:
    """(B, H, d) -> (B, H * d). The queries that share a KV head stand under each other, so that none is repeated."""
    grouped = query.unflatten(1, (memory.keys.shape[1], -1))  # (B, K, H / K, d)
    attended = [
        F.scaled_dot_product_attention(
            grouped[span.start : span.stop],
            memory.keys[span.start : span.stop, :, : span.entries],
            memory.values[span.start : span.stop, :, : span.entries],
            attn_mask=mask,
            scale=scaling,
        )
        for span, mask in zip(spans, masks, strict=True)
    ]
    return (attended[0] if len(attended) == 1 else torch.cat(attended)).flatten(1)


def mixer_step(layer: LayerWeights, memory: LayerCache, inputs: LayerInputs, kernels: DecodeKernels) -> Tensor:
    """One token of the convolution and the recurrence for every slot: outputs (B, C_inner)."""
    num_slots, weights = len(inputs.conv), layer.scan
    convolved = kernels.conv(inputs.conv, memory.conv[:num_slots], weights.conv, weights.conv_bias)
    x, B, C = split_conv(layer.mixer, convolved, layer.mixer.num_heads)
    outputs = kernels.state(memory.ssm[:num_slots], x, inputs.dt, weights.A, B, C, weights.D)
    return outputs.flatten(1)
