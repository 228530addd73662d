"""From hidden states to the logprobs of the tokens that followed, without holding (T, V) for long rows.

Sources: the chunked linear cross-entropy that every large-vocabulary trainer has; here with Falcon-H1's
`lm_head_multiplier` (logits would be 76.8 times too large on the 7B without it) and a sampling temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import FalconH1ForCausalLM

from falcon_h1r.data.packing import PackedBatch

CHUNK_LOGITS = 1 << 24  # logits held at once: 64 MiB in float32


def packed_logprobs(
    model: FalconH1ForCausalLM, hidden: Tensor, batch: PackedBatch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logprob of each weighted token of a packed row given its prefix, and the entropy it was drawn from.

    Args:
        hidden: (T, E), final hidden states of the row.
        batch: only tokens whose `loss_weights` differ from 0 are computed.
        temperature: the logits are divided by it.

    Returns:
        logprobs (T) and entropies (T, detached), float32 at least; 0 where the weight is 0.
    """
    targets = batch.loss_weights.nonzero().squeeze(1)
    scale = model.model.lm_head_multiplier / temperature
    rows = max(1, CHUNK_LOGITS // model.config.vocab_size)
    several = len(targets) > rows
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    parts = []
    for index in targets.split(rows):
        arguments = (hidden[index - 1], model.lm_head.weight, batch.input_ids[index], scale)
        # One chunk keeps its logits; several recompute theirs in the backward pass.
        parts.append(
            checkpoint(_chunk_logprobs, *arguments, use_reentrant=False)
            if several and torch.is_grad_enabled()
            else _chunk_logprobs(*arguments)
        )
    logprobs, entropies = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else (hidden[:0, 0],) * 2
    empty = hidden.new_zeros(len(hidden), dtype=dtype)
    # A row without targets stays attached to the graph, so that its backward meets every parameter.
    attached = empty + 0.0 * hidden.sum() if not parts or len(targets) == 0 else empty
    return (
        attached.index_copy(0, targets, logprobs.to(dtype)),
        empty.index_copy(0, targets, entropies.detach().to(dtype)),
    )


def _chunk_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(n, E), (V, E), (n) -> logprobs (n), entropies (n)."""
    logits = hidden @ weight.t() * scale
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    with torch.no_grad():
        entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropies
