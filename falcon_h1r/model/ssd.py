"""The Mamba2 scan (state-space duality) on one packed row, with resets at document borders.

Every head h carries a state S in R^(P x N) through the tokens of its document:

    S_t = exp(dt_t * A) * S_(t-1) + dt_t * x_t B_t^T          y_t = S_t C_t + D * x_t

and starts from zero at each document's first token (Dao & Gu 2024, arXiv 2405.21060, section 6).
`ssd_recurrence` is that line, literally; `ssd_scan` is the chunked matrix form that training uses. Both take

    x   (T, H, P)   the values                 dt      (T, H)      step sizes, after softplus, > 0
    A   (H)         decay rates, < 0           B, C    (T, G, N)   shared by the H / G heads of a group
    D   (H)         skip weight                seq_idx (T)         document of each token, non-decreasing

and return y (T, H, P) and the state after each token of `state_positions` (K, H, P, N).
Work is done in float32, or float64 where the inputs are float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_recurrence(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    seq_idx: Tensor,
    state_positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """The literal recurrence, one token at a time: the slow twin that `ssd_scan` is tested against."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, dt, A, B, C, D = (tensor.to(dtype) for tensor in (x, dt, A, B, C, D))
    num_tokens, num_heads, _ = x.shape
    B, C = (tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1) for tensor in (B, C))  # (T, H, N)
    state = x.new_zeros(num_heads, x.shape[2], B.shape[2])
    outputs, states = [], []
    for t in range(num_tokens):
        if t > 0 and seq_idx[t] != seq_idx[t - 1]:
            state = torch.zeros_like(state)
        decay = torch.exp(dt[t] * A)[:, None, None]
        state = decay * state + (dt[t][:, None] * x[t])[:, :, None] * B[t][:, None, :]
        states.append(state)
        outputs.append((state @ C[t][:, :, None]).squeeze(-1) + D[:, None] * x[t])
    return torch.stack(outputs), torch.stack(states)[state_positions]


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    seq_idx: Tensor,
    state_positions: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor | None]:
    """The scan in chunks of Q tokens: dense products inside a chunk, one carried state between chunks.

    A document border cuts all four paths by a mask: within a chunk, into the chunk's final state, from chunk
    to chunk, and from the carried state into the outputs. A masked term is an exact zero, and decays are
    differences of cumulative sums taken in float64, so that one document's values do not disturb another's.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, dt, A, B, C, D = (tensor.to(dtype) for tensor in (x, dt, A, B, C, D))
    num_tokens, num_heads, head_dim = x.shape
    num_groups, state_size = B.shape[1:]
    heads_per_group = num_heads // num_groups
    padding = -num_tokens % chunk_size
    num_chunks = (num_tokens + padding) // chunk_size
    document = F.pad(seq_idx, (0, padding), value=-1)
    if padding:  # the tail continues the last document with dt = 0: it neither decays nor writes
        document[num_tokens:] = seq_idx[-1]
    document = document.view(num_chunks, chunk_size)

    # c chunks, l and s positions in a chunk, g groups, r heads of a group, p head dim, n state.
    def chunked(tensor: Tensor, *shape: int) -> Tensor:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, padding))
        return tensor.view(num_chunks, chunk_size, *shape)

    values = chunked(x * dt[..., None], num_groups, heads_per_group, head_dim).permute(0, 2, 3, 1, 4)  # cgrlp
    keys = chunked(B, num_groups, state_size).transpose(1, 2)  # cgsn
    queries = chunked(C, num_groups, state_size).transpose(1, 2)  # cgln
    log_decay = chunked(dt * A, num_groups, heads_per_group).permute(0, 2, 3, 1)  # cgrl
    elapsed = _elapsed_in_document(log_decay, document)  # cgrl

    # 1. Within a chunk: token s reaches token l >= s of its own document.
    decay = _decay_between(elapsed, document[:, None, None, :])  # cgrls
    scores = (queries @ keys.transpose(-1, -2))[:, :, None] * decay  # cgrls
    outputs = scores @ values  # cgrlp

    # 2. What each chunk adds to the state of the document that is open at its end.
    last_document = document[:, -1]  # c
    open_at_end = (document == last_document[:, None])[:, None, None, :]
    to_end = torch.exp((elapsed[..., -1:] - elapsed).masked_fill(~open_at_end, float("-inf")))  # cgrl
    added = (values * to_end[..., None]).transpose(-1, -2) @ keys[:, :, None]  # cgrpn

    # 3. From chunk to chunk, as long as the document stays open.
    total = log_decay.double().sum(-1).permute(1, 2, 0).cumsum(-1)  # grc, since the row's start
    carry = _decay_between(total, last_document).to(dtype)  # grcz
    ends = torch.einsum("grcz,zgrpn->cgrpn", carry, added)  # state at each chunk's end
    starts = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])

    # 4. The carried state, into the tokens of the document it belongs to.
    previous_document = torch.cat([document[:1, 0], last_document[:-1]])
    continues = (document == previous_document[:, None])[:, None, None, :]
    from_start = torch.exp(elapsed) * continues  # cgrl
    outputs = outputs + (queries[:, :, None] @ starts.transpose(-1, -2)) * from_start[..., None]

    outputs = outputs.permute(0, 3, 1, 2, 4).reshape(-1, num_heads, head_dim)[:num_tokens]
    outputs = outputs + D[:, None] * x
    if state_positions is None:
        return outputs, None
    chunk, offset = state_positions // chunk_size, state_positions % chunk_size
    own = decay[chunk, :, :, offset]  # (K, G, R, Q): row `offset` of the chunk's decay matrix
    states = (values[chunk] * own[..., None]).transpose(-1, -2) @ keys[chunk][:, :, None]
    states = states + from_start[chunk, :, :, offset][..., None, None] * starts[chunk]
    return outputs, states.reshape(-1, num_heads, head_dim, state_size)


def _elapsed_in_document(log_decay: Tensor, document: Tensor) -> Tensor:
    """Log decay since the chunk's or the document's start, whichever is later, this token included: (c, g, r, Q).

    Summed in float64 and rebased before rounding, so that a document's entries are the same whatever precedes it.
    """
    size = log_decay.shape[-1]
    position = torch.arange(size, device=document.device)
    starts = torch.ones_like(document, dtype=torch.bool)
    starts[:, 1:] = document[:, 1:] != document[:, :-1]
    first = torch.where(starts, position, 0).cummax(-1).values  # (c, Q)
    elapsed = log_decay.double().cumsum(-1)
    before = (elapsed - log_decay).gather(-1, first[:, None, None, :].expand_as(elapsed))
    return (elapsed - before).to(log_decay.dtype)


def _decay_between(elapsed: Tensor, document: Tensor) -> Tensor:
    """exp(elapsed_l - elapsed_s) where s <= l and both are of one document, else 0: (..., Q) -> (..., Q, Q)."""
    size = elapsed.shape[-1]
    causal = torch.ones(size, size, dtype=torch.bool, device=elapsed.device).tril()
    allowed = causal & (document[..., :, None] == document[..., None, :])
    difference = elapsed[..., :, None] - elapsed[..., None, :]
    return torch.exp(difference.masked_fill(~allowed, float("-inf")))
