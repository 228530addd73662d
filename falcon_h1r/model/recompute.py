"""Activation checkpointing: what a layer's forward keeps for its backward, and where.

    none        everything
    layer       the layer's input; the backward runs the layer's forward again
    selective   the input and what attention returned: the one part whose cost grows with the square of a document is
                not paid twice, at the price of (T, H, d) kept a layer

With `offload` the inputs wait in the CPU's memory, pinned where there is a GPU. Results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from falcon_h1r.config_checks import CHECKPOINTING_MODES

# Attention by any backend, as the dispatcher calls it: the operators of torch, and flash-attn's own.
_ATTENTION_OPERATORS = ("scaled_dot_product", "_varlen_attn", "flash_attn")


def run_layer(layer: Callable[[Tensor], Tensor], hidden: Tensor, mode: str, offload: bool = False) -> Tensor:
    """layer(hidden), keeping for the backward what `mode` says.

    Args:
        mode: one of CHECKPOINTING_MODES.
        offload: needs mode "layer", for nothing else waits long enough.
    """
    assert mode in CHECKPOINTING_MODES and not (offload and mode != "layer")
    if mode == "none" or not torch.is_grad_enabled():
        return layer(hidden)
    if offload:
        # The reentrant variant saves its input as autograd does, so that a hook may take it elsewhere. It has a
        # gradient only if its input has one, which frozen embeddings do not give.
        hidden = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        with save_on_cpu(pin_memory=hidden.is_cuda):
            return checkpoint(layer, hidden, use_reentrant=True, preserve_rng_state=False)
    keep = partial(create_selective_checkpoint_contexts, _keep_attention)
    options: dict[str, Any] = {"context_fn": keep} if mode == "selective" else {}
    return checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False, **options)


def _keep_attention(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_attention = any(name in str(operator) for name in _ATTENTION_OPERATORS)
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE
