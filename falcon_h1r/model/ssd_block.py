"""A few chunks of the scan: their outputs, and by hand their gradients.

For one head, with a_t = dt_t * A, v_t = dt_t * x_t, and for tokens s <= l of one document within a chunk

    L_ls = exp(a_(s+1) + ... + a_l)     decay from s to l
    e_l  = exp(a_first + ... + a_l)     decay of the carried state S on its way to l, where l continues its document
    w_s  = exp(a_(s+1) + ... + a_last)  decay from s to the chunk's end, where s is of the document open there
    f    = exp(a_first + ... + a_last)  where one document fills the chunk

the chunk's outputs and the state that it hands on are

    y_l = sum_s L_ls (C_l . B_s) v_s + e_l S C_l + D x_l          S' = f S + sum_s w_s v_s B_s^T

Everything across a document's border is an exact zero of L, e, w or f, so that one document's values do not even
change the rounding of another's, as long as they are finite. Sums of a are taken in float64 and rebased at the
document's start for the same reason, and so that the decay between two tokens is as exact as float32 can say, whatever
lies before them.

Shapes: K chunks of Q tokens, H heads of width P in G groups of R, state size N. Tensors are token-major,
(K, Q, H, P), except for the quadratic part, (K, H, Q, Q).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chunks:
    """The sizes of a scan."""

    num_tokens: int
    size: int  # Q
    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    dtype: torch.dtype  # of the arithmetic
    device: torch.device

    @classmethod
    def of(cls, x: Tensor, B: Tensor, chunk_size: int) -> Chunks:
        num_tokens, num_heads, head_dim = x.shape
        _, num_groups, state_size = B.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        return cls(num_tokens, chunk_size, num_heads, head_dim, num_groups, state_size, dtype, x.device)

    def zero_state(self) -> Tensor:
        return torch.zeros(self.num_heads, self.head_dim, self.state_size, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of a block: x (T, H, P), dt (T, H), B and C (T, G, N) by token; A and D (H) summed."""

    by_token: tuple[Tensor, Tensor, Tensor, Tensor]
    A: Tensor
    D: Tensor


@dataclass(slots=True)
class Block:
    """K chunks of a row, padded at the row's end by tokens with dt = 0, which neither decay nor write."""

    num_tokens: int  # without the padding
    x: Tensor  # (K, Q, H, P)
    dt: Tensor  # (K, Q, H)
    A: Tensor  # (H)
    B: Tensor  # (K, G, Q, N)
    C: Tensor  # (K, G, Q, N)
    D: Tensor  # (H)
    values: Tensor  # (K, Q, H, P): v
    within: Tensor  # (K, H, Q, Q): L
    from_start: Tensor  # (K, Q, H): e
    to_end: Tensor  # (K, Q, H): w
    across: Tensor  # (K, H): f

    @classmethod
    def of(
        cls,
        chunks: Chunks,
        tokens: slice,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        seq_idx: Tensor,
    ) -> Block:
        """The chunks of these tokens, with their decays."""
        num_tokens = tokens.stop - tokens.start
        padding = -num_tokens % chunks.size

        def chunked(tensor: Tensor) -> Tensor:
            part = tensor[tokens].to(chunks.dtype)
            if padding:
                part = F.pad(part, (0, 0) * (part.dim() - 1) + (0, padding))
            return part.unflatten(0, (-1, chunks.size))

        document = torch.cat([seq_idx[tokens], seq_idx[tokens.stop - 1].expand(padding)]).unflatten(
            0, (-1, chunks.size)
        )
        carried = seq_idx[max(tokens.start - 1, 0)]  # the document open before the block
        x, dt = chunked(x), chunked(dt)
        within, from_start, to_end, across = _decays(dt, A, document, carried)
        return cls(
            num_tokens,
            x,
            dt,
            A.to(chunks.dtype),
            chunked(B).transpose(1, 2).contiguous(),
            chunked(C).transpose(1, 2).contiguous(),
            D.to(chunks.dtype),
            x * dt[..., None],
            within,
            from_start,
            to_end,
            across,
        )

    # -----------------------------------------------------------------------------
    # Forward

    def forward(self, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (T, H, P), and the state (H, P, N) at the block's end, from the one before it."""
        weights = self._by_group(self.within) * self._scores()[:, :, None]  # (K, G, R, Q, Q)
        outputs = (weights.flatten(0, 2) @ self._by_head(self.values)).unflatten(0, self.across.shape)  # (K, H, Q, P)
        starts, carried = self._starts(carried)
        outputs = outputs.transpose(1, 2) + self._reads(starts) * self.from_start[..., None]
        outputs += self.x * self.D[:, None]
        return self._by_token(outputs), carried

    def _scores(self) -> Tensor:
        """C_l . B_s: (K, G, Q, Q)."""
        return self.C @ self.B.mT

    def _starts(self, carried: Tensor) -> tuple[Tensor, Tensor]:
        """The state at each chunk's start (K, H, P, N), and at the block's end."""
        added = self._writes(self.values * self.to_end[..., None], self.B)  # (K, H, P, N)
        starts = []
        for chunk_added, decay in zip(added, self.across[..., None, None], strict=True):
            starts.append(carried)
            carried = torch.addcmul(chunk_added, carried, decay)
        return torch.stack(starts), carried

    def _reads(self, states: Tensor) -> Tensor:
        """S C_l for every token: (K, H, P, N) -> (K, Q, H, P)."""
        return self._products(self.C, states)

    # -----------------------------------------------------------------------------
    # Backward

    def backward(self, grad_outputs: Tensor, carried: Tensor, grad_carried: Tensor) -> tuple[Gradients, Tensor]:
        """From the gradients of outputs (T, H, P) and of the state at the block's end.

        Returns the gradients of the inputs, and of the state `carried` into the block.
        """
        grad_outputs = self._padded(grad_outputs)  # (K, Q, H, P)
        grad_B, grad_C, grad_values, grad_log_decay = self._backward_within(grad_outputs)

        # The states, from the last chunk to the first.
        starts, _ = self._starts(carried)
        scaled = grad_outputs * self.from_start[..., None]  # (K, Q, H, P)
        read = self._writes(scaled, self.C)  # what each chunk's outputs ask of its start: (K, H, P, N)
        grad_ends = []
        for chunk_read, decay in zip(read.flip(0), self.across.flip(0)[..., None, None], strict=True):
            grad_ends.append(grad_carried)
            grad_carried = torch.addcmul(chunk_read, grad_carried, decay)
        grad_end = torch.stack(grad_ends[::-1])  # (K, H, P, N)

        # e: its decay is that of every token up to l; w: of every token after s; f: of all.
        reads = (self._reads(starts) * scaled).sum(-1)  # (K, Q, H)
        grad_log_decay += reads.flip(1).cumsum(1).flip(1)
        grad_C += self._joined(scaled) @ self._stacked(starts)
        written = self._products(self.B, grad_end) * self.to_end[..., None]  # (K, Q, H, P)
        writes = (written * self.values).sum(-1)  # (K, Q, H)
        grad_log_decay += writes.cumsum(1) - writes
        grad_values += written
        grad_B += self._joined(self.values * self.to_end[..., None]) @ self._stacked(grad_end)
        grad_log_decay += (self.across * (grad_end * starts).sum((-2, -1)))[:, None]

        grad_x = torch.addcmul(grad_outputs * self.D[:, None], grad_values, self.dt[..., None])
        grad_dt = (grad_values * self.x).sum(-1) + grad_log_decay * self.A
        by_token = (
            self._by_token(grad_x),
            self._by_token(grad_dt),
            self._by_token(grad_B.transpose(1, 2)),
            self._by_token(grad_C.transpose(1, 2)),
        )
        grad_A = (grad_log_decay * self.dt).sum((0, 1))
        grad_D = (grad_outputs * self.x).sum((0, 1, 3))
        return Gradients(by_token, grad_A, grad_D), grad_carried

    def _backward_within(self, grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients through the quadratic part: of B, C (K, G, Q, N), v (K, Q, H, P) and a (K, Q, H)."""
        num_chunks, num_heads = self.across.shape
        scores = self._scores()[:, :, None]  # (K, G, 1, Q, Q)
        grad_heads, values = self._by_head(grad_outputs), self._by_head(self.values)  # (K * H, Q, P)
        weights = self._by_group(self.within) * scores
        grad_values = (weights.flatten(0, 2).mT @ grad_heads).unflatten(0, (num_chunks, num_heads)).transpose(1, 2)

        grad_weights = (grad_heads @ values.mT).unflatten(0, (num_chunks, num_heads))  # (K, H, Q, Q)
        grad_weights = self._by_group(grad_weights.mul_(self.within))
        grad_scores = grad_weights.sum(2)  # (K, G, Q, Q)
        grad_C, grad_B = grad_scores @ self.B, grad_scores.mT @ self.C

        # L_ls decays by every a_t with s < t <= l: d/da_t is the sum over such (l, s) of L_ls dL_ls. Summing the
        # rectangles, rather than differences of row and column sums, cancels nothing.
        grad_exponent = weights.copy_(grad_weights).mul_(scores).flatten(1, 2)  # (K, H, Q, Q)
        size = grad_exponent.shape[-1]
        ones = grad_exponent.new_ones(size, size)
        before = grad_exponent @ ones.triu(1)  # entry (l, t): the sum over s < t
        grad_log_decay = before.mul_(ones.tril()).sum(-2).transpose(1, 2)
        return grad_B, grad_C, grad_values.contiguous(), grad_log_decay.contiguous()

    # -----------------------------------------------------------------------------
    # Layouts

    def _padded(self, tokens: Tensor) -> Tensor:
        """(T, H, P) -> (K, Q, H, P)."""
        num_chunks, size, *_ = self.dt.shape
        padding = num_chunks * size - self.num_tokens
        tokens = tokens.to(self.x.dtype)
        return (F.pad(tokens, (0, 0, 0, 0, 0, padding)) if padding else tokens).unflatten(0, (num_chunks, size))

    def _by_token(self, chunked: Tensor) -> Tensor:
        """(K, Q, ...) -> (T, ...)."""
        return chunked.flatten(0, 1)[: self.num_tokens]

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(K, Q, H, P) -> (K * H, Q, P)."""
        return tokens.transpose(1, 2).flatten(0, 1)

    def _by_group(self, heads: Tensor) -> Tensor:
        """(K, H, ...) -> (K, G, R, ...)."""
        return heads.unflatten(1, (self.B.shape[1], -1))

    def _joined(self, tokens: Tensor) -> Tensor:
        """The heads of a group side by side: (K, Q, H, P) -> (K, G, Q, R * P)."""
        return tokens.unflatten(2, (self.B.shape[1], -1)).flatten(3, 4).transpose(1, 2)

    def _stacked(self, states: Tensor) -> Tensor:
        """The heads of a group on top of each other: (K, H, P, N) -> (K, G, R * P, N)."""
        return self._by_group(states).flatten(2, 3)

    def _products(self, keys: Tensor, states: Tensor) -> Tensor:
        """states @ key of every token and head: (K, G, Q, N), (K, H, P, N) -> (K, Q, H, P)."""
        products = keys @ self._stacked(states).mT  # (K, G, Q, R * P)
        return products.transpose(1, 2).unflatten(3, (-1, states.shape[2])).flatten(2, 3)

    def _writes(self, tokens: Tensor, keys: Tensor) -> Tensor:
        """Sum over a chunk's tokens of token key^T: (K, Q, H, P), (K, G, Q, N) -> (K, H, P, N)."""
        stacked = self._joined(tokens).mT @ keys  # (K, G, R * P, N)
        return stacked.unflatten(2, (-1, tokens.shape[3])).flatten(1, 2)


def _decays(dt: Tensor, A: Tensor, document: Tensor, carried: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L (K, H, Q, Q), e (K, Q, H), w (K, Q, H) and f (K, H) of the module's docstring.

    Args:
        dt: (K, Q, H).
        document: (K, Q).
        carried: the document that is open before the first chunk.
    """
    size = dt.shape[1]
    last = document[:, -1]
    before = torch.cat([carried[None], last[:-1]])  # the document open before each chunk
    causal = torch.ones(size, size, dtype=torch.bool, device=dt.device).tril()
    reached = causal & (document[:, :, None] == document[:, None, :])  # (K, Q, Q): l from s

    # A product with the mask rather than a running sum: what precedes the document adds exact zeros.
    exact = reached.double() @ (dt.double() * A.double())  # (K, Q, H), this token included
    elapsed = exact.to(dt.dtype)
    # After one strong decay, sums are large and the differences of later ones small: what rounding the sums takes is
    # put back into the differences.
    rest = (exact - elapsed.double()).to(dt.dtype)
    by_head, rest_by_head = elapsed.transpose(1, 2).contiguous(), rest.transpose(1, 2).contiguous()  # (K, H, Q)
    within = by_head[..., :, None] - by_head[..., None, :]
    within.add_(rest_by_head[..., :, None]).sub_(rest_by_head[..., None, :])
    within = within.masked_fill_(~reached[:, None], float("-inf")).exp_()

    from_start = elapsed.exp() * (document == before[:, None])[..., None]
    open_at_end = (document == last[:, None])[..., None]
    to_end = (elapsed[:, -1:] - elapsed + (rest[:, -1:] - rest)).masked_fill_(~open_at_end, float("-inf")).exp_()
    return within, from_start, to_end, from_start[:, -1]
