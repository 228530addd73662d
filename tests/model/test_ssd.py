"""The chunked scan equals the literal recurrence: outputs, states, gradients, resets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from falcon_h1r.model.ssd import ssd_recurrence, ssd_scan

HEADS, HEAD_DIM, GROUPS, STATE = 4, 3, 2, 5


def scan_inputs(lengths: list[int], dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Inputs with gradient, seq_idx, and each document's last position."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = sum(lengths)
    tensors = [
        normal(tokens, HEADS, HEAD_DIM),
        normal(tokens, HEADS).exp(),  # dt over several orders of magnitude
        -normal(HEADS).exp(),
        normal(tokens, GROUPS, STATE),
        normal(tokens, GROUPS, STATE),
        normal(HEADS),
    ]
    seq_idx = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ends = torch.tensor(lengths).cumsum(0) - 1
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], seq_idx, ends


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), chunk_size=st.sampled_from([1, 4, 16, 64]))
def test_scan_equals_recurrence_in_float64(lengths: list[int], chunk_size: int) -> None:
    inputs, seq_idx, ends = scan_inputs(lengths, torch.float64)
    slow, slow_states = ssd_recurrence(*inputs, seq_idx, ends)
    fast, fast_states = ssd_scan(*inputs, seq_idx, ends, chunk_size)
    assert fast_states is not None
    assert relative_error(fast, slow) < 1e-12
    assert relative_error(fast_states, slow_states) < 1e-12

    cotangents = torch.randn_like(slow), torch.randn_like(slow_states)
    slow_gradients = torch.autograd.grad((slow, slow_states), inputs, cotangents)
    fast_gradients = torch.autograd.grad((fast, fast_states), inputs, cotangents)
    for fast_gradient, slow_gradient in zip(fast_gradients, slow_gradients, strict=True):
        assert relative_error(fast_gradient, slow_gradient) < 1e-10


@pytest.mark.parametrize("lengths", [[64, 64], [63, 1, 64], [1] * 20, [130], [65, 3, 60]])
def test_scan_equals_recurrence_in_float32_on_and_off_chunk_borders(lengths: list[int]) -> None:
    inputs, seq_idx, ends = scan_inputs(lengths, torch.float32)
    slow, _ = ssd_recurrence(*inputs, seq_idx, ends)
    fast, _ = ssd_scan(*inputs, seq_idx)
    assert relative_error(fast, slow) < 1e-5


def test_changing_one_document_leaves_the_others_bit_for_bit() -> None:
    inputs, seq_idx, ends = scan_inputs([50, 30, 77], torch.float32)
    before, states_before = ssd_scan(*inputs, seq_idx, ends)
    with torch.no_grad():
        for tensor in (inputs[0], inputs[1], inputs[3], inputs[4]):
            tensor[50:80] *= 1.7
    after, states_after = ssd_scan(*inputs, seq_idx, ends)
    assert states_before is not None and states_after is not None
    others = seq_idx != 1
    assert torch.equal(before[others], after[others])
    assert torch.equal(states_before[[0, 2]], states_after[[0, 2]])
    assert not torch.equal(before[~others], after[~others])
