"""Rows and tensors on which a layer's kernels are compared: in Triton's interpreter and on a GPU alike."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import torch
from torch import Tensor

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.row import Row

SCAN_NAMES = ("x", "dt", "A", "B", "C", "D")
CHUNK_TOKENS = 16
HEADS_A_GROUP, HEAD_WIDTH, STATES = 2, 8, 16

SOURCES = Path(sysconfig.get_path("data")) / "mamba-ssm"  # where `make setup` puts it, outside of site-packages


def mamba_ssm_folder() -> Path | None:
    """The folder of mamba-ssm's package, found without importing it."""
    spec = PathFinder.find_spec("mamba_ssm", [*sys.path, str(SOURCES)])
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@dataclass(frozen=True, slots=True)
class ScanCase:
    """A row's documents, the groups that B and C come in, and the document, if any, that is drawn anew."""

    lengths: tuple[int, ...]
    num_groups: int
    redrawn: int | None = None

    def __str__(self) -> str:
        redrawn = "" if self.redrawn is None else f"-redrawn{self.redrawn}"
        return f"{'+'.join(map(str, self.lengths))}-groups{self.num_groups}{redrawn}"

    def tokens_of(self, document: int) -> slice:
        start = sum(self.lengths[:document])
        return slice(start, start + self.lengths[document])


SCAN_CASES = [
    ScanCase((40,), 1),  # no reset
    ScanCase((16, 32), 2),  # at the chunks' borders
    ScanCase((5, 1, 1, 23, 7), 1),  # inside chunks
    ScanCase((5, 1, 1, 23, 7), 2),
    ScanCase((15, 1, 16, 1), 2),  # one-token documents on either side of a border
    ScanCase((1,), 1),
]
HALF_CASE = SCAN_CASES[3]
NEIGHBOUR_CASES = [ScanCase((1, 19, 5, 14), 2), ScanCase((1, 19, 5, 14), 2, redrawn=1)]


def row_of(lengths: tuple[int, ...], device: str = "cpu") -> Row:
    documents = [Document([0] * length, [0.0] * length) for length in lengths]
    return Row.from_batch(pack_row(documents).to(torch.device(device)))


def scan_inputs(case: ScanCase, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """By name; x, B and C in `dtype`, slices of one wider row, as the convolution leaves them.

    The others are float32 at least, as in the model.
    """
    tokens, heads = sum(case.lengths), HEADS_A_GROUP * case.num_groups
    inner, group_states = heads * HEAD_WIDTH, case.num_groups * STATES

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        normal = normals(seed)
        return normal(tokens, inner + 2 * group_states), normal(tokens, heads).sub(1).exp()  # dt: around 0.4

    convolved, dt = draw(seed=0)
    if case.redrawn is not None:
        tokens_redrawn = case.tokens_of(case.redrawn)
        for tensor, other in zip((convolved, dt), draw(seed=1), strict=True):
            tensor[tokens_redrawn] = other[tokens_redrawn]
    normal = normals(seed=2)
    wide = torch.promote_types(dtype, torch.float32)
    x, B, C = convolved.to(device, dtype).split([inner, group_states, group_states], dim=-1)
    return {
        "x": x.unflatten(-1, (heads, HEAD_WIDTH)),
        "dt": dt.to(device, wide),
        "A": -normal(heads).exp().to(device, wide),
        "B": B.unflatten(-1, (case.num_groups, STATES)),
        "C": C.unflatten(-1, (case.num_groups, STATES)),
        "D": normal(heads).to(device, wide),
    }


def cotangent_of(outputs: Tensor) -> Tensor:
    """What the outputs are weighed with before the backward pass: the same for every kernel, cast to its dtype."""
    return normals(seed=3)(*outputs.shape).to(outputs)


def normals(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def outputs_and_gradients(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs under "outputs", and the gradient of every input under its name, in float64 on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs.values()]
    outputs = function(*leaves)
    gradients = torch.autograd.grad(outputs, leaves, cotangent_of(outputs))
    results = {"outputs": outputs.detach(), **dict(zip(inputs, gradients, strict=True))}
    return {name: tensor.double().cpu() for name, tensor in results.items()}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
