"""Drawing tokens: the cumulative distribution inverted at given uniforms, a row of its own settings for each slot.

A token is the first whose cumulative probability reaches 1 - u. Over a large vocabulary the sums have to be wide, or
the tail is lost to rounding; yet float64 over the whole of it is slow. So blocks of tokens are summed first, one block
is found by the sums of blocks, and only its tokens are added up one after the other, both in float64.

Shapes: B slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.rollout.sampler import SamplingSettings

BLOCK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class DrawRules:
    """How each slot draws. What no slot asks for is None."""

    temperature: Tensor | None  # (B), 1 for the greedy; None: 1 for all
    is_greedy: Tensor | None  # (B) bool
    top_p: Tensor | None  # (B) float64
    top_k: Tensor | None  # (B) int64; 0 is all
    num_top: int = 0  # raw logprobs at temperature 1 of so many best tokens

    @classmethod
    def of(cls, settings: Sequence[SamplingSettings], device: torch.device, num_top: int = 0) -> DrawRules:
        """What these slots ask for, with at least `num_top` of the best tokens' logprobs."""

        def asked(values: list[float], plain: float, dtype: torch.dtype) -> Tensor | None:
            return None if all(each == plain for each in values) else torch.tensor(values, dtype=dtype, device=device)

        return cls(
            temperature=asked([each.temperature or 1.0 for each in settings], 1.0, torch.float64),
            is_greedy=asked([each.temperature == 0.0 for each in settings], False, torch.bool),
            top_p=asked([min(each.top_p, 1.0) for each in settings], 1.0, torch.float64),
            top_k=asked([each.top_k for each in settings], 0, torch.int64),
            num_top=max([num_top, *(each.num_top_logprobs for each in settings)]),
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next token of every slot."""

    tokens: Tensor  # (B) int64
    logprobs: Tensor  # (B), of the untruncated distribution at the slot's temperature
    top_logprobs: Tensor | None  # (B, num_top) float32, best first


def draw_tokens(logits: Tensor, uniforms: Tensor, rules: DrawRules) -> Drawn:
    """(B, V), float64 (B) in [0, 1) -> a token for every slot. Top-p and top-k only restrict what is drawn."""
    scaled = logits if rules.temperature is None else logits / rules.temperature.to(logits.dtype)[:, None]
    largest = scaled.amax(-1, keepdim=True)
    weights = (scaled - largest).exp_()
    total = weights.sum(-1)
    if rules.top_p is not None or rules.top_k is not None:
        weights = truncated(weights, rules.top_p, rules.top_k)
    tokens = invert(weights, uniforms)
    if rules.is_greedy is not None:
        tokens = torch.where(rules.is_greedy, logits.argmax(-1), tokens)
    chosen = scaled.gather(-1, tokens[:, None]) - largest
    top_logprobs = None
    if rules.num_top:
        top_logprobs = torch.log_softmax(logits, dim=-1).topk(min(rules.num_top, logits.shape[-1])).values.float()
    return Drawn(tokens, chosen.squeeze(-1) - total.log(), top_logprobs)


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first token at which the running sum reaches 1 - u of the whole: weights (B, V) >= 0, (B) -> (B).

    1 - u lies in (0, 1], so that no token of weight 0 is ever first.
    """
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK_TOKENS)).unflatten(-1, (-1, BLOCK_TOKENS))
    block_sums = blocks.sum(-1).double().cumsum(-1)  # (B, V / BLOCK_TOKENS)
    reached = (1.0 - uniforms[:, None]) * block_sums[:, -1:]
    block = torch.searchsorted(block_sums, reached).clamp_(max=block_sums.shape[-1] - 1)  # (B, 1)
    upper = block_sums.gather(1, block)
    lower = torch.where(block > 0, block_sums.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK_TOKENS)).squeeze(1).double().cumsum(-1)
    # As a share of the block: its sum was rounded in the weights' dtype, its running sum is not.
    share = ((reached - lower) / (upper - lower)).clamp_(max=1.0)
    token = torch.searchsorted(inside, share * inside[:, -1:])
    return (block * BLOCK_TOKENS + token).squeeze(1)


def truncated(weights: Tensor, top_p: Tensor | None, top_k: Tensor | None) -> Tensor:
    """Zero all but the top k, then all but the smallest set that holds `top_p` of what is left: (B, V) -> (B, V)."""
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    dropped = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k is not None:
        rank = torch.arange(weights.shape[-1], device=weights.device)
        dropped |= (rank >= top_k[:, None]) & (top_k[:, None] > 0)
        ordered = ordered.masked_fill(dropped, 0.0)
    if top_p is not None:
        running = ordered.double().cumsum(-1)
        before = running - ordered
        dropped |= (before >= top_p[:, None] * running[:, -1:]) & (top_p[:, None] < 1.0)
    return weights.masked_fill(torch.zeros_like(dropped).scatter_(-1, order, dropped), 0.0)
