"""Working in blocks changes memory and time, never results: the formula itself is the slow twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from falcon_h1r.model import blocks, conv, pointwise
from falcon_h1r.model.blocks import blockwise
from falcon_h1r.model.conv import packed_conv, packed_conv_taps

TOKENS, CHANNELS = 37, 12


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Five tokens or so a block, so that small rows have several and a ragged last one."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 5 * CHANNELS * 8)
    monkeypatch.setattr(conv, "BLOCK_BYTES", 5 * CHANNELS * 8)
    yield


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The result, and the gradient of every input that has one."""
    torch.manual_seed(1)
    inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    outputs = function(*inputs)
    cotangent = normal(*outputs.shape, dtype=outputs.dtype)
    return [outputs, *torch.autograd.grad(outputs, [tensor for tensor in inputs if tensor.requires_grad], cotangent)]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1e-30)


FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "rms norm": (
        lambda hidden, weight: pointwise.rms_norm(hidden, weight, 1e-5),
        lambda hidden, weight: pointwise._rms_norm(hidden, weight, 1e-5),
        [(TOKENS, CHANNELS), (CHANNELS,)],
    ),
    "gate, then norm by group": (
        lambda *tensors: pointwise.gated_norm(*tensors, 1e-5, 3, False),
        lambda *tensors: pointwise._gated_norm(*tensors, 1e-5, 3, False),
        [(TOKENS, CHANNELS), (TOKENS, CHANNELS), (CHANNELS,), (CHANNELS,)],
    ),
    "norm, then gate": (
        lambda *tensors: pointwise.gated_norm(*tensors, 1e-5, 1, True),
        lambda *tensors: pointwise._gated_norm(*tensors, 1e-5, 1, True),
        [(TOKENS, CHANNELS), (TOKENS, CHANNELS), (CHANNELS,), (CHANNELS,)],
    ),
    "gate alone": (
        lambda *tensors: pointwise.gated_norm(*tensors, None, 0.0, 1, False),
        pointwise._gated,
        [(TOKENS, CHANNELS), (TOKENS, CHANNELS), (CHANNELS,)],
    ),
    "swiglu": (
        lambda gate, up: pointwise.swiglu(gate, up, 0.3),
        lambda gate, up: pointwise._swiglu(gate, up, 0.3),
        [(TOKENS, CHANNELS), (TOKENS, CHANNELS)],
    ),
    "rotation": (pointwise.rotate, pointwise._rotate, [(TOKENS, 3, 4), (TOKENS, 1, 2), (TOKENS, 1, 2)]),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_in_blocks_equals_the_formula(name: str, dtype: torch.dtype, tolerance: float) -> None:
    in_blocks, formula, shapes = FORMULAS[name]
    inputs = [normal(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    assert_same(gradients(in_blocks, inputs), gradients(formula, inputs), tolerance)


@pytest.mark.parametrize("name", FORMULAS)
def test_bfloat16_goes_in_and_comes_out(name: str) -> None:
    """Within blocks too, weights' gradients are summed in float32."""
    in_blocks, formula, shapes = FORMULAS[name]
    inputs = [normal(*shape, dtype=torch.bfloat16).requires_grad_() for shape in shapes]
    found = gradients(in_blocks, inputs)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found)
    exact = gradients(formula, [tensor.detach().double().requires_grad_() for tensor in inputs])
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other).abs().max() < 0.03 * other.abs().max()


def test_inputs_may_be_slices_and_need_no_gradient() -> None:
    wide = normal(TOKENS, 3 * CHANNELS)
    inputs = [wide[:, :CHANNELS].requires_grad_(), wide[:, CHANNELS : 2 * CHANNELS]]

    def product(first: Tensor, second: Tensor) -> Tensor:
        return first * second

    found = gradients(lambda *tensors: blockwise(product, tensors), inputs)
    assert len(found) == 2
    assert_same(found, gradients(product, inputs), 0.0)


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("with_bias", [True, False])
@given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=6))
def test_the_convolution_in_blocks_equals_its_taps(lengths: list[int], kernel: int, with_bias: bool) -> None:
    """Outputs and gradients: documents shorter than the kernel, borders on and off block borders."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    inputs = [normal(len(positions), CHANNELS).requires_grad_(), normal(CHANNELS, kernel).requires_grad_()]
    inputs += [normal(CHANNELS).requires_grad_()] if with_bias else []

    def run(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda row, weight, bias=None: convolve(row, weight, bias, positions)

    assert_same(gradients(run(packed_conv), inputs), gradients(run(packed_conv_taps), inputs), 1e-12)
