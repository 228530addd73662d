"""Functions of one token at a time, worked on a block of tokens at a time: norms, gates, rotations.

Written plainly, each of them passes over its (T, C) tensors several times in memory and keeps most of the passes for
the backward. In blocks that fit a core's cache the passes cost next to nothing, and the backward, which makes a
block's intermediate values anew, keeps the inputs alone. The function itself is the slow twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 1 << 20  # of a block's inputs, on a CPU; a GPU takes the row whole, for each block is a launch of kernels

TokenFunction = Callable[..., Tensor]


def blockwise(function: TokenFunction, tokens: Sequence[Tensor], shared: Sequence[Tensor] = ()) -> Tensor:
    """function(*tokens, *shared), where entry t of the result depends on entry t of `tokens` alone.

    Args:
        tokens: each (T, ...).
        shared: weights. Their gradient is summed over blocks in float32 at least.
    """
    step = _block_tokens(tokens)
    if step >= len(tokens[0]) and tokens[0].device.type == "cpu":
        return function(*tokens, *shared)
    outputs: Tensor = _Blockwise.apply(function, step, len(tokens), *tokens, *shared)
    return outputs


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: TokenFunction, step: int, num_tokens: int, *inputs: Tensor) -> Tensor:
        tokens, shared = inputs[:num_tokens], inputs[num_tokens:]
        outputs: Tensor | None = None
        for part in _parts(len(tokens[0]), step):
            block = function(*(tensor[part] for tensor in tokens), *shared)
            if outputs is None:
                outputs = block.new_empty(len(tokens[0]), *block.shape[1:])
            outputs[part] = block
        assert outputs is not None, "a row holds a token at least"
        ctx.save_for_backward(*inputs)
        ctx.function, ctx.step, ctx.num_tokens = function, step, num_tokens
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        tokens, shared = inputs[: ctx.num_tokens], inputs[ctx.num_tokens :]
        gradients: list[Tensor | None] = [
            _gradient_like(tensor, by_token=index < ctx.num_tokens) if need else None
            for index, (tensor, need) in enumerate(zip(inputs, needed, strict=True))
        ]
        wanted = [index for index, need in enumerate(needed) if need]
        for part in _parts(len(tokens[0]), ctx.step):
            leaves = [*(tensor[part].detach() for tensor in tokens), *(tensor.detach() for tensor in shared)]
            with torch.enable_grad():
                for index in wanted:
                    leaves[index].requires_grad_()
                outputs = ctx.function(*leaves)
            block = torch.autograd.grad(outputs, [leaves[index] for index in wanted], grad_outputs[part])
            for index, gradient in zip(wanted, block, strict=True):
                whole = gradients[index]
                assert whole is not None
                if index < ctx.num_tokens:
                    whole[part] = gradient
                else:
                    whole += gradient
        typed = [None if whole is None else whole.to(inputs[index].dtype) for index, whole in enumerate(gradients)]
        return None, None, None, *typed


def _block_tokens(tokens: Sequence[Tensor]) -> int:
    if tokens[0].device.type != "cpu":
        return len(tokens[0])
    token_bytes = sum(tensor[0].numel() * tensor.element_size() for tensor in tokens)
    return max(1, BLOCK_BYTES // token_bytes)


def _parts(num_tokens: int, step: int) -> Iterator[slice]:
    for start in range(0, num_tokens, step):
        yield slice(start, min(start + step, num_tokens))


def _gradient_like(tensor: Tensor, by_token: bool) -> Tensor:
    if by_token:
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
