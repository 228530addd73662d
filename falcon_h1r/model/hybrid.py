"""The Falcon-H1 forward on one packed row: documents share a row and nothing else.

Each layer runs attention and a Mamba2 mixer side by side on the same normed input, then a gated MLP:

    u  = RMSNorm(h)
    h += ssm_out * Mamba2(ssm_in * u) + attention_out * Attention(attention_in * u)
    h += MLP(RMSNorm(h))

(Falcon-H1 report, arXiv 2507.22448; the scalars are its muP forward multipliers.) The weights live in
transformers' FalconH1ForCausalLM, untouched, so that checkpoints load and save as anybody's. The arithmetic is
ours because transformers' own path lets documents of one row see each other, in the Mamba half without a word.

Shapes: T tokens of the row, E hidden, H heads of width d, K KV heads, C convolution channels. Norms, rotations
and the scan run in float32 at least, and never below the dtype of their inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import FalconH1ForCausalLM
from transformers.models.falcon_h1.modeling_falcon_h1 import (
    FalconH1Attention,
    FalconH1DecoderLayer,
    FalconH1Mixer,
    FalconH1RMSNorm,
)

from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.model.attention import bucketed_attention
from falcon_h1r.model.conv import packed_conv
from falcon_h1r.model.row import Row
from falcon_h1r.model.ssd import ssd_scan


@dataclass(slots=True)
class LayerStates:
    """What decoding continues from, taken at each document's end."""

    keys: Tensor  # (T, K, d), after rotation
    values: Tensor  # (T, K, d)
    conv: Tensor  # (num_documents, C, kernel - 1): the last inputs of the convolution, oldest first
    ssm: Tensor  # (num_documents, H, P, N)


def packed_hidden_states(model: FalconH1ForCausalLM, batch: PackedBatch) -> Tensor:
    """Final hidden states of a packed row, after the last norm: (T, E)."""
    return _forward(model, batch, with_states=False)[0]


def packed_prefill(model: FalconH1ForCausalLM, batch: PackedBatch) -> tuple[Tensor, list[LayerStates]]:
    """Hidden states (T, E) and, for every layer, the states at each document's end."""
    return _forward(model, batch, with_states=True)


def _forward(model: FalconH1ForCausalLM, batch: PackedBatch, with_states: bool) -> tuple[Tensor, list[LayerStates]]:
    row = Row.from_batch(batch)
    rotation = rotary_angles(model, batch.position_ids)
    hidden = model.model.embed_tokens(batch.input_ids) * model.model.embedding_multiplier  # (T, E)
    states: list[LayerStates] | None = [] if with_states else None
    for layer in model.model.layers:
        hidden = hybrid_layer(layer, hidden, row, rotation, states)
    return rms_norm(hidden, model.model.final_layernorm), states or []


def hybrid_layer(
    layer: FalconH1DecoderLayer,
    hidden: Tensor,
    row: Row,
    rotation: tuple[Tensor, Tensor],
    states: list[LayerStates] | None = None,
) -> Tensor:
    """One layer on a packed row: (T, E) -> (T, E). Appends to `states` where it is given."""
    normed = rms_norm(hidden, layer.input_layernorm)
    attention, keys, values = packed_attention(layer.self_attn, normed * layer.attention_in_multiplier, row, rotation)
    mixed, conv, ssm = packed_mixer(layer.mamba, normed, row, with_states=states is not None)
    hidden = hidden + mixed * layer.ssm_out_multiplier + attention * layer.attn_out_multiplier
    if states is not None:
        assert conv is not None and ssm is not None
        states.append(LayerStates(keys, values, conv, ssm))
    return hidden + layer.feed_forward(rms_norm(hidden, layer.pre_ff_layernorm))


# -----------------------------------------------------------------------------
# Norms and rotations


def rms_norm(hidden: Tensor, norm: FalconH1RMSNorm) -> Tensor:
    """transformers' RMSNorm without its cast to float32 when the input is float64."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * normed.to(hidden.dtype)


def gated_norm(mixer: FalconH1Mixer, outputs: Tensor, gate: Tensor) -> Tensor:
    """The mixer's gate, and its RMSNorm over each group's channels where the checkpoint has one: (..., C)."""
    gate = F.silu(gate.to(outputs.dtype))
    if not mixer.mamba_rms_norm:
        return outputs * gate
    norm = mixer.norm
    if not norm.norm_before_gate:
        outputs = outputs * gate
    grouped = outputs.unflatten(-1, (norm.n_groups, -1))
    grouped = grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    outputs = norm.weight * grouped.flatten(-2)
    return outputs * gate if norm.norm_before_gate else outputs


def rotary_angles(model: FalconH1ForCausalLM, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles: two of (T, 1, d), in the model's dtype but not below float32."""
    inv_freq = model.model.rotary_emb.inv_freq
    wide = torch.promote_types(model.dtype, torch.float32)
    angles = position_ids[:, None].to(wide) * inv_freq.to(wide)
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    scaling = model.model.rotary_emb.attention_scaling
    return angles.cos() * scaling, angles.sin() * scaling


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of (T, H, d)."""
    cos, sin = rotation
    first, second = heads.chunk(2, dim=-1)
    return (heads * cos + torch.cat([-second, first], dim=-1) * sin).to(heads.dtype)


# -----------------------------------------------------------------------------
# Attention


def project_heads(
    attention: FalconH1Attention, hidden: Tensor, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, H, d), keys and values (T, K, d); queries and keys rotated."""
    query = attention.q_proj(hidden).unflatten(-1, (-1, attention.head_dim))
    key = (attention.k_proj(hidden) * attention.key_multiplier).unflatten(-1, (-1, attention.head_dim))
    value = attention.v_proj(hidden).unflatten(-1, (-1, attention.head_dim))
    return rotate(query, rotation), rotate(key, rotation), value


def packed_attention(
    attention: FalconH1Attention, hidden: Tensor, row: Row, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention within each document: outputs (T, E), keys and values (T, K, d)."""
    query, key, value = project_heads(attention, hidden, rotation)
    attended = bucketed_attention(query, key, value, row, attention.scaling)
    return attention.o_proj(attended.flatten(1)), key, value


# -----------------------------------------------------------------------------
# Mamba2 mixer


def project_mixer(mixer: FalconH1Mixer, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gate (..., C_inner), the convolution's input (..., C) and dt before its bias (..., H)."""
    projected = mixer.in_proj(hidden * mixer.ssm_in_multiplier) * mixer.mup_vector.flatten().to(hidden.dtype)
    return projected.split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)


def split_conv(mixer: FalconH1Mixer, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution's output as x (..., H, P), B and C (..., G, N)."""
    group_states = mixer.n_groups * mixer.ssm_state_size
    x, B, C = convolved.split([mixer.intermediate_size, group_states, group_states], dim=-1)
    return (
        x.unflatten(-1, (mixer.num_heads, mixer.head_dim)),
        B.unflatten(-1, (mixer.n_groups, -1)),
        C.unflatten(-1, (mixer.n_groups, -1)),
    )


def step_sizes(mixer: FalconH1Mixer, dt: Tensor) -> Tensor:
    """softplus(dt + bias) within the configured limits: (..., H), float32 at least."""
    wide = torch.promote_types(dt.dtype, torch.float32)
    return F.softplus(dt.to(wide) + mixer.dt_bias.to(wide)).clamp(*mixer.time_step_limit)


def decay_rates(mixer: FalconH1Mixer) -> Tensor:
    """A = -exp(A_log): (H), float32 at least."""
    return -torch.exp(mixer.A_log.to(torch.promote_types(mixer.A_log.dtype, torch.float32)))


def packed_mixer(
    mixer: FalconH1Mixer, hidden: Tensor, row: Row, with_states: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The Mamba2 mixer on a packed row: outputs (T, E) and, if asked, convolution and SSM states by document."""
    gate, conv_input, dt = project_mixer(mixer, hidden)
    convolved = packed_conv(conv_input, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, row.position_ids)
    x, B, C = split_conv(mixer, convolved)
    outputs, ssm = ssd_scan(
        x, step_sizes(mixer, dt), decay_rates(mixer), B, C, mixer.D, row.seq_idx, return_final_states=with_states
    )
    mixed = mixer.out_proj(gated_norm(mixer, outputs.flatten(1), gate).to(hidden.dtype))
    conv = _conv_tails(conv_input, row, mixer.conv_kernel_size - 1) if with_states else None
    return mixed, conv, ssm


def _conv_tails(conv_input: Tensor, row: Row, width: int) -> Tensor:
    """The last `width` inputs of each document, zeros before its start: (num_documents, C, width)."""
    back = torch.arange(width - 1, -1, -1, device=conv_input.device)
    ends = row.document_ends
    index = ends[:, None] - back  # (documents, width)
    inside = row.position_ids[ends][:, None] >= back
    tails = conv_input[index.clamp(min=0)] * inside[..., None].to(conv_input.dtype)
    return tails.transpose(1, 2)
