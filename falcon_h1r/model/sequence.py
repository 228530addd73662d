"""Sequence parallelism for the hybrid block: a row's tokens lie on s ranks, its heads are worked on by s ranks.

Between layers every rank holds T / s consecutive tokens with all their channels, where norms, projections and the MLP
need nothing from elsewhere. Attention, convolution and scan need all tokens, but each head of theirs alone. So tokens
are exchanged for heads before them, and heads for tokens after them (DeepSpeed-Ulysses, arXiv 2309.14509), and what
they compute is what one rank would: nothing is approximated at a shard's border.

                      before                      in between          after
    attention  q      (T/s, H, d)   to_heads  ->  (T, H/s, d)  to_tokens ->  (T/s, H, d)
               k, v   (T/s, K, d)   each rank gets the KV heads of its queries, copies where s exceeds K
    mixer      x, dt  (T/s, H, P+1) to_heads  ->  (T, H/s, P+1) to_tokens -> (T/s, H, P), before gate and norm
               B, C   (T/s, G N)    gathered: every rank needs those of its heads' groups

Weights of the convolution and of the scan are sliced by head, or by the channels of B and C. Each rank's gradient of
a weight is its own heads' or tokens' share, so the sum over ranks is the whole.

A degree has to divide the SSM heads. Query heads are padded with idle ones where it does not divide them: the 7B has
12, so that degree 8 works on 16 and a quarter of the attention is idle.

The Falcon-H1R report (arXiv 2601.02346) trains with such an adaptation and does not describe it; this one follows from
the heads' independence. Shapes: t = T / s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from falcon_h1r.types import InputError


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The ranks that share a row. Alone, every exchange is the identity."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def local(self, row: Tensor) -> Tensor:
        """This rank's tokens: (T, ...) -> (t, ...)."""
        return row if self.size == 1 else row.unflatten(0, (self.size, -1))[self.rank]

    def to_heads(self, tokens: Tensor) -> Tensor:
        """All tokens of this rank's heads: (t, H, ...) -> (T, H/s, ...)."""
        return self._exchanged(tokens, _heads_from_tokens, _tokens_from_heads)

    def to_tokens(self, heads: Tensor) -> Tensor:
        """All heads of this rank's tokens: (T, H/s, ...) -> (t, H, ...)."""
        return self._exchanged(heads, _tokens_from_heads, _heads_from_tokens)

    def gather(self, tokens: Tensor) -> Tensor:
        """The whole row on every rank, which uses it in its own way: (t, ...) -> (T, ...). Gradients are summed."""
        return self._exchanged(tokens, _row_of, _sum_of_own)

    def gather_same(self, tokens: Tensor) -> Tensor:
        """The whole row on every rank, all of which compute the same from it, so that its gradient counts once."""
        return self._exchanged(tokens, _row_of, _own_of)

    def _exchanged(self, tensor: Tensor, there: Exchange, back: Exchange) -> Tensor:
        if self.size == 1:
            return tensor
        exchanged: Tensor = _Exchanged.apply(tensor, self, there, back)
        return exchanged


ALONE = SequenceGroup()


# -----------------------------------------------------------------------------
# Which heads a rank works on


def query_heads(num_heads: int, num_kv_heads: int, size: int) -> tuple[int, list[int]]:
    """Query heads after padding, and the KV heads to hand out, rank after rank.

    A rank has consecutive query heads. They read one KV head, or several whole groups of query heads read one KV head
    each; where a rank's heads lie across groups, each gets a copy of its own KV head.

    >>> query_heads(12, 2, 4)  # the 7B: three query heads a rank, six read one KV head
    (12, [0, 0, 1, 1])
    >>> query_heads(12, 2, 8)
    (16, [0, 0, 0, 1, 1, 1, 1, 1])
    """
    own = -(-num_heads // size)
    reads = [min(head, num_heads - 1) * num_kv_heads // num_heads for head in range(own * size)]
    group = num_heads // num_kv_heads
    if group % own == 0:
        step = own
    elif own % group == 0:
        step = group
    else:
        step = 1
    return own * size, reads[::step]


def own_groups(num_heads: int, num_groups: int, sequence: SequenceGroup) -> slice:
    """The groups of B and C that this rank's SSM heads read."""
    own, group = num_heads // sequence.size, num_heads // num_groups
    first = sequence.rank * own
    return slice(first // group, -(-(first + own) // group))


def check_degree(degree: int, num_ssm_heads: int, num_groups: int, key: str = "engine.sequence_parallel") -> None:
    """Refuse a degree that the SSM heads do not allow.

    Raises:
        InputError: where heads, or the groups that they lie in, cannot be shared evenly.
    """
    if num_ssm_heads % degree:
        raise InputError(f"{key}={degree}: does not divide the model's {num_ssm_heads} mamba_n_heads")
    own, group = num_ssm_heads // degree, num_ssm_heads // num_groups
    if own % group and group % own:
        raise InputError(
            f"{key}={degree}: {own} SSM heads a rank lie across groups of {group} (mamba_n_groups={num_groups})"
        )


def spread_queries(query: Tensor, key: Tensor, value: Tensor, sequence: SequenceGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (t, H, d), keys and values (t, K, d) of this rank's tokens -> those of its heads, over all tokens."""
    if sequence.size == 1:
        return query, key, value
    padded, reads = query_heads(query.shape[1], key.shape[1], sequence.size)
    query = F.pad(query, (0, 0, 0, padded - query.shape[1]))
    index = torch.tensor(reads, device=key.device)
    key, value = key.index_select(1, index), value.index_select(1, index)
    return sequence.to_heads(query), sequence.to_heads(key), sequence.to_heads(value)


# -----------------------------------------------------------------------------
# Exchanges. `contiguous()` throughout: all_to_all_single reads memory in order, and returns wrong data without an
# error where a tensor's strides say otherwise.

Exchange = Callable[[Tensor, SequenceGroup], Tensor]


class _Exchanged(torch.autograd.Function):
    """One exchange on the way there, and for the gradients another on the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sequence: SequenceGroup, there: Exchange, back: Exchange) -> Tensor:
        ctx.sequence, ctx.back = sequence, back
        return there(tensor, sequence)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grad, ctx.sequence), None, None, None


def _heads_from_tokens(tokens: Tensor, sequence: SequenceGroup) -> Tensor:
    sent = tokens.unflatten(1, (sequence.size, -1)).transpose(0, 1).contiguous()  # (s, t, H/s, ...): rank j's heads
    return _all_to_all(sent, sequence).flatten(0, 1)  # rank i's tokens


def _tokens_from_heads(heads: Tensor, sequence: SequenceGroup) -> Tensor:
    sent = heads.unflatten(0, (sequence.size, -1)).contiguous()  # (s, t, H/s, ...): rank j's tokens
    return _all_to_all(sent, sequence).transpose(0, 1).flatten(1, 2)  # rank i's heads


def _all_to_all(sent: Tensor, sequence: SequenceGroup) -> Tensor:
    received = torch.empty(sent.shape, dtype=sent.dtype, device=sent.device)
    dist.all_to_all_single(received, sent, group=sequence.group)
    return received


def _row_of(tokens: Tensor, sequence: SequenceGroup) -> Tensor:
    row = tokens.new_empty(sequence.size * len(tokens), *tokens.shape[1:])
    dist.all_gather(list(row.chunk(sequence.size)), tokens.contiguous(), group=sequence.group)
    return row


def _sum_of_own(row: Tensor, sequence: SequenceGroup) -> Tensor:
    return _all_to_all(row.unflatten(0, (sequence.size, -1)).contiguous(), sequence).sum(0)


def _own_of(row: Tensor, sequence: SequenceGroup) -> Tensor:
    return sequence.local(row)
