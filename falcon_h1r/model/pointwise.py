"""Norms, gates and rotations: what a token's channels go through without looking at another token.

Each is a formula, and runs block by block (`falcon_h1r.model.blocks`). Norms, their gate and rotations compute in
float32, or float64 where they get it; the MLP's gate in the dtype of its inputs. All return the dtype that they were
given.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.model.blocks import blockwise


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * hidden / rms(hidden): (T, E), (E) -> (T, E)."""
    return blockwise(partial(_rms_norm, epsilon=epsilon), (hidden,), (weight,))


def _rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight.to(hidden.dtype) * _normalised(_wide(hidden), epsilon).to(hidden.dtype)


def gated_norm(
    outputs: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    weight: Tensor | None,
    epsilon: float,
    num_groups: int,
    norm_before_gate: bool,
) -> Tensor:
    """weight * norm(outputs * silu(gate * gate_scale)), or with the gate outside the norm; no norm without a weight.

    Args:
        outputs: (T, C) of the scan.
        gate: (T, C).
        gate_scale: (C), the gate's muP multiplier.
        num_groups: the norm is over each group's channels.

    Returns:
        (T, C) in the gate's dtype.
    """
    if weight is None:
        return blockwise(_gated, (outputs, gate), (gate_scale,))
    function = partial(_gated_norm, epsilon=epsilon, num_groups=num_groups, norm_before_gate=norm_before_gate)
    return blockwise(function, (outputs, gate), (gate_scale, weight))


def _gated(outputs: Tensor, gate: Tensor, gate_scale: Tensor) -> Tensor:
    return (_wide(outputs) * F.silu(_wide(gate) * gate_scale)).to(gate.dtype)


def _gated_norm(
    outputs: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    weight: Tensor,
    epsilon: float,
    num_groups: int,
    norm_before_gate: bool,
) -> Tensor:
    opened = F.silu(_wide(gate) * gate_scale)
    wide = _wide(outputs) if norm_before_gate else _wide(outputs) * opened
    normed = _normalised(wide.unflatten(-1, (num_groups, -1)), epsilon).flatten(-2) * weight
    return (normed * opened if norm_before_gate else normed).to(gate.dtype)


def swiglu(gate: Tensor, up: Tensor, gate_multiplier: float) -> Tensor:
    """silu(gate_multiplier * gate) * up: (T, I), (T, I) -> (T, I)."""
    return blockwise(partial(_swiglu, gate_multiplier=gate_multiplier), (gate, up))


def _swiglu(gate: Tensor, up: Tensor, gate_multiplier: float) -> Tensor:
    return F.silu(gate * gate_multiplier) * up


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: (T, H, d), cos and sin of the angles (T, 1, d / 2) -> (T, H, d)."""
    return blockwise(_rotate, (heads, cos, sin))


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(heads.dtype)


def _normalised(wide: Tensor, epsilon: float) -> Tensor:
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
