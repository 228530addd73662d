"""Decoding one token at a time for a batch of slots: KV cache, convolution tail and SSM state of each.

A slot is one running response. Slots have lengths of their own, so prompts of different lengths need no padding:
each attends to its own first `lengths[b]` cache entries. States come from `packed_prefill`, which processed each
prompt once, and are forked for the rollouts of its group.

Shapes: B slots, S cache entries, K KV heads of width d, C convolution channels, H SSM heads (P x N each).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import FalconH1ForCausalLM
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer

from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.model.hybrid import (
    LayerStates,
    ScanWeights,
    add_feed_forward,
    embedded,
    gated_norm,
    packed_prefill,
    project_heads,
    project_mixer,
    rms_norm,
    rotary_angles,
    scaled,
    scan_weights,
    split_conv,
    step_sizes,
)
from falcon_h1r.model.precision import project


@dataclass(slots=True)
class LayerCache:
    """One layer's memory of B slots."""

    keys: Tensor  # (B, K, S, d)
    values: Tensor  # (B, K, S, d)
    conv: Tensor  # (B, C, kernel - 1), oldest first
    ssm: Tensor  # (B, H, P, N), float32 at least
    weights: ScanWeights  # the mixer's, made once for all tokens

    def select(self, slots: Tensor) -> LayerCache:
        keys, values, conv, ssm = (tensor.index_select(0, slots) for tensor in self._tensors())
        return LayerCache(keys, values, conv, ssm, self.weights)

    def joined(self, other: LayerCache) -> LayerCache:
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        keys, values, conv, ssm = (torch.cat(pair) for pair in pairs)
        return LayerCache(keys, values, conv, ssm, self.weights)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.conv, self.ssm


@dataclass(slots=True)
class DecodeState:
    """The memory of B slots: `lengths[b]` tokens of slot b are in the caches."""

    layers: list[LayerCache]
    lengths: Tensor  # (B) int64

    def select(self, slots: Tensor) -> DecodeState:
        """Keep these slots, in this order; an index may repeat, which forks a state."""
        return DecodeState([layer.select(slots) for layer in self.layers], self.lengths.index_select(0, slots))

    def joined(self, other: DecodeState) -> DecodeState:
        """This batch with another's slots appended."""
        layers = [a.joined(b) for a, b in zip(self.layers, other.layers, strict=True)]
        return DecodeState(layers, torch.cat([self.lengths, other.lengths]))


def prefill(model: FalconH1ForCausalLM, prompts: PackedBatch, cache_tokens: int) -> tuple[Tensor, DecodeState]:
    """Process each document of `prompts` once.

    Returns the logits after each prompt (num_documents, V) and its state, with room for `cache_tokens` entries.
    """
    hidden, states = packed_prefill(model, prompts)
    layers = [
        _layer_cache(layer_states, prompts, cache_tokens, scan_weights(layer.mamba))
        for layer, layer_states in zip(model.model.layers, states, strict=True)
    ]
    lengths = torch.tensor(prompts.lengths, device=hidden.device)
    return head_logits(model, hidden[prompts.document_ends]), DecodeState(layers, lengths)


def _layer_cache(states: LayerStates, prompts: PackedBatch, cache_tokens: int, weights: ScanWeights) -> LayerCache:
    """Spread a row's keys and values over slots: (T, K, d) -> (num_documents, K, cache_tokens, d)."""

    def spread(row: Tensor) -> Tensor:
        cache = row.new_zeros(len(prompts.lengths), cache_tokens, *row.shape[1:])
        cache[prompts.seq_idx, prompts.position_ids] = row
        return cache.transpose(1, 2).contiguous()

    return LayerCache(spread(states.keys), spread(states.values), states.conv, states.ssm, weights)


def head_logits(model: FalconH1ForCausalLM, hidden: Tensor) -> Tensor:
    """Logits (..., V), float32 at least."""
    logits = project(model.lm_head, hidden) * model.model.lm_head_multiplier
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def decode_step(model: FalconH1ForCausalLM, state: DecodeState, input_ids: Tensor) -> Tensor:
    """Feed one token to every slot, updating `state` in place: (B) -> logits of the next token (B, V)."""
    rotation = rotary_angles(model, state.lengths)
    slots = torch.arange(len(input_ids), device=input_ids.device)
    longest = int(state.lengths.max()) + 1
    visible = torch.arange(longest, device=input_ids.device) <= state.lengths[:, None]  # (B, S)
    hidden = embedded(model, input_ids)  # (B, E)
    for layer, cache in zip(model.model.layers, state.layers, strict=True):
        normed = rms_norm(hidden, layer.input_layernorm)
        attention_input = scaled(normed, layer.attention_in_multiplier)
        query, key, value = project_heads(layer.self_attn, attention_input, rotation)
        cache.keys[slots, :, state.lengths] = key
        cache.values[slots, :, state.lengths] = value
        attended = F.scaled_dot_product_attention(
            query[:, :, None],  # (B, H, 1, d)
            cache.keys[:, :, :longest],
            cache.values[:, :, :longest],
            attn_mask=visible[:, None, None, :],
            scale=layer.self_attn.scaling,
            enable_gqa=True,
        )
        attention = project(layer.self_attn.o_proj, attended.flatten(1))
        mixed = mixer_step(layer.mamba, cache, normed)
        hidden = hidden + mixed * layer.ssm_out_multiplier + attention * layer.attn_out_multiplier
        hidden = add_feed_forward(layer, hidden)
    state.lengths += 1
    return head_logits(model, rms_norm(hidden, model.model.final_layernorm))


def mixer_step(mixer: FalconH1Mixer, cache: LayerCache, hidden: Tensor) -> Tensor:
    """One token of the Mamba2 mixer for every slot: (B, E) -> (B, E). The recurrence itself, see `ssd_recurrence`."""
    gate, conv_input, dt = project_mixer(mixer, hidden)
    weights = cache.weights
    window = torch.cat([cache.conv, conv_input[..., None]], dim=-1)  # (B, C, kernel)
    cache.conv = window[..., 1:]
    convolved = (window * weights.conv).sum(-1)
    if weights.conv_bias is not None:
        convolved = convolved + weights.conv_bias
    convolved = F.silu(convolved).to(cache.ssm.dtype)
    x, B, C = split_conv(mixer, convolved, mixer.num_heads)

    dt = step_sizes(mixer, dt, weights)  # (B, H)
    heads_per_group = mixer.num_heads // mixer.n_groups
    B, C = (tensor.repeat_interleave(heads_per_group, dim=1) for tensor in (B, C))  # (B, H, N)
    decay = torch.exp(dt * weights.A)
    written = (dt[..., None] * x)[..., None] * B[..., None, :]  # (B, H, P, N)
    cache.ssm = torch.addcmul(written, cache.ssm, decay[..., None, None])
    outputs = (cache.ssm @ C[..., None]).squeeze(-1) + weights.D[:, None] * x  # (B, H, P)
    return project(mixer.out_proj, gated_norm(mixer, outputs.flatten(1), gate))
