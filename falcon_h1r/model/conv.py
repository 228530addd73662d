"""The mixer's causal depthwise convolution on a packed row, stopping at document borders, with its SiLU.

    z_tc = bias_c + sum over k < kernel of weight_(c, kernel-1-k) * u_(t-k, c)      out = z * sigmoid(z)

where u_(t-k) counts only if it is of t's document, that is if t's position there is at least k.
Shapes: u (T, C), weight (C, kernel), bias (C), position_ids (T) from 0 in each document.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 1 << 20  # of the inputs worked on at once: a few such blocks stay in a CPU core's cache


def packed_conv_taps(inputs: Tensor, weight: Tensor, bias: Tensor | None, position_ids: Tensor) -> Tensor:
    """The formula, one tap after the other: the slow twin of `packed_conv`."""
    kernel = weight.shape[1]
    outputs = inputs * weight[:, -1]
    if bias is not None:
        outputs = outputs + bias
    for back in range(1, min(kernel, len(inputs))):
        earlier = F.pad(inputs[:-back], (0, 0, back, 0))
        reach = (position_ids >= back).to(inputs.dtype)[:, None]
        outputs = outputs + earlier * (weight[:, -1 - back] * reach)
    return F.silu(outputs)


def packed_conv(inputs: Tensor, weight: Tensor, bias: Tensor | None, position_ids: Tensor) -> Tensor:
    """The same in blocks of tokens; the backward pass keeps the inputs alone. (T, C) -> (T, C)."""
    outputs: Tensor = _PackedConv.apply(inputs, weight, bias, position_ids)
    return outputs


class _PackedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, position_ids: Tensor) -> Tensor:
        outputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        for start, stop in _blocks(inputs):
            _, sums = _windows(inputs, weight, bias, position_ids, start, stop)
            outputs[start:stop] = F.silu(sums, inplace=True)
        ctx.save_for_backward(inputs, weight, bias, position_ids)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, position_ids = ctx.saved_tensors
        kernel = weight.shape[1]
        compute = torch.promote_types(inputs.dtype, torch.float32)
        grad_inputs = torch.zeros_like(inputs, dtype=compute, memory_format=torch.contiguous_format)
        grad_weight = torch.zeros_like(weight, dtype=compute)
        grad_bias = torch.zeros_like(weight[:, 0], dtype=compute)
        for start, stop in reversed(list(_blocks(inputs))):
            windows, sums = _windows(inputs, weight, bias, position_ids, start, stop)
            grad_sums = torch.ops.aten.silu_backward(grad_outputs[start:stop].to(compute), sums)
            grad_bias += grad_sums.sum(0)
            for back in range(min(kernel, stop)):
                window, reach = windows[back]
                grad_weight[:, -1 - back] += (window * grad_sums).sum(0)
                passed = grad_sums * weight[:, -1 - back].to(compute)
                passed = passed if reach is None else passed.mul_(reach)
                skipped = max(0, back - start)  # of the row's first tokens, which look back past its start
                grad_inputs[start + skipped - back : stop - back] += passed[skipped:]
        return (
            grad_inputs.to(inputs.dtype),
            grad_weight.to(weight.dtype),
            None if bias is None else grad_bias.to(bias.dtype),
            None,
        )


def _blocks(inputs: Tensor) -> list[tuple[int, int]]:
    size = max(1, BLOCK_BYTES // (inputs.shape[1] * inputs.element_size())) if inputs.device.type == "cpu" else 1 << 16
    return [(start, min(start + size, len(inputs))) for start in range(0, len(inputs), size)]


def _windows(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, position_ids: Tensor, start: int, stop: int
) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
    """What each tap sees of a block, masked, beside its mask (t, 1); and the taps' weighted sum (t, C)."""
    compute = torch.promote_types(inputs.dtype, torch.float32)
    windows: list[tuple[Tensor, Tensor | None]] = []
    sums: Tensor | None = None
    for back in range(min(weight.shape[1], stop)):
        window = inputs[max(0, start - back) : stop - back].to(compute)
        if len(window) < stop - start:  # the row's first tokens
            window = F.pad(window, (0, 0, stop - start - len(window), 0))
        inside = position_ids[start:stop] >= back
        reach = None if bool(inside.all()) else inside.to(compute)[:, None]
        window = window if reach is None else window * reach
        windows.append((window, reach))
        tap = weight[:, -1 - back].to(compute)
        sums = window * tap if sums is None else sums.addcmul_(window, tap)
    assert sums is not None
    return windows, sums if bias is None else sums.add_(bias.to(compute))
