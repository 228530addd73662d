"""The Mamba2 scan (state-space duality) on one packed row, with resets at document borders.

Every head h carries a state S in R^(P x N) through the tokens of its document:

    S_t = exp(dt_t * A) * S_(t-1) + dt_t * x_t B_t^T          y_t = S_t C_t + D * x_t

and starts at each document's first token from zero, or from the initial state given for that document (Dao & Gu
2024, arXiv 2405.21060, section 6). `ssd_recurrence` is that line, literally; `ssd_scan` is the chunked matrix form.
Both take

    x   (T, H, P)   the values                 dt      (T, H)      step sizes, after softplus, > 0
    A   (H)         decay rates, < 0           B, C    (T, G, N)   shared by the H / G heads of a group
    D   (H)         skip weight                seq_idx (T)         document of each token: 0, 1, 2, ... in order

and optionally `initial_states` (num_documents, H, P, N); they return y (T, H, P) in the dtype of x and, where asked,
the state after each document's last token (num_documents, H, P, N). All are differentiable. Work is done in float32,
or float64 where the inputs are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from falcon_h1r.model.ssd_block import Block, Chunks

CHUNK_TOKENS = 64
# Entries of the decay matrices (chunks, H, Q, Q) that are alive at once: a block stays in a CPU core's second-level
# cache (1 MiB in float32); a GPU wants more work for a launch.
BLOCK_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 25}


def ssd_recurrence(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    seq_idx: Tensor,
    initial_states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The literal recurrence, one token at a time: the slow twin that `ssd_scan` is tested against.

    Returns y and the final states.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, dt, A, B, C, D = (tensor.to(dtype) for tensor in (x, dt, A, B, C, D))
    num_tokens, num_heads, _ = x.shape
    B, C = (tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1) for tensor in (B, C))  # (T, H, N)
    zero = x.new_zeros(num_heads, x.shape[2], B.shape[2])
    state, outputs, final_states = zero, [], []
    for t in range(num_tokens):
        if t == 0 or seq_idx[t] != seq_idx[t - 1]:
            state = zero if initial_states is None else initial_states[seq_idx[t]].to(dtype)
        decay = torch.exp(dt[t] * A)[:, None, None]
        state = decay * state + (dt[t][:, None] * x[t])[:, :, None] * B[t][:, None, :]
        outputs.append((state @ C[t][:, :, None]).squeeze(-1) + D[:, None] * x[t])
        if t + 1 == num_tokens or seq_idx[t] != seq_idx[t + 1]:
            final_states.append(state)
    return torch.stack(outputs), torch.stack(final_states)


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    seq_idx: Tensor,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    chunk_size: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor | None]:
    """The scan in chunks of Q tokens: dense products inside a chunk, one carried state between chunks.

    Several chunks make a block, and only one block's matrices exist at a time. The backward pass keeps the inputs
    and the state at each block's start, and makes the rest anew. Time and memory grow linearly with T.

    The scan is linear in its initial states, so their share of the outputs is added to a scan that starts from zero.
    """
    outputs: Tensor = _Scan.apply(x, dt, A, B, C, D, seq_idx, chunk_size)
    if initial_states is None and not return_final_states:
        return outputs, None
    lengths = torch.unique_consecutive(seq_idx, return_counts=True)[1].tolist()
    if initial_states is not None:
        outputs = outputs + initial_reads(dt, A, C, lengths, initial_states).to(x.dtype)
    return outputs, final_states(x, dt, A, B, lengths, initial_states) if return_final_states else None


def initial_reads(dt: Tensor, A: Tensor, C: Tensor, lengths: Sequence[int], initial_states: Tensor) -> Tensor:
    """What outputs read of the initial states: exp(dt_1 A + ... + dt_t A) S_0 C_t of each document, (T, H, P)."""
    compute = torch.promote_types(C.dtype, torch.float32)
    reads = []
    documents = zip(dt.split(list(lengths)), C.to(compute).split(list(lengths)), initial_states, strict=True)
    for document_dt, document_C, state in documents:
        elapsed = (document_dt.double() * A.double()).cumsum(0)  # (length, H), log decay since the document's start
        reads.append(_reads(document_C, state.to(compute)) * elapsed.exp().to(compute)[..., None])
    return torch.cat(reads)


def final_states(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, lengths: Sequence[int], initial_states: Tensor | None = None
) -> Tensor:
    """The state after each document's last token: (num_documents, H, P, N).

    A sum over the document's tokens, so that it goes with any kernel for the outputs.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    states = []
    for index, (document_x, document_dt, document_B) in enumerate(
        zip(*(tensor.split(list(lengths)) for tensor in (x, dt, B)), strict=True)
    ):
        elapsed = (document_dt.double() * A.double()).cumsum(0)  # (length, H)
        to_end = document_dt * (elapsed[-1] - elapsed).exp().to(compute)
        state = _writes(document_x.to(compute) * to_end[..., None], document_B.to(compute))
        if initial_states is not None:
            state = state + elapsed[-1].exp().to(compute)[:, None, None] * initial_states[index].to(compute)
        states.append(state)
    return torch.stack(states)


def _reads(C: Tensor, state: Tensor) -> Tensor:
    """state_h C_t of every token and head: (T, G, N), (H, P, N) -> (T, H, P)."""
    num_groups = C.shape[1]
    grouped = state.unflatten(0, (num_groups, -1))  # (G, R, P, N)
    return torch.einsum("tgn,grpn->tgrp", C, grouped).flatten(1, 2)


def _writes(values: Tensor, B: Tensor) -> Tensor:
    """sum over t of values_t B_t^T: (T, H, P), (T, G, N) -> (H, P, N)."""
    grouped = values.unflatten(1, (B.shape[1], -1))  # (T, G, R, P)
    return torch.einsum("tgrp,tgn->grpn", grouped, B).flatten(0, 1)


class _Scan(torch.autograd.Function):
    """The scan from zero states, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        seq_idx: Tensor,
        chunk_size: int,
    ) -> Tensor:
        chunks = Chunks.of(x, B, chunk_size)
        outputs = torch.empty_like(x, memory_format=torch.contiguous_format)
        carried = chunks.zero_state()  # (H, P, N)
        block_starts = []
        for tokens in _blocks(chunks):
            block_starts.append(carried)
            block = Block.of(chunks, tokens, x, dt, A, B, C, D, seq_idx)
            block_outputs, carried = block.forward(carried)
            outputs[tokens] = block_outputs
        ctx.save_for_backward(x, dt, A, B, C, D, seq_idx, torch.stack(block_starts))
        ctx.chunks = chunks
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, seq_idx, block_starts = ctx.saved_tensors
        chunks: Chunks = ctx.chunks
        grad_x, grad_dt, grad_B, grad_C = (
            torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, dt, B, C)
        )
        grad_A, grad_D = (torch.zeros_like(tensor, dtype=chunks.dtype) for tensor in (A, D))
        grad_carried = chunks.zero_state()  # of the state at the block's end
        for index, tokens in reversed(list(enumerate(_blocks(chunks)))):
            block = Block.of(chunks, tokens, x, dt, A, B, C, D, seq_idx)
            gradients, grad_carried = block.backward(grad_outputs[tokens], block_starts[index], grad_carried)
            grad_x[tokens], grad_dt[tokens], grad_B[tokens], grad_C[tokens] = gradients.by_token
            grad_A += gradients.A
            grad_D += gradients.D
        return grad_x, grad_dt, grad_A.to(A.dtype), grad_B, grad_C, grad_D.to(D.dtype), None, None


def _blocks(chunks: Chunks) -> Iterator[slice]:
    """The tokens of each block, in order; all but the last block hold equally many whole chunks."""
    entries = BLOCK_ENTRIES.get(chunks.device.type, BLOCK_ENTRIES["cuda"])
    size = chunks.size * max(1, entries // (chunks.num_heads * chunks.size**2))
    for start in range(0, chunks.num_tokens, size):
        yield slice(start, min(start + size, chunks.num_tokens))
