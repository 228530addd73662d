"""Logprobs, entropies and top-k of a linear head, forward and backward, without the (n, V) logits.

With logits z = scale * hidden W^T and p = softmax(z), for token i with target t:

    log p_it = z_it - lse_i            d log p_it / d z_ij = 1[j = t] - p_ij
    H_i      = -sum_j p_ij log p_ij    d H_i      / d z_ij = -p_ij (log p_ij + H_i)

The logits exist one tile at a time: some tokens by some entries of the vocabulary. The forward pass folds each tile
into running sums (the online softmax of Milakov & Gimelshein 2018, arXiv 1805.02867) and keeps three numbers a token,

    m = max_j z_j        s = sum_j exp(z_j - m)        u = sum_j exp(z_j - m) (z_j - m)

of which log p_t = (z_t - m) - log s and H = log s - u / s. A token's weight in the loss is known only after its logprob
(an importance ratio depends on it), so the backward pass makes the tile again, turns it in place into

    dz_j = exp(z_j - m) (A + B (z_j - m)) + 1[j = t] g     A = (h u / s - g) / s     B = -h / s

with g and h the gradients of log p_t and H (no B where no loss depends on entropies), and multiplies it into both
gradients: four products of n x V x E in all, which is where the time goes. Everything is relative to m rather than to
lse = m + log s, which would round away a logprob near 0 under large logits.

The vocabulary is the outer loop, so that one block of the head meets all tokens: its gradient is summed in float32 and
rounded once, and no float32 copy of a bfloat16 head or of its gradient exists.

Logits are kept in base 2 (log2 e is multiplied into `scale`): exp2 takes a third of exp's time on a CPU, and is the
instruction that a GPU has.

Precision: float64 stays float64, float32 is float32. For bfloat16 and float16, logits, softmax and sums are float32: a
CPU widens the operands of a product tile by tile, a GPU accumulates products in float32 and rounds dz alone.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Arithmetic = Literal["eager", "compiled"]

LN2 = math.log(2.0)


class Tile(NamedTuple):
    """The part of the logits that exists at once, at most."""

    rows: int  # tokens
    columns: int  # entries of the vocabulary


# CPU, for each thread: 1 MiB in float32 stays in a core's second-level cache through all passes, and MKL is at its best
# from 256 x 256 on. GPU: 128 MiB, full waves of thread blocks at any E, small beside the weights.
DEFAULT_TILES = {"cpu": Tile(512, 512), "cuda": Tile(4096, 8192)}


class LinearLogprobs(NamedTuple):
    """What `linear_logprobs` knows of n tokens; float32 or float64."""

    logprobs: Tensor  # (n), natural log, with gradient
    entropies: Tensor  # (n), nats, with gradient
    top_logprobs: Tensor | None  # (n, k), descending, without gradient
    top_ids: Tensor | None  # (n, k) int64


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: float = 1.0,
    top_k: int = 0,
    arithmetic: Arithmetic | None = None,
    tile: Tile | None = None,
) -> LinearLogprobs:
    """Logprob of each target under softmax(scale * hidden @ weight.T), the entropy, and the `top_k` likeliest tokens.

    Args:
        hidden: (n, E).
        weight: (V, E), of the same dtype.
        targets: (n) int64 in 0..V-1.
        scale: lm_head_multiplier / temperature.
        top_k: at most V; 0 for none.
        arithmetic: how a tile is worked on; None for `arithmetic_on` the tensors' device. Results agree to rounding.
        tile: None for `tile_for` these sizes. Results agree to rounding.

    Raises:
        TypeError: the dtypes of hidden and weight differ.
    """
    if hidden.dtype != weight.dtype:
        raise TypeError(f"hidden states are {hidden.dtype} and the head is {weight.dtype}")
    arithmetic = arithmetic or arithmetic_on(hidden.device)
    tile = tile or tile_for(len(hidden), len(weight), hidden.device)
    return LinearLogprobs(*_LinearLogprobs.apply(hidden, weight, targets, scale, top_k, arithmetic, tile))


def naive_linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0, top_k: int = 0
) -> LinearLogprobs:
    """The definition, with all (n, V) logits: the slow twin that `linear_logprobs` is tested against."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logprobs = torch.log_softmax(scale * (hidden.to(dtype) @ weight.to(dtype).t()), dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    top = logprobs.detach().topk(top_k) if top_k else (None, None)
    return LinearLogprobs(logprobs.gather(1, targets[:, None]).squeeze(1), entropies, *top)


def arithmetic_on(device: torch.device) -> Arithmetic:
    """The default on a device: compiled on a GPU that has Triton, otherwise plain torch."""
    return "compiled" if device.type == "cuda" and importlib.util.find_spec("triton") is not None else "eager"


def tile_for(num_tokens: int, vocab_size: int, device: torch.device) -> Tile:
    """The default tile, its area kept where the vocabulary is narrower, and cut so that all tiles are about equal."""
    widest = DEFAULT_TILES.get(device.type, DEFAULT_TILES["cuda"])
    area = widest.rows * widest.columns * (torch.get_num_threads() if device.type == "cpu" else 1)
    columns = _even_part(vocab_size, widest.columns)
    return Tile(_even_part(num_tokens, max(1, area // columns)), columns)


def _even_part(length: int, longest: int) -> int:
    """The size of the fewest equal parts of a length, in whole vectors of 16 numbers."""
    num_parts = max(1, -(-length // longest))
    return -(-max(1, length) // (16 * num_parts)) * 16


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float,
        top_k: int,
        arithmetic: Arithmetic,
        tile: Tile,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        fold = _tile_function(_fold, arithmetic)
        tiles = _Tiles(hidden, weight, scale, tile, arithmetic)
        softmax = _RunningSoftmax.empty(hidden)
        tops = [_Top.empty(hidden[rows]) for rows in tiles.row_parts]
        for columns in tiles.column_parts:
            block = tiles.operand(weight[columns])
            for index, rows in enumerate(tiles.row_parts):
                logits = tiles.logits(tiles.operand(hidden[rows]), block)
                if top_k:
                    tops[index] = tops[index].merged(logits, columns.start, top_k)
                fold(logits, targets[rows] - columns.start, softmax.of(rows), tiles.spare(logits))
        ctx.save_for_backward(hidden, weight, targets, softmax.maxima, softmax.sums, softmax.moments)
        ctx.scale, ctx.arithmetic, ctx.tile = scale, arithmetic, tile
        top_logprobs, top_ids = None, None
        if top_k:
            top_logits, top_ids = map(torch.cat, zip(*tops, strict=True))
            top_logprobs = softmax.logprobs(top_logits.t()).t()
            ctx.mark_non_differentiable(top_logprobs, top_ids)
        return softmax.logprobs(softmax.target_logits), softmax.entropies(), top_logprobs, top_ids

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, maxima, sums, moments = ctx.saved_tensors
        to_hidden, to_weight, *_ = ctx.needs_input_grad
        turn_into_gradient = _tile_function(_turn_into_gradient, ctx.arithmetic)
        tiles = _Tiles(hidden, weight, ctx.scale, ctx.tile, ctx.arithmetic)
        at_target = torch.zeros_like(sums) if grad_logprobs is None else grad_logprobs.to(sums.dtype)
        constant, slope = -at_target / sums, None
        if grad_entropies is not None:
            slope = -LN2 * grad_entropies.to(sums.dtype) / sums
            constant -= slope * moments / sums
        grad_hidden = torch.zeros_like(hidden, dtype=sums.dtype) if to_hidden else None
        grad_weight = torch.empty_like(weight) if to_weight else None
        for columns in tiles.column_parts:
            block = tiles.operand(weight[columns])
            grad_block = torch.zeros_like(block, dtype=sums.dtype) if to_weight else None
            for rows in tiles.row_parts:
                part = tiles.operand(hidden[rows])
                logits = tiles.logits(part, block)
                grad_logits = turn_into_gradient(
                    logits,
                    targets[rows] - columns.start,
                    maxima[rows],
                    constant[rows],
                    None if slope is None else slope[rows],
                    at_target[rows],
                    tiles.spare(logits),
                ).to(part.dtype)
                if grad_hidden is not None:
                    _add_product(grad_hidden[rows], grad_logits, block, ctx.scale)
                if grad_block is not None:
                    _add_product(grad_block, grad_logits.t(), part, ctx.scale)
            if grad_weight is not None and grad_block is not None:
                grad_weight[columns] = grad_block
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


class _Tiles:
    """Where the tiles lie, and their logits, in base 2, one at a time in the same memory: fresh memory for each would
    fall out of a core's cache, and leave holes in the heap."""

    def __init__(self, hidden: Tensor, weight: Tensor, scale: float, tile: Tile, arithmetic: Arithmetic) -> None:
        self.row_parts = _parts(len(hidden), tile.rows)
        self.column_parts = _parts(len(weight), tile.columns)
        self._dtype = torch.promote_types(hidden.dtype, torch.float32)
        # Only a GPU multiplies narrow operands into a wide product.
        self._operand_dtype = hidden.dtype if hidden.device.type == "cuda" else self._dtype
        self._memory = hidden.new_empty(tile.rows * tile.columns, dtype=self._dtype)
        self._spare = torch.empty_like(self._memory) if arithmetic == "eager" else None
        self._scale = scale / LN2

    def operand(self, part: Tensor) -> Tensor:
        return part.to(self._operand_dtype)

    def logits(self, hidden: Tensor, block: Tensor) -> Tensor:
        """(r, E), (c, E) -> (r, c), valid until the next call."""
        num_rows, num_columns = len(hidden), len(block)
        logits = self._memory[: num_rows * num_columns].view(num_rows, num_columns)
        return _add_product(logits, hidden, block.t(), self._scale, keep=0.0)

    def spare(self, logits: Tensor) -> Tensor | None:
        """Room for one intermediate as large as the logits; compiled functions have none."""
        return None if self._spare is None else self._spare[: logits.numel()].view_as(logits)


def _parts(length: int, size: int) -> list[slice]:
    """Consecutive slices; of an empty range one that is empty."""
    return [slice(start, min(start + size, length)) for start in range(0, max(1, length), size)]


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float, keep: float = 1.0) -> Tensor:
    """total = keep * total + scale * left @ right, in the dtype of `total`, which may be wider than the operands'."""
    if left.dtype == total.dtype:
        return total.addmm_(left, right, beta=keep, alpha=scale)
    return torch.addmm(total, left, right, out_dtype=total.dtype, beta=keep, alpha=scale, out=total)


# -----------------------------------------------------------------------------
# What a tile adds to each of its r tokens


class _RunningSoftmax(NamedTuple):
    """Of the columns so far, (n) each, in base 2: m, s and u of the module's docstring, and z_t once it was met."""

    maxima: Tensor
    sums: Tensor
    moments: Tensor
    target_logits: Tensor

    @classmethod
    def empty(cls, hidden: Tensor) -> _RunningSoftmax:
        sums = hidden.new_zeros(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        # Finite, so that a difference of maxima is.
        maxima = torch.full_like(sums, torch.finfo(sums.dtype).min / 2)
        return cls(maxima, sums, torch.zeros_like(sums), torch.zeros_like(sums))

    def of(self, rows: slice) -> _RunningSoftmax:
        return _RunningSoftmax(*(column[rows] for column in self))

    def logprobs(self, logits: Tensor) -> Tensor:
        """(..., n), base 2 -> natural."""
        return LN2 * ((logits - self.maxima) - self.sums.log2())

    def entropies(self) -> Tensor:
        return LN2 * (self.sums.log2() - self.moments / self.sums)


class _Top(NamedTuple):
    """The largest logits of the columns so far, (r, k)."""

    logits: Tensor
    ids: Tensor

    @classmethod
    def empty(cls, hidden: Tensor) -> _Top:
        logits = hidden.new_empty((len(hidden), 0), dtype=torch.promote_types(hidden.dtype, torch.float32))
        return cls(logits, torch.empty_like(logits, dtype=torch.int64))

    def merged(self, logits: Tensor, first_id: int, top_k: int) -> _Top:
        new, new_ids = logits.topk(min(top_k, logits.shape[1]))
        both, ids = torch.cat([self.logits, new], 1), torch.cat([self.ids, new_ids + first_id], 1)
        kept, places = both.topk(min(top_k, both.shape[1]))
        return _Top(kept, ids.gather(1, places))


def _fold(logits: Tensor, targets: Tensor, running: _RunningSoftmax, spare: Tensor | None) -> None:
    """Put a further tile into the running softmax. Overwrites the logits.

    Args:
        logits: (r, c).
        targets: (r), counted from the tile's first column; any outside it lie in other tiles.
    """
    inside, nearest = _places(logits, targets)
    met = logits.gather(1, nearest[:, None]).squeeze(1)
    running.target_logits.copy_(torch.where(inside, met, running.target_logits))
    maxima = torch.maximum(running.maxima, logits.amax(1))
    fall = running.maxima - maxima
    decay = fall.exp2()
    below = logits.sub_(maxima[:, None])
    powers = torch.exp2(below, out=spare)
    running.moments.addcmul_(running.sums, fall).mul_(decay)
    running.sums.mul_(decay).add_(powers.sum(1))
    running.moments.add_(powers.mul_(below).sum(1))
    running.maxima.copy_(maxima)


def _turn_into_gradient(
    logits: Tensor,
    targets: Tensor,
    maxima: Tensor,
    constant: Tensor,
    slope: Tensor | None,
    at_target: Tensor,
    spare: Tensor | None,
) -> Tensor:
    """dz of the module's docstring, in the place of the logits (r, c): `constant` is A, `slope` B, `at_target` g."""
    inside, nearest = _places(logits, targets)
    below = logits.sub_(maxima[:, None])
    if slope is None:
        gradient = below.exp2_().mul_(constant[:, None])
    else:
        powers = torch.exp2(below, out=spare)
        gradient = below.mul_(slope[:, None]).add_(constant[:, None]).mul_(powers)
    return gradient.scatter_add_(1, nearest[:, None], torch.where(inside, at_target, 0.0)[:, None])


def _places(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(r) bool and (r): whether the tile holds each target, and the column nearest to it."""
    last = logits.shape[1] - 1
    return (targets >= 0) & (targets <= last), targets.clamp(0, last)


@functools.cache
def _tile_function(function: Callable[..., Any], arithmetic: Arithmetic) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True) if arithmetic == "compiled" else function
