"""A training state in pieces that belong to no engine, no number of ranks and no ZeRO stage.

What training holds of a parameter is its weight and Adam's two moments, in float32 at least. Laid flat, each is a line
of numbers; a fragment is a stretch of that line. Together, the fragments of all ranks cover every line once, so any
other division of the lines can be read from them: other ranks, another stage, another engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from falcon_h1r.distributed.world import World

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")  # the latter as torch's Adam calls them


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of one parameter's line, with the state that training holds of it."""

    name: str  # as in `model.named_parameters()`
    start: int  # in the flattened parameter
    tensors: dict[str, Tensor]  # by kind: (n) each, views of the live state; without moments before the first update


# (name, kind, start, length) -> (length) of the stored line, on the CPU in the dtype that was stored
ReadState = Callable[[str, str, int, int], Tensor]


def replica_fragments(trained: Mapping[str, nn.Parameter], optimizer: Optimizer, world: World) -> list[Fragment]:
    """Of a state that every rank holds whole: to each rank an equal stretch of every line."""
    found = []
    for name, parameter in trained.items():
        length = parameter.numel()
        own = slice(world.rank * length // world.size, (world.rank + 1) * length // world.size)
        state = optimizer.state.get(parameter, {})
        lines = {WEIGHT: parameter.detach(), **{kind: state[kind] for kind in MOMENTS if kind in state}}
        found.append(Fragment(name, own.start, {kind: line.view(-1)[own] for kind, line in lines.items()}))
    return found


@torch.no_grad()
def load_replica(trained: Mapping[str, nn.Parameter], optimizer: Optimizer, read: ReadState, updates_done: int) -> None:
    """Read a state that every rank holds whole."""
    for name, parameter in trained.items():
        parameter.view(-1).copy_(read(name, WEIGHT, 0, parameter.numel()))
        if updates_done:
            state = optimizer.state[parameter]
            state["step"] = torch.tensor(float(updates_done))
            for kind in MOMENTS:
                state[kind] = read(name, kind, 0, parameter.numel()).to(parameter).view_as(parameter)
