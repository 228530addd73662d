"""On a GPU: the kernels that are chosen there agree with the torch paths, outputs and gradients.

`python -m pytest -m gpu`. A kernel whose package is missing is skipped by name. Float32 is compared loosely, for the
scan's matrix products are TF32 there; the reference is float32 on the same inputs, rounded to the dtype under test.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from falcon_h1r.model.attention import bucketed_attention
from falcon_h1r.model.conv import packed_conv
from falcon_h1r.model.kernels import Kernels, choose_kernels
from falcon_h1r.model.ssd import ssd_scan
from tests.model.kernel_cases import SCAN_CASES, ScanCase, normals, outputs_and_gradients, relative_error, row_of
from tests.model.kernel_cases import scan_inputs as inputs_of_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 3e-2}
LONG_CASES = [ScanCase((700,), 1), ScanCase((256, 1, 300, 143), 2)]  # without resets, and with
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
LENGTHS = pytest.mark.parametrize("lengths", [(300,), (1, 150, 8, 141)], ids=str)


def chosen(dtype: torch.dtype, part: str) -> Kernels:
    kernels = choose_kernels(torch.device("cuda"), dtype)
    if f"{part} torch (" in kernels.description or f"{part} torch SDPA" in kernels.description:
        pytest.skip(kernels.description)
    return kernels


def compare(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert all(error < TOLERANCES[dtype] for error in errors.values()), errors


def widened(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in inputs.items()}


@DTYPES
@pytest.mark.parametrize("case", [*SCAN_CASES, *LONG_CASES], ids=str)
def test_scan(case: ScanCase, dtype: torch.dtype) -> None:
    scan, row = chosen(dtype, "scan").scan, row_of(case.lengths, "cuda")
    inputs = inputs_of_scan(case, dtype, "cuda")
    actual = outputs_and_gradients(lambda *tensors: scan(*tensors, row), inputs)
    expected = outputs_and_gradients(lambda *tensors: ssd_scan(*tensors, row.seq_idx)[0], widened(inputs))
    compare(actual, expected, dtype)


@DTYPES
@LENGTHS
@pytest.mark.parametrize("channels", [64, 60])
def test_convolution(channels: int, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    conv, row, normal = chosen(dtype, "convolution").conv, row_of(lengths, "cuda"), normals(seed=0)
    drawn = {"inputs": normal(300, 96), "weight": normal(channels, 4), "bias": normal(channels)}
    inputs = {name: tensor.to("cuda", dtype) for name, tensor in drawn.items()}
    inputs["inputs"] = inputs["inputs"][:, 16 : 16 + channels]
    actual = outputs_and_gradients(lambda *tensors: conv(*tensors, row), inputs)
    expected = outputs_and_gradients(lambda *tensors: packed_conv(*tensors, row.position_ids), widened(inputs))
    compare(actual, expected, dtype)


@DTYPES
@LENGTHS
@pytest.mark.parametrize("head_width", [64, 20])
def test_attention(head_width: int, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    attention, row, normal = chosen(dtype, "attention").attention, row_of(lengths, "cuda"), normals(seed=0)
    heads = {
        name: normal(300, count, head_width).to("cuda", dtype)
        for name, count in (("query", 6), ("key", 2), ("value", 2))
    }
    actual = outputs_and_gradients(lambda *tensors: attention(*tensors, row, 0.2), heads)
    expected = outputs_and_gradients(lambda *tensors: bucketed_attention(*tensors, row, 0.2), widened(heads))
    compare(actual, expected, dtype)
