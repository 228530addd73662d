"""The Falcon-H1 forward on one packed row: documents share a row and nothing else.

Each layer runs attention and a Mamba2 mixer side by side on the same normed input, then a gated MLP:

    u  = RMSNorm(h)
    h += ssm_out * Mamba2(ssm_in * u) + attention_out * Attention(attention_in * u)
    h += MLP(RMSNorm(h))

(Falcon-H1 report, arXiv 2507.22448; the scalars are its muP forward multipliers.) The weights live in
transformers' FalconH1ForCausalLM, untouched, so that checkpoints load and save as anybody's. The arithmetic is
ours because transformers' own path lets documents of one row see each other, in the Mamba half without a word.

Multipliers act where they are cheapest: those of the convolution's inputs on its weights, those of outputs in the
residual sum. Norms, rotations and the scan run in float32 at least, and never below the dtype of their inputs.

Shapes: T tokens of the row, t of them on this rank (t = T without sequence parallelism), E hidden, H heads of width d,
K KV heads, C convolution channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import FalconH1ForCausalLM
from transformers.models.falcon_h1.modeling_falcon_h1 import (
    FalconH1Attention,
    FalconH1DecoderLayer,
    FalconH1Mixer,
    FalconH1MLP,
    FalconH1RMSNorm,
)

from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.model import pointwise
from falcon_h1r.model.kernels import Kernels, choose_kernels
from falcon_h1r.model.precision import compute_dtype, project
from falcon_h1r.model.recompute import run_layer
from falcon_h1r.model.row import Row
from falcon_h1r.model.sequence import ALONE, SequenceGroup, own_groups, spread_queries
from falcon_h1r.model.ssd import final_states

Rotation = tuple[Tensor, Tensor]  # cos and sin of every token's angles: two of (t, 1, d / 2)


Around = Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]


def as_it_is(part: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """For a model whose weights are always whole."""
    return function


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """How a forward is carried out: its speed and its memory, never its results."""

    sequence: SequenceGroup = ALONE
    recompute: str = "none"  # none, layer or selective: see falcon_h1r.model.recompute
    offload: bool = False
    around: Around = (
        as_it_is  # (part of the model, a function of its weights) -> the function, run while they are whole
    )


PLAIN = ForwardPlan()


@dataclass(slots=True)
class LayerStates:
    """What decoding continues from, taken at each document's end."""

    keys: Tensor  # (T, K, d), after rotation
    values: Tensor  # (T, K, d)
    conv: Tensor  # (num_documents, C, kernel - 1): the last inputs of the convolution, oldest first
    ssm: Tensor  # (num_documents, H, P, N)


def packed_hidden_states(model: FalconH1ForCausalLM, batch: PackedBatch, plan: ForwardPlan = PLAIN) -> Tensor:
    """Final hidden states of this rank's tokens of a packed row, after the last norm: (t, E).

    Args:
        batch: the whole row, on every rank of the plan's sequence group; their number has to divide T.
    """
    return _forward(model, batch, plan, states=None)


def packed_prefill(model: FalconH1ForCausalLM, batch: PackedBatch) -> tuple[Tensor, list[LayerStates]]:
    """Hidden states (T, E) and, for every layer, the states at each document's end."""
    states: list[LayerStates] = []
    return _forward(model, batch, PLAIN, states), states


def _forward(
    model: FalconH1ForCausalLM, batch: PackedBatch, plan: ForwardPlan, states: list[LayerStates] | None
) -> Tensor:
    row = Row.from_batch(batch)
    rotation = rotary_angles(model, plan.sequence.local(batch.position_ids))
    embed = plan.around(model.model.embed_tokens, partial(embedded, model))
    hidden = embed(plan.sequence.local(batch.input_ids))  # (t, E)
    for layer in model.model.layers:

        def run(hidden: Tensor, layer: FalconH1DecoderLayer = layer) -> Tensor:
            return hybrid_layer(layer, hidden, row, rotation, plan.sequence, states)

        hidden = run_layer(plan.around(layer, run), hidden, plan.recompute, plan.offload)
    last_norm = model.model.final_layernorm
    normed: Tensor = plan.around(last_norm, rms_norm)(hidden, last_norm)
    return normed


def embedded(model: FalconH1ForCausalLM, input_ids: Tensor) -> Tensor:
    """Token embeddings with their multiplier, in the dtype that the forward computes in: (...) -> (..., E)."""
    embeddings: Tensor = model.model.embed_tokens(input_ids) * model.model.embedding_multiplier
    return embeddings.to(compute_dtype(model))


def hybrid_layer(
    layer: FalconH1DecoderLayer,
    hidden: Tensor,
    row: Row,
    rotation: Rotation,
    sequence: SequenceGroup = ALONE,
    states: list[LayerStates] | None = None,
) -> Tensor:
    """One layer on a packed row: (t, E) -> (t, E). Appends to `states` where it is given."""
    kernels = choose_kernels(hidden.device, hidden.dtype, layer.mamba.chunk_size)
    normed = rms_norm(hidden, layer.input_layernorm)
    attention_input = scaled(normed, layer.attention_in_multiplier)
    attention, keys, values = packed_attention(layer.self_attn, attention_input, row, rotation, kernels, sequence)
    mixed, conv, ssm = packed_mixer(layer.mamba, normed, row, kernels, sequence, with_states=states is not None)
    if states is not None:
        assert conv is not None and ssm is not None
        states.append(LayerStates(keys, values, conv, ssm))
    hidden = torch.add(hidden, mixed, alpha=layer.ssm_out_multiplier)
    hidden = torch.add(hidden, attention, alpha=layer.attn_out_multiplier)
    return add_feed_forward(layer, hidden)


def add_feed_forward(layer: FalconH1DecoderLayer, hidden: Tensor) -> Tensor:
    """The layer's second half, hidden + MLP(RMSNorm(hidden)): (..., E) -> (..., E)."""
    mlp: FalconH1MLP = layer.feed_forward
    normed = rms_norm(hidden, layer.pre_ff_layernorm)
    activated = pointwise.swiglu(project(mlp.gate_proj, normed), project(mlp.up_proj, normed), mlp.gate_multiplier)
    return torch.add(hidden, project(mlp.down_proj, activated), alpha=mlp.down_multiplier)


def rms_norm(hidden: Tensor, norm: FalconH1RMSNorm) -> Tensor:
    """transformers' RMSNorm without its cast to float32 when the input is float64."""
    return pointwise.rms_norm(hidden, norm.weight, norm.variance_epsilon)


def scaled(hidden: Tensor, multiplier: float) -> Tensor:
    """hidden * multiplier, at no cost where that is 1."""
    return hidden if multiplier == 1.0 else hidden * multiplier


# -----------------------------------------------------------------------------
# Attention


def rotary_angles(model: FalconH1ForCausalLM, position_ids: Tensor) -> Rotation:
    """cos and sin of every position's angles, in the model's dtype but not below float32."""
    inv_freq = model.model.rotary_emb.inv_freq
    wide = torch.promote_types(model.dtype, torch.float32)
    angles = position_ids[:, None, None].to(wide) * inv_freq.to(wide)
    scaling = model.model.rotary_emb.attention_scaling
    return angles.cos() * scaling, angles.sin() * scaling


def project_heads(attention: FalconH1Attention, hidden: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (t, H, d), keys and values (t, K, d); queries and keys rotated."""
    query = project(attention.q_proj, hidden).unflatten(-1, (-1, attention.head_dim))
    key = scaled(project(attention.k_proj, hidden), attention.key_multiplier).unflatten(-1, (-1, attention.head_dim))
    value = project(attention.v_proj, hidden).unflatten(-1, (-1, attention.head_dim))
    return pointwise.rotate(query, *rotation), pointwise.rotate(key, *rotation), value


def packed_attention(
    attention: FalconH1Attention,
    hidden: Tensor,
    row: Row,
    rotation: Rotation,
    kernels: Kernels,
    sequence: SequenceGroup = ALONE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention within each document: outputs (t, E), and this rank's keys and values."""
    query, key, value = project_heads(attention, hidden, rotation)
    num_heads = query.shape[1]
    query, key, value = spread_queries(query, key, value, sequence)
    attended = kernels.attention(query, key, value, row, attention.scaling)
    attended = sequence.to_tokens(attended)[:, :num_heads]  # without the idle heads of a padded exchange
    return project(attention.o_proj, attended.flatten(1)), key, value


# -----------------------------------------------------------------------------
# Mamba2 mixer


@dataclass(frozen=True, slots=True)
class ScanWeights:
    """The weights between a mixer's projections, of the heads that a rank works on."""

    conv: Tensor  # (C, kernel), the muP multipliers of x, B and C within
    conv_bias: Tensor | None  # (C)
    dt_scale: Tensor  # (H), the muP multiplier of dt
    dt_bias: Tensor  # (H)
    A: Tensor  # (H): -exp(A_log)
    D: Tensor  # (H)


def scan_weights(mixer: FalconH1Mixer, sequence: SequenceGroup = ALONE) -> ScanWeights:
    """Of this rank's heads, float32 at least."""
    wide = torch.promote_types(mixer.A_log.dtype, torch.float32)
    scales = mixer.mup_vector.flatten().to(wide)[mixer.intermediate_size :]  # of x, B, C and dt
    channels, heads = _own_channels(mixer, sequence), _own_heads(mixer, sequence)
    conv = mixer.conv1d.weight.squeeze(1).to(wide) * scales[: mixer.conv_dim, None]
    bias = mixer.conv1d.bias
    return ScanWeights(
        conv=_taken(conv, channels),
        conv_bias=None if bias is None else _taken(bias.to(wide), channels),
        dt_scale=scales[mixer.conv_dim :][heads],
        dt_bias=mixer.dt_bias.to(wide)[heads],
        A=-torch.exp(mixer.A_log.to(wide))[heads],
        D=mixer.D.to(wide)[heads],
    )


def _own_heads(mixer: FalconH1Mixer, sequence: SequenceGroup) -> slice:
    own = mixer.num_heads // sequence.size
    return slice(sequence.rank * own, (sequence.rank + 1) * own)


def _own_channels(mixer: FalconH1Mixer, sequence: SequenceGroup) -> list[slice]:
    """Of the convolution: x of this rank's heads, B and C of their groups."""
    heads, groups = _own_heads(mixer, sequence), own_groups(mixer.num_heads, mixer.n_groups, sequence)
    inner, states, width = mixer.intermediate_size, mixer.n_groups * mixer.ssm_state_size, mixer.ssm_state_size
    return [
        slice(heads.start * mixer.head_dim, heads.stop * mixer.head_dim),
        slice(inner + groups.start * width, inner + groups.stop * width),
        slice(inner + states + groups.start * width, inner + states + groups.stop * width),
    ]


def _taken(channels: Tensor, slices: list[slice]) -> Tensor:
    """(C, ...) -> those of the slices, in order."""
    parts = [channels[part] for part in slices]
    return channels if sum(map(len, parts)) == len(channels) else torch.cat(parts)


def project_mixer(mixer: FalconH1Mixer, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gate (..., C_inner), the convolution's input (..., C) and dt (..., H), all before their multipliers."""
    projected = project(mixer.in_proj, scaled(hidden, mixer.ssm_in_multiplier))
    return projected.split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], dim=-1)


def spread_mixer(
    mixer: FalconH1Mixer, conv_input: Tensor, dt: Tensor, sequence: SequenceGroup
) -> tuple[Tensor, Tensor]:
    """The convolution's input (t, C) and dt (t, H) of this rank's tokens -> those of its heads, over all tokens."""
    if sequence.size == 1:
        return conv_input, dt
    x, states = conv_input.split([mixer.intermediate_size, mixer.conv_dim - mixer.intermediate_size], dim=-1)
    heads = torch.cat([x.unflatten(-1, (mixer.num_heads, -1)), dt[..., None]], dim=-1)  # (t, H, P + 1)
    heads = sequence.to_heads(heads)  # (T, H/s, P + 1)
    groups = own_groups(mixer.num_heads, mixer.n_groups, sequence)
    states = sequence.gather(states).unflatten(-1, (2, mixer.n_groups, -1))[:, :, groups]  # B and C: (T, 2, G, N)
    return torch.cat([heads[..., :-1].flatten(1), states.flatten(1)], dim=-1), heads[..., -1]


def split_conv(mixer: FalconH1Mixer, convolved: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution's output as x (..., H, P), B and C (..., G, N), for `num_heads` heads and their groups."""
    x, states = convolved.tensor_split([num_heads * mixer.head_dim], dim=-1)
    B, C = states.unflatten(-1, (2, -1, mixer.ssm_state_size)).unbind(-3)
    return x.unflatten(-1, (num_heads, mixer.head_dim)), B, C


def step_sizes(mixer: FalconH1Mixer, dt: Tensor, weights: ScanWeights) -> Tensor:
    """softplus(dt + bias) within the configured limits: (..., H), float32 at least."""
    return F.softplus(dt * weights.dt_scale + weights.dt_bias).clamp(*mixer.time_step_limit)


def gated_norm(mixer: FalconH1Mixer, outputs: Tensor, gate: Tensor) -> Tensor:
    """The mixer's gate, and its RMSNorm over each group's channels where the checkpoint has one: (t, C_inner)."""
    norm = mixer.norm if mixer.mamba_rms_norm else None
    return pointwise.gated_norm(
        outputs,
        gate,
        gate_scale=mixer.mup_vector.flatten()[: mixer.intermediate_size],
        weight=None if norm is None else norm.weight,
        epsilon=0.0 if norm is None else norm.variance_epsilon,
        num_groups=1 if norm is None else norm.n_groups,
        norm_before_gate=norm is not None and norm.norm_before_gate,
    )


def packed_mixer(
    mixer: FalconH1Mixer,
    hidden: Tensor,
    row: Row,
    kernels: Kernels,
    sequence: SequenceGroup = ALONE,
    with_states: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The Mamba2 mixer on a packed row: outputs (t, E) and, if asked, convolution and SSM states by document."""
    gate, conv_input, dt = project_mixer(mixer, hidden)
    conv_input, dt = spread_mixer(mixer, conv_input, dt, sequence)
    weights = scan_weights(mixer, sequence)
    convolved = kernels.conv(conv_input, weights.conv, weights.conv_bias, row)
    x, B, C = split_conv(mixer, convolved, num_heads=len(weights.A))
    dt = step_sizes(mixer, dt, weights)
    outputs = kernels.scan(x, dt, weights.A, B, C, weights.D, row)
    outputs = sequence.to_tokens(outputs)  # (t, H, P): gate and norm need all channels
    mixed = project(mixer.out_proj, gated_norm(mixer, outputs.flatten(1), gate))
    if not with_states:
        return mixed, None, None
    states = final_states(x, dt, weights.A, B, row.lengths)
    return mixed, _conv_tails(conv_input, row, mixer.conv_kernel_size - 1), states


def _conv_tails(conv_input: Tensor, row: Row, width: int) -> Tensor:
    """The last `width` inputs of each document, zeros before its start: (num_documents, C, width)."""
    back = torch.arange(width - 1, -1, -1, device=conv_input.device)
    ends = row.document_ends
    index = ends[:, None] - back  # (documents, width)
    inside = row.position_ids[ends][:, None] >= back
    tails = conv_input[index.clamp(min=0)] * inside[..., None].to(conv_input.dtype)
    return tails.transpose(1, 2)
