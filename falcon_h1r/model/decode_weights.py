"""A model's weights as a decode step wants them: as the modules hold them, or folded into few matrices.

A step of a small model is many small operations. Folded, what is linear is one product where it can be: norm weights
and muP multipliers go into the matrices beside them, and matrices that read the same input are joined,

    [q k v gate conv dt]  = norm(h) W_in        h += [scan, attention] W_out
    [gate up]             = norm(h) W_up        h += (silu(gate) * up) W_down        logits = norm(h) W_head

which is the layer of falcon_h1r.model.hybrid, rounding apart. Folding makes a copy of all weights, and in bfloat16
it would round elsewhere than the trainer does: it is for small models in float32 and up. Others decode from the
modules' own weights, by the trainer's own functions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import FalconH1ForCausalLM
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1DecoderLayer, FalconH1Mixer

from falcon_h1r.model import pointwise
from falcon_h1r.model.hybrid import (
    Rotation,
    ScanWeights,
    add_feed_forward,
    embedded,
    gated_norm,
    project_heads,
    project_mixer,
    rms_norm,
    scaled,
    scan_weights,
)
from falcon_h1r.model.lora import has_adapters
from falcon_h1r.model.precision import compute_dtype, project

FOLDED_PARAMETERS = 1 << 26  # at most: 256 MiB in float32


@dataclass(slots=True)
class LayerInputs:
    """What a layer's projections make of B tokens."""

    query: Tensor  # (B, H, d), rotated
    key: Tensor  # (B, K, d), rotated
    value: Tensor  # (B, K, d)
    gate: Tensor  # (B, C_inner)
    conv: Tensor  # (B, C), before the convolution's weights, which hold its multipliers
    dt: Tensor  # (B, H_ssm) float32 at least: step sizes


class LayerWeights(Protocol):
    """One layer, either way."""

    mixer: FalconH1Mixer
    scan: ScanWeights
    scaling: float  # of attention's products

    def inputs(self, hidden: Tensor, rotation: Rotation) -> LayerInputs:
        """(B, E) -> the projections of its norm."""
        ...

    def outputs(self, hidden: Tensor, scanned: Tensor, gate: Tensor, attended: Tensor) -> Tensor:
        """Hidden (B, E) with what the scan (B, C_inner), attention (B, H * d) and MLP add: (B, E)."""
        ...


class DecodeWeights(Protocol):
    """A whole model, either way."""

    model: FalconH1ForCausalLM
    layers: list[LayerWeights]

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B) -> (B, E)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, E) -> (B, V), float32 at least."""
        ...

    def refresh(self) -> None:
        """Follow the modules' weights, which have changed."""
        ...


def decode_weights(model: FalconH1ForCausalLM) -> DecodeWeights:
    """The better of the two ways for this model. Its weights have to be whole."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    wide = compute_dtype(model) in (torch.float32, torch.float64)
    return (
        FoldedWeights(model)
        if wide and num_parameters <= FOLDED_PARAMETERS and not has_adapters(model)
        else ModuleWeights(model)
    )


def head_logits(model: FalconH1ForCausalLM, hidden: Tensor) -> Tensor:
    """Logits (..., V), float32 at least."""
    logits = project(model.lm_head, hidden) * model.model.lm_head_multiplier
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


# -----------------------------------------------------------------------------
# As the modules hold them


class ModuleLayer:
    def __init__(self, layer: FalconH1DecoderLayer) -> None:
        self.layer, self.mixer = layer, layer.mamba
        self.scan = scan_weights(layer.mamba)
        self.scaling = layer.self_attn.scaling

    def inputs(self, hidden: Tensor, rotation: Rotation) -> LayerInputs:
        normed = rms_norm(hidden, self.layer.input_layernorm)
        attention_input = scaled(normed, self.layer.attention_in_multiplier)
        query, key, value = project_heads(self.layer.self_attn, attention_input, rotation)
        gate, conv, dt = project_mixer(self.mixer, normed)
        dt = F.softplus(dt * self.scan.dt_scale + self.scan.dt_bias).clamp(*self.mixer.time_step_limit)
        return LayerInputs(query, key, value, gate, conv, dt)

    def outputs(self, hidden: Tensor, scanned: Tensor, gate: Tensor, attended: Tensor) -> Tensor:
        mixed = project(self.mixer.out_proj, gated_norm(self.mixer, scanned, gate))
        attention = project(self.layer.self_attn.o_proj, attended)
        hidden = hidden + mixed * self.layer.ssm_out_multiplier + attention * self.layer.attn_out_multiplier
        return add_feed_forward(self.layer, hidden)

    def refresh(self) -> None:
        """In place: a captured graph goes on reading the same memory."""
        current = scan_weights(self.mixer)
        for field in fields(ScanWeights):
            held, new = getattr(self.scan, field.name), getattr(current, field.name)
            if held is not None:
                held.copy_(new)


class ModuleWeights:
    """The trainer's own functions on its own weights, which are read anew at every step."""

    def __init__(self, model: FalconH1ForCausalLM) -> None:
        self.model = model
        self._layers = [ModuleLayer(layer) for layer in model.model.layers]
        self.layers: list[LayerWeights] = [*self._layers]

    def embed(self, input_ids: Tensor) -> Tensor:
        return embedded(self.model, input_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return head_logits(self.model, rms_norm(hidden, self.model.model.final_layernorm))

    def refresh(self) -> None:
        for layer in self._layers:
            layer.refresh()


# -----------------------------------------------------------------------------
# Folded


class FoldedLayer:
    def __init__(self, layer: FalconH1DecoderLayer, dtype: torch.dtype) -> None:
        attention, mixer, mlp = layer.self_attn, layer.mamba, layer.feed_forward
        self.mixer, self.scaling, self.head_dim = mixer, attention.scaling, attention.head_dim
        self.scan = scan_weights(mixer)
        scales = mixer.mup_vector.flatten()
        inner, channels = mixer.intermediate_size, mixer.conv_dim
        attention_in, ssm_in = layer.attention_in_multiplier, mixer.ssm_in_multiplier
        gate, conv, dt = (mixer.in_proj.weight * ssm_in).split([inner, channels, mixer.num_heads])
        self.widths = [
            attention.q_proj.out_features + attention.k_proj.out_features,
            attention.v_proj.out_features,
            *(inner, channels, mixer.num_heads),
        ]
        self.num_queries = attention.q_proj.out_features // attention.head_dim
        joined = [
            attention.q_proj.weight * attention_in,
            attention.k_proj.weight * (attention_in * attention.key_multiplier),
            attention.v_proj.weight * attention_in,
            gate * scales[:inner, None],
            conv,
            dt * self.scan.dt_scale[:, None],
        ]
        self.into = _folded(torch.cat(joined), layer.input_layernorm.weight, dtype)
        self.input_epsilon = layer.input_layernorm.variance_epsilon
        self.norm = mixer.norm if mixer.mamba_rms_norm else None
        out = mixer.out_proj.weight * layer.ssm_out_multiplier
        out = out if self.norm is None else out * self.norm.weight
        self.out = torch.cat([out, attention.o_proj.weight * layer.attn_out_multiplier], dim=1).t().to(dtype)
        self.out = self.out.contiguous()
        up = torch.cat([mlp.gate_proj.weight * mlp.gate_multiplier, mlp.up_proj.weight])
        self.up = _folded(up, layer.pre_ff_layernorm.weight, dtype)
        self.ff_epsilon = layer.pre_ff_layernorm.variance_epsilon
        self.down = (mlp.down_proj.weight * mlp.down_multiplier).t().to(dtype).contiguous()

    def inputs(self, hidden: Tensor, rotation: Rotation) -> LayerInputs:
        projected = _normed(hidden, self.input_epsilon) @ self.into
        heads, value, gate, conv, dt = projected.split(self.widths, dim=-1)
        heads = pointwise.rotate(heads.unflatten(-1, (-1, self.head_dim)), *rotation)
        dt = F.softplus(dt + self.scan.dt_bias)
        low, high = self.mixer.time_step_limit
        if low > 0.0 or high < float("inf"):
            dt = dt.clamp(low, high)
        value = value.unflatten(-1, (-1, self.head_dim))
        return LayerInputs(heads[:, : self.num_queries], heads[:, self.num_queries :], value, gate, conv, dt)

    def outputs(self, hidden: Tensor, scanned: Tensor, gate: Tensor, attended: Tensor) -> Tensor:
        opened = F.silu(gate)
        if self.norm is None:
            scanned = scanned * opened
        elif self.norm.norm_before_gate:
            scanned = self._group_normed(scanned) * opened
        else:
            scanned = self._group_normed(scanned * opened)
        hidden = torch.addmm(hidden, torch.cat([scanned, attended], dim=1), self.out)
        gate, up = (_normed(hidden, self.ff_epsilon) @ self.up).chunk(2, dim=-1)
        return hidden.addmm_(F.silu(gate).mul_(up), self.down)

    def _group_normed(self, scanned: Tensor) -> Tensor:
        assert self.norm is not None
        if self.norm.n_groups == 1:
            return _normed(scanned, self.norm.variance_epsilon)
        grouped = scanned.unflatten(-1, (self.norm.n_groups, -1))
        return _normed(grouped, self.norm.variance_epsilon).flatten(1)


class FoldedWeights:
    def __init__(self, model: FalconH1ForCausalLM) -> None:
        self.model = model
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        model, dtype = self.model, compute_dtype(self.model)
        self.table = (model.model.embed_tokens.weight * model.model.embedding_multiplier).to(dtype)
        self.layers: list[LayerWeights] = [FoldedLayer(layer, dtype) for layer in model.model.layers]
        last_norm = model.model.final_layernorm
        self.head = _folded(model.lm_head.weight * model.model.lm_head_multiplier, last_norm.weight, dtype)
        self.epsilon = last_norm.variance_epsilon

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.table.index_select(0, input_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return _normed(hidden, self.epsilon) @ self.head


def _folded(weight: Tensor, norm_weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(out, in), of a norm's outputs -> (in, out), of its inputs' directions."""
    return (weight * norm_weight).t().to(dtype).contiguous()


def _normed(hidden: Tensor, epsilon: float) -> Tensor:
    return hidden * hidden.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
