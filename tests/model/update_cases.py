"""Inputs of a mixer's one-token update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class UpdateCase:
    num_slots: int
    num_heads: int
    head_width: int
    num_groups: int
    num_states: int

    def __str__(self) -> str:
        sizes = (self.num_slots, self.num_heads, self.head_width, self.num_groups, self.num_states)
        return "x".join(map(str, sizes))


CASES = (UpdateCase(3, 4, 8, 1, 16), UpdateCase(2, 6, 5, 2, 12), UpdateCase(1, 2, 40, 2, 32))


def update_inputs(case: UpdateCase, num_steps: int = 3) -> dict[str, Any]:
    """The state, of slots in use among others, and the arguments of each step, sliced from wider rows as in a layer."""
    generator = torch.Generator().manual_seed(0)
    heads, width, states = case.num_heads, case.head_width, case.num_groups * case.num_states
    A = -torch.rand(heads, generator=generator) - 0.1
    D = torch.randn(heads, generator=generator)
    steps = []
    for _ in range(num_steps):
        row = torch.randn(case.num_slots, heads * width + 2 * states, generator=generator)
        x, B, C = row.split([heads * width, states, states], dim=-1)
        dt = torch.rand(case.num_slots, heads, generator=generator)
        grouped = (tensor.unflatten(-1, (case.num_groups, -1)) for tensor in (B, C))
        steps.append((x.unflatten(-1, (heads, width)), dt, A, *grouped, D))
    state = torch.randn(case.num_slots + 2, heads, width, case.num_states, generator=generator)
    return {"state": state[: case.num_slots], "steps": steps}
