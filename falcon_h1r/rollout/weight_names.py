"""What a sampler of another make is told of every weight: its name in the checkpoint's format, its dtype and its shape.

vLLM's own loader goes on from there: it renames A_log (to A, and stores -exp of it), moves `mamba.` one level down and
lays q, k, v and gate, up of a layer into one tensor each. So what is sent is what a checkpoint holds, adapters merged,
and tied embeddings are sent once, under the embedding's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import FalconH1Config

from falcon_h1r.distributed.engine import Engine
from falcon_h1r.model.load import weightless_model
from falcon_h1r.model.lora import has_adapters, merged_state
from falcon_h1r.model.precision import handed_over_dtype


@dataclass(frozen=True, slots=True)
class SentWeight:
    """One weight as it is announced."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def sent_weights(config: FalconH1Config, dtype: torch.dtype) -> list[SentWeight]:
    """Every weight of a model of this shape, in the order in which `full_weights` goes through them.

    Args:
        dtype: of all but A_log, D and dt_bias, which stay float32 at least.
    """
    return [
        SentWeight(name, handed_over_dtype(name, dtype), tuple(parameter.shape))
        for name, parameter in weightless_model(config, dtype).named_parameters()
    ]


def plain_weights(policy: Engine, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """The weights of the plain model that computes what the policy does. Every rank goes through all of them.

    Adapters are merged, for which the model is held whole once more, on the CPU, by the ranks that `keep`.
    """
    if not has_adapters(policy.model):
        yield from policy.full_weights()
        return
    weights = {name: tensor.cpu().clone() for name, tensor in policy.full_weights() if keep}
    if keep:
        yield from merged_state(policy.model, weights).items()


def as_announced(announced: list[SentWeight], weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights in their announced dtypes, each held against what was announced.

    A receiver cuts what it gets by what it was told: one tensor too few, and all that follow would be others.

    Raises:
        RuntimeError: naming the first that differs.
    """
    count = 0
    for name, tensor in weights:
        expected = announced[count] if count < len(announced) else None
        if expected is None or (name, tuple(tensor.shape)) != (expected.name, expected.shape):
            raise RuntimeError(f"weight {count}: {name} {tuple(tensor.shape)}, but {expected} was announced")
        yield name, tensor.to(expected.dtype)
        count += 1
    if count < len(announced):
        raise RuntimeError(f"weight {count}: {announced[count]} was announced, but is not there")
