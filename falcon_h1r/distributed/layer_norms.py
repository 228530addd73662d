"""Gradient norms by layer: where in the model a step's gradient comes from, and which layer blows up first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from falcon_h1r.distributed.world import World

LAYER = re.compile(r"\.layers\.(\d+)\.")


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to; the last norm goes with the head.

    >>> layer_of("model.layers.7.mamba.A_log"), layer_of("model.embed_tokens.weight"), layer_of("lm_head.weight")
    ('layer_07', 'embedding', 'head')
    """
    if (found := LAYER.search(name)) is not None:
        return f"layer_{int(found[1]):02}"
    return "embedding" if ".embed_tokens." in name else "head"


class LayerSquares:
    """Sums of squares of the gradient's entries, by layer, from this rank's pieces of it."""

    def __init__(self, names: Iterable[str]) -> None:
        """
        Args:
            names: of all parameters that are trained, so that every rank has the same layers.
        """
        self._parts: dict[str, list[Tensor]] = {layer: [] for layer in map(layer_of, names)}

    def add(self, name: str, gradient: Tensor) -> None:
        """A piece of a parameter's gradient."""
        self._parts[layer_of(name)].append(
            gradient.detach().square().sum(dtype=torch.promote_types(gradient.dtype, torch.float32))
        )

    def norms(self, grad_norm: float, sum_over: World | None = None) -> dict[str, float]:
        """Norms whose squares add up to `grad_norm` squared, in whatever scale the pieces were: averaged, or clipped.

        Args:
            sum_over: the ranks whose pieces are the whole gradient together; None: each has all of it.
        """
        squares = [torch.stack(parts).sum().item() if parts else 0.0 for parts in self._parts.values()]
        if sum_over is not None:
            squares = sum_over.sum(squares)
        scale = grad_norm / (math.sqrt(sum(squares)) or 1.0)
        return {layer: scale * math.sqrt(square) for layer, square in zip(self._parts, squares, strict=True)}
