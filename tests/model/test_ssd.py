"""The chunked scan equals the literal recurrence: outputs, states, gradients, resets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from falcon_h1r.model import ssd
from falcon_h1r.model.ssd import ssd_recurrence, ssd_scan

HEADS, HEAD_DIM, GROUPS, STATE = 4, 3, 2, 5
DOCUMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
CHUNKS = st.sampled_from([1, 4, 16, 64])


def scan_inputs(lengths: list[int], dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Inputs with gradient, and seq_idx."""
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
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], seq_idx


def initial_states(num_documents: int) -> Tensor:
    shape = (num_documents, HEADS, HEAD_DIM, STATE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).requires_grad_()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@settings(max_examples=40, deadline=None)
@given(lengths=DOCUMENTS, chunk_size=CHUNKS, with_initial=st.booleans())
def test_scan_equals_recurrence_in_float64(lengths: list[int], chunk_size: int, with_initial: bool) -> None:
    inputs, seq_idx = scan_inputs(lengths, torch.float64)
    initial = initial_states(len(lengths)) if with_initial else None
    slow, slow_states = ssd_recurrence(*inputs, seq_idx, initial)
    fast, fast_states = ssd_scan(
        *inputs, seq_idx, initial_states=initial, return_final_states=True, chunk_size=chunk_size
    )
    assert fast_states is not None
    assert relative_error(fast, slow) < 1e-12
    assert relative_error(fast_states, slow_states) < 1e-12

    cotangents = torch.randn_like(slow), torch.randn_like(slow_states)
    wanted = [*inputs, *([] if initial is None else [initial])]
    slow_gradients = torch.autograd.grad((slow, slow_states), wanted, cotangents)
    fast_gradients = torch.autograd.grad((fast, fast_states), wanted, cotangents)
    for fast_gradient, slow_gradient in zip(fast_gradients, slow_gradients, strict=True):
        assert relative_error(fast_gradient, slow_gradient) < 1e-10


@settings(max_examples=15, deadline=None)
@given(lengths=DOCUMENTS)
def test_many_blocks_equal_one(lengths: list[int]) -> None:
    """The row is worked on block by block; where blocks end shows neither in outputs nor in gradients."""
    inputs, seq_idx = scan_inputs(lengths, torch.float64)
    cotangent = torch.randn_like(inputs[0])

    def results() -> list[Tensor]:
        outputs, _ = ssd_scan(*inputs, seq_idx, chunk_size=4)
        return [outputs, *torch.autograd.grad(outputs, inputs, cotangent)]

    whole = results()
    entries = dict(ssd.BLOCK_ENTRIES)
    ssd.BLOCK_ENTRIES["cpu"] = 2 * HEADS * 4 * 4  # two chunks a block
    try:
        cut = results()
    finally:
        ssd.BLOCK_ENTRIES.update(entries)
    for one, other in zip(whole, cut, strict=True):
        assert relative_error(one, other) < 1e-12


@pytest.mark.parametrize("lengths", [[64, 64], [63, 1, 64], [1] * 20, [130], [65, 3, 60]])
def test_scan_equals_recurrence_in_float32_on_and_off_chunk_borders(lengths: list[int]) -> None:
    inputs, seq_idx = scan_inputs(lengths, torch.float32)
    slow, _ = ssd_recurrence(*inputs, seq_idx)
    fast, _ = ssd_scan(*inputs, seq_idx)
    assert relative_error(fast, slow) < 1e-5


def test_a_state_handed_on_continues_the_document() -> None:
    """Prefill in pieces: the final state of a first piece is the initial state of the next."""
    inputs, seq_idx = scan_inputs([70], torch.float64)
    whole, final = ssd_scan(*inputs, seq_idx, return_final_states=True)
    x, dt, A, B, C, D = inputs
    first, state = ssd_scan(x[:29], dt[:29], A, B[:29], C[:29], D, seq_idx[:29], return_final_states=True)
    second, last = ssd_scan(
        x[29:], dt[29:], A, B[29:], C[29:], D, seq_idx[29:], initial_states=state, return_final_states=True
    )
    assert final is not None and last is not None
    assert relative_error(torch.cat([first, second]), whole) < 1e-12
    assert relative_error(last, final) < 1e-12


def test_changing_one_document_leaves_the_others_bit_for_bit() -> None:
    """Outputs, states, and the gradients of the others' loss."""
    inputs, seq_idx = scan_inputs([50, 30, 77], torch.float32)
    others = seq_idx != 1

    def results() -> list[Tensor]:
        outputs, states = ssd_scan(*inputs, seq_idx, return_final_states=True)
        assert states is not None
        gradients = torch.autograd.grad(outputs[others].square().sum(), inputs)
        by_token = [gradients[index][others] for index in (0, 1, 3, 4)]
        return [outputs[others], states[[0, 2]], *by_token, gradients[2], gradients[5]]

    before = results()
    with torch.no_grad():
        for tensor in (inputs[0], inputs[1], inputs[3], inputs[4]):
            tensor[50:80] *= 1.7
    for one, other in zip(before, results(), strict=True):
        assert torch.equal(one, other)


def test_decays_stay_exact_over_a_long_row() -> None:
    """exp of a difference of sums: over 49,152 tokens of A dt = -1 the sums reach -49,152, and float32 in them would be
    off by 2e-3. A document in the middle of such a row gets the outputs it has alone, and float64's to rounding."""
    tokens, last = 49_152, 64
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide: list[Any] = [normal(tokens, 1, 2), normal(tokens, 1).abs(), -torch.ones(1, dtype=torch.float64)]
    wide += [normal(tokens, 1, 4), normal(tokens, 1, 4), normal(1)]
    one_document = torch.zeros(tokens, dtype=torch.int64)
    exact, _ = ssd_scan(*wide, one_document)
    rounded, _ = ssd_scan(*(tensor.float() for tensor in wide), one_document)
    assert math.isfinite(rounded.sum().item())
    assert relative_error(rounded[-last:].double(), exact[-last:]) < 2e-6


@pytest.mark.parametrize("strongest", [1e2, 1e4])
def test_a_strong_decay_does_not_blur_the_weak_ones_after_it(strongest: float) -> None:
    """One token in 64 forgets everything, the rest next to nothing: float32 stays within float32 of float64."""
    inputs, seq_idx = scan_inputs([256], torch.float64)
    with torch.no_grad():
        inputs[1].fill_(0.01)
        inputs[1][::64] = strongest
        inputs[2].fill_(-1.0)
    exact, _ = ssd_recurrence(*inputs, seq_idx)
    cotangent = torch.randn_like(exact)
    exact_gradients = torch.autograd.grad(exact, inputs, cotangent)
    rounded = [tensor.detach().float().requires_grad_() for tensor in inputs]
    found, _ = ssd_scan(*rounded, seq_idx)
    gradients = torch.autograd.grad(found, rounded, cotangent.float())
    assert relative_error(found.double(), exact) < 2e-6
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert relative_error(gradient.double(), exact_gradient) < 2e-6
