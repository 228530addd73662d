"""One token of the mixer's convolution and recurrence: torch's, or mamba-ssm's and causal-conv1d's on a GPU.

    z = silu(bias + sum over k < kernel of weight_k * window_k)              window: the last inputs, oldest first
    S = exp(dt A) S + dt x B^T          y = S C + D x                        (falcon_h1r.model.ssd)

States are updated in place. torch's recurrence has them by group, (B, G, N, H / G * P), so that reading is a product
along memory, twice as fast on a CPU; the kernel has them by head, (B, H, P, N). As in falcon_h1r.model.kernels, the
device decides, and each fused kernel has one adapter; the kernel's own function is its first argument.

Shapes: B slots, C channels, H heads (P x N each) in G groups.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.model.kernels import _find

log = logging.getLogger(__name__)

ConvUpdate = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
StateUpdate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class DecodeKernels:
    """The two updates of a mixer's step, and one line that names them."""

    conv: ConvUpdate  # inputs (B, C), state (B, kernel - 1, C), weight (C, kernel), bias (C) or None -> (B, C)
    state: StateUpdate  # state, x (B, H, P), dt (B, H), A (H), B and C (B, G, N), D (H) -> (B, H, P)
    description: str

    @property
    def by_group(self) -> bool:
        """Whether states are (B, G, N, H / G * P) rather than (B, H, P, N)."""
        return self.state is state_update


def by_group(state: Tensor, num_groups: int) -> Tensor:
    """(..., H, P, N) -> (..., G, N, H / G * P)."""
    return state.unflatten(-3, (num_groups, -1)).flatten(-3, -2).mT


@cache
def choose_decode_kernels(device_type: str, dtype: torch.dtype) -> DecodeKernels:
    """The fastest for a model of this dtype on this kind of device. Logs them, once for each."""
    where = f"decode kernels on {device_type}, {str(dtype).removeprefix('torch.')}"
    if device_type != "cuda" or dtype == torch.float64:
        kernels = DecodeKernels(conv_update, state_update, f"{where}: convolution, recurrence torch")
        log.info(kernels.description)
        return kernels
    conv = _find("causal-conv1d", "causal_conv1d", "causal_conv1d_update")
    state = _find("mamba-ssm", "mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    kernels = DecodeKernels(
        conv_update if conv.function is None else partial(fused_conv_update, conv.function),
        state_update if state.function is None else partial(fused_state_update, state.function),
        f"{where}: convolution {conv.name}, recurrence {state.name}",
    )
    slow = conv.function is None or state.function is None
    log.log(logging.WARNING if slow and os.environ.get("RANK", "0") == "0" else logging.INFO, kernels.description)
    return kernels


# -----------------------------------------------------------------------------
# torch


def conv_update(inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Tap by tap, in the weights' dtype; then the window moves on by one."""
    width = weight.shape[1]
    sums = inputs * weight[:, -1] if bias is None else torch.addcmul(bias, inputs, weight[:, -1])
    for tap in range(width - 1):
        sums = sums.addcmul_(state[:, tap], weight[:, tap])
    for tap in range(width - 2):
        state[:, tap] = state[:, tap + 1]
    state[:, -1] = inputs
    return F.silu(sums, inplace=True)


def state_update(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence itself, on states by group."""
    num_slots, groups = B.shape[:2]
    x, B, C = x.to(state.dtype), B.to(state.dtype), C.to(state.dtype)
    decay = torch.exp(dt * A)[..., None].expand_as(x).reshape(num_slots, groups, 1, -1)
    written = (x * dt[..., None]).reshape(num_slots, groups, 1, -1)
    state.mul_(decay).addcmul_(written, B[..., None])
    read = (C[:, :, None] @ state).view(x.shape)
    return read.addcmul_(x, D[:, None])


# -----------------------------------------------------------------------------
# Adapters


def fused_conv_update(
    causal_conv1d_update: Callable[..., Tensor], inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """causal-conv1d. It reads the state as (B, C, kernel - 1), by its strides."""
    return causal_conv1d_update(inputs, state.transpose(1, 2), weight, bias, activation="silu")


def fused_state_update(
    selective_state_update: Callable[..., Tensor],
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
) -> Tensor:
    """mamba-ssm. A, dt and the bias are a head's alone: strides of 0 say so, and let it take its shorter way.

    `dt` has had its bias and softplus; a bias of zeros is handed over because without one the function fails.
    """
    _, _, width, num_states = state.shape
    return selective_state_update(
        state,
        x,
        dt[..., None].expand(-1, -1, width),
        A[:, None, None].expand(-1, width, num_states),
        B,
        C,
        D=D[:, None].expand(-1, width),
        dt_bias=torch.zeros_like(A)[:, None].expand(-1, width),
    )
