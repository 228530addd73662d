"""A training state in pieces that belong to no engine, no number of ranks and no ZeRO stage.

What training holds of a parameter is its weight and Adam's two moments, in float32 at least. Laid flat, each is a line
of numbers; a fragment is a stretch of that line. Together, the fragments of all ranks cover every line once, so any
other division of the lines can be read from them: other ranks, another stage, another engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

WEIGHT, FIRST_MOMENT, SECOND_MOMENT = KINDS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of one parameter's line, with the state that training holds of it."""

    name: str  # as in `model.named_parameters()`
    start: int  # in the flattened parameter
    tensors: dict[str, Tensor]  # by kind: (n) each, views of the live state; without moments before the first update


# (name, kind, start, length) -> (length) of the stored line, on the CPU in the dtype that was stored
ReadState = Callable[[str, str, int, int], Tensor]


def own_stretch(length: int, rank: int, size: int) -> slice:
    """The part of a line that one of `size` ranks takes, where all of them hold the whole."""
    return slice(rank * length // size, (rank + 1) * length // size)
