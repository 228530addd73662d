"""Tiled logprobs, entropies and top-k equal the naive ones, with their gradients, in the memory of a tile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from falcon_h1r.model.linear_logprobs import (
    DEFAULT_TILES,
    LinearLogprobs,
    Tile,
    linear_logprobs,
    naive_linear_logprobs,
    tile_for,
)

TILES = st.builds(Tile, st.integers(1, 40), st.integers(1, 80))
SIZES = st.tuples(st.integers(0, 50), st.integers(2, 150), st.integers(1, 20))  # n, V, E
SCALES = st.sampled_from([1.0, 0.3, 5.0])


def head_inputs(
    n: int, vocab_size: int, width: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden and weight with gradient, targets."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab_size, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab_size, (n,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def gradients(outputs: LinearLogprobs, inputs: list[Tensor], of_entropies: bool = True, seed: int = 1) -> list[Tensor]:
    """Of a random combination of the logprobs, and of the entropies where asked."""
    generator = torch.Generator().manual_seed(seed)
    n = len(outputs.logprobs)
    cotangents = torch.randn(2, n, generator=generator, dtype=torch.float64).to(outputs.logprobs)
    used = 2 if of_entropies else 1
    return list(torch.autograd.grad(outputs[:used], inputs, list(cotangents[:used])))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    return ((actual.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# ------------------------------------------------------------------------------------------------------------
# Equality to the naive twin


@settings(max_examples=60)
@given(sizes=SIZES, tile=TILES, scale=SCALES, of_entropies=st.booleans(), data=st.data())
def test_tiles_equal_the_whole_softmax_in_float64(
    sizes: tuple[int, int, int], tile: Tile, scale: float, of_entropies: bool, data: st.DataObject
) -> None:
    hidden, weight, targets = head_inputs(*sizes, torch.float64)
    top_k = data.draw(st.integers(0, min(20, sizes[1])))
    naive = naive_linear_logprobs(hidden, weight, targets, scale, top_k)
    tiled = linear_logprobs(hidden, weight, targets, scale, top_k, tile=tile)
    assert torch.allclose(tiled.logprobs, naive.logprobs, rtol=1e-12, atol=1e-12)
    assert torch.allclose(tiled.entropies, naive.entropies, rtol=1e-12, atol=1e-12)
    if top_k:
        assert tiled.top_logprobs is not None and naive.top_logprobs is not None
        assert torch.allclose(tiled.top_logprobs, naive.top_logprobs, rtol=1e-12, atol=1e-12)
        assert torch.equal(tiled.top_ids, naive.top_ids)  # type: ignore[arg-type]
        assert not tiled.top_logprobs.requires_grad
    else:
        assert tiled.top_logprobs is None and tiled.top_ids is None
    wanted = [hidden, weight]
    for actual, expected in zip(
        gradients(tiled, wanted, of_entropies), gradients(naive, wanted, of_entropies), strict=True
    ):
        assert relative_error(actual, expected) < 1e-10


@settings(max_examples=40)
@given(sizes=SIZES, tile=TILES, scale=SCALES)
def test_tiles_equal_the_whole_softmax_in_float32(sizes: tuple[int, int, int], tile: Tile, scale: float) -> None:
    hidden, weight, targets = head_inputs(*sizes, torch.float32)
    naive = naive_linear_logprobs(hidden, weight, targets, scale)
    tiled = linear_logprobs(hidden, weight, targets, scale, tile=tile)
    assert tiled.logprobs.dtype == tiled.entropies.dtype == torch.float32
    # A logprob is a difference of logits: its error is a share of theirs.
    largest = 1.0 + scale * float((hidden @ weight.t()).detach().abs().max()) if len(hidden) else 1.0
    assert torch.allclose(tiled.logprobs, naive.logprobs, rtol=0, atol=1e-6 * largest)
    assert torch.allclose(tiled.entropies, naive.entropies, rtol=0, atol=1e-6 * largest)
    # A gradient is a sum of (1 - p) * scale * operand: where p is nearly 1, little but its rounding is left of 1 - p.
    for actual, expected, operand in zip(
        gradients(tiled, [hidden, weight]), gradients(naive, [hidden, weight]), [weight, hidden], strict=True
    ):
        rounding = 1e-6 * largest * scale * float(operand.detach().abs().max()) if operand.numel() else 0.0
        assert relative_error(actual, expected) < 1e-5 or bool((actual - expected).abs().max() < rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_entropies", [False, True])
def test_narrow_inputs_are_worked_on_in_float32_and_rounded_once(dtype: torch.dtype, of_entropies: bool) -> None:
    """Against float32 on the same rounded inputs: values to float32's rounding, gradients to half a unit of theirs."""
    hidden, weight, targets = head_inputs(150, 500, 16, dtype)
    wide = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    reference = naive_linear_logprobs(*wide, targets, 0.4)
    tiled = linear_logprobs(hidden, weight, targets, 0.4, tile=Tile(16, 48))
    assert tiled.logprobs.dtype == torch.float32
    assert torch.allclose(tiled.logprobs, reference.logprobs, rtol=1e-6, atol=3e-6)
    assert torch.allclose(tiled.entropies, reference.entropies, rtol=1e-6, atol=3e-6)
    half_a_unit = torch.finfo(dtype).eps / 2
    for actual, expected in zip(
        gradients(tiled, [hidden, weight], of_entropies), gradients(reference, wide, of_entropies), strict=True
    ):
        assert actual.dtype == dtype
        assert torch.allclose(actual.float(), expected, rtol=1.01 * half_a_unit, atol=3e-6)


@pytest.mark.parametrize("top_k", [0, 3])
def test_gradcheck(top_k: int) -> None:
    hidden, weight, targets = head_inputs(7, 11, 4, torch.float64)

    def differentiable(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprobs(hidden, weight, targets, 0.8, top_k, tile=Tile(3, 4))[:2]

    assert torch.autograd.gradcheck(differentiable, (hidden, weight))


def test_trls_chunked_function_says_the_same() -> None:
    """An oracle that shares no line with ours; it puts the scale in two factors."""
    from trl.kernels import ChunkedLogProbFunction

    hidden, weight, targets = head_inputs(90, 300, 24, torch.float32)
    ours = linear_logprobs(hidden, weight, targets, 0.5 / 0.8, tile=Tile(32, 70))
    theirs = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 0.8, 64, None, 0.5, ("entropy",))
    theirs = LinearLogprobs(theirs[0], theirs[1], None, None)
    assert torch.allclose(ours.logprobs, theirs.logprobs, rtol=1e-5, atol=1e-5)
    assert torch.allclose(ours.entropies, theirs.entropies, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(gradients(ours, [hidden, weight]), gradients(theirs, [hidden, weight]), strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_entropies", [False, True])
def test_compiled_tiles_equal_eager_ones(dtype: torch.dtype, of_entropies: bool) -> None:
    hidden, weight, targets = head_inputs(70, 203, 12, dtype)
    eager, compiled = (
        linear_logprobs(hidden, weight, targets, 0.7, 4, arithmetic=arithmetic, tile=Tile(32, 50))
        for arithmetic in ("eager", "compiled")
    )
    rounding = 8 * torch.finfo(eager.logprobs.dtype).eps
    for actual, expected in zip(compiled, eager, strict=True):
        assert torch.allclose(actual, expected, rtol=rounding, atol=8 * rounding)  # type: ignore[arg-type]
    rounding = 8 * torch.finfo(dtype).eps
    for actual, expected in zip(
        *(gradients(outputs, [hidden, weight], of_entropies) for outputs in (compiled, eager)), strict=True
    ):
        assert relative_error(actual, expected) < rounding


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_entropies", [False, True])
def test_a_gpu_equals_float32_on_the_same_inputs(dtype: torch.dtype, of_entropies: bool) -> None:
    """dz is rounded to bfloat16 before its products: a gradient is off by some units of its largest entry."""
    cpu_inputs = head_inputs(300, 2_000, 64, dtype)
    hidden, weight, targets = (tensor.detach().cuda() for tensor in cpu_inputs)
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    wide = [tensor.detach().float().requires_grad_() for tensor in cpu_inputs[:2]]
    reference = naive_linear_logprobs(*wide, cpu_inputs[2], 0.2)
    tiled = linear_logprobs(hidden, weight, targets, 0.2, tile=Tile(128, 512))
    assert torch.allclose(tiled.logprobs.cpu(), reference.logprobs, rtol=1e-5, atol=1e-5)
    assert torch.allclose(tiled.entropies.cpu(), reference.entropies, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(
        gradients(tiled, inputs, of_entropies), gradients(reference, wide, of_entropies), strict=True
    ):
        assert relative_error(actual.cpu(), expected) < 4 * max(1e-5, torch.finfo(dtype).eps)


# ------------------------------------------------------------------------------------------------------------
# The ends of the range


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [1e4, -1e4, 0.0])
def test_logits_of_ten_thousand_overflow_nowhere(dtype: torch.dtype, offset: float) -> None:
    """Logits around +10,000, around -10,000, and of both signs at once."""
    spread = torch.linspace(-1e4, 1e4, 40) if offset == 0.0 else offset + torch.linspace(-3, 3, 40)
    weight = spread[:, None].to(dtype).requires_grad_()
    hidden = torch.ones(3, 1, dtype=dtype, requires_grad=True)
    targets = torch.tensor([0, 20, 39])
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = naive_linear_logprobs(*wide, targets)
    tiled = linear_logprobs(hidden, weight, targets, tile=Tile(2, 7))
    rounding = 1e4 * torch.finfo(tiled.logprobs.dtype).eps
    assert torch.allclose(tiled.logprobs.double(), expected.logprobs, rtol=1e-6, atol=4 * rounding)
    assert torch.allclose(tiled.entropies.double(), expected.entropies, rtol=1e-6, atol=40 * rounding)
    for gradient in gradients(tiled, [hidden, weight]):
        assert gradient.isfinite().all()


def test_a_confident_tokens_logprob_keeps_its_digits() -> None:
    """Under a logit of 200, lse is rounded to 1.5e-5; the logprob of about -1e-6 has to survive that."""
    weight = torch.tensor([[1.0], [0.93], [0.931]], requires_grad=True)
    hidden = torch.full((1, 1), 200.0, requires_grad=True)
    targets = torch.tensor([0])
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = naive_linear_logprobs(*wide, targets)
    tiled = linear_logprobs(hidden, weight, targets, tile=Tile(1, 2))
    assert -3e-6 < expected.logprobs.item() < -1e-6
    assert relative_error(tiled.logprobs, expected.logprobs) < 0.1
    assert relative_error(tiled.entropies, expected.entropies) < 1e-2


def test_no_tokens_give_nothing_and_a_gradient_of_zero() -> None:
    hidden, weight, targets = head_inputs(0, 30, 5, torch.float32)
    outputs = linear_logprobs(hidden, weight, targets, top_k=3)
    assert outputs.logprobs.shape == outputs.entropies.shape == (0,)
    assert outputs.top_ids is not None and outputs.top_ids.shape == (0, 3)
    outputs.logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, 5)
    assert weight.grad is not None and torch.equal(weight.grad, torch.zeros_like(weight))


def test_hidden_states_and_head_of_different_dtypes_are_refused() -> None:
    hidden, weight, targets = head_inputs(3, 10, 4, torch.float32)
    with pytest.raises(TypeError, match=r"hidden states are torch.float32 and the head is torch.bfloat16"):
        linear_logprobs(hidden, weight.bfloat16(), targets)


def test_default_tiles_are_even_and_no_larger_than_allowed() -> None:
    """A narrow vocabulary gets more rows; 2,080 rows are not cut into 2,048 and 32."""
    widest = DEFAULT_TILES["cpu"]
    for n, vocab_size in [(49_152, 130_048), (2_048, 400), (1, 2), (5_000, 513), (0, 400)]:
        rows, columns = tile_for(n, vocab_size, torch.device("cpu"))
        assert rows * columns <= widest.rows * widest.columns * torch.get_num_threads() * 1.05
        for length, size in ((n, rows), (vocab_size, columns)):
            num_parts = max(1, -(-length // size))
            assert num_parts * size - length <= 16 * num_parts


# ------------------------------------------------------------------------------------------------------------
# Who gets a gradient


def test_a_tied_head_gets_both_gradients() -> None:
    """The same matrix embeds the tokens and predicts the next ones."""
    _, weight, targets = head_inputs(40, 60, 8, torch.float64)
    tokens = targets.roll(1)
    tied = [
        torch.autograd.grad(outputs.logprobs.sum(), weight)[0]
        for outputs in (
            linear_logprobs(torch.tanh(weight[tokens]), weight, targets, tile=Tile(16, 25)),
            naive_linear_logprobs(torch.tanh(weight[tokens]), weight, targets),
        )
    ]
    assert relative_error(*tied) < 1e-12


class Operations(TorchDispatchMode):
    """Counts products, and remembers the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        results = function(*arguments, **(keywords or {}))
        self.products += "mm" in function.__name__
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
        return results


@pytest.mark.parametrize(("frozen", "products"), [((), 4), (("head",), 3), (("hidden",), 3)])
def test_what_is_frozen_costs_no_product(frozen: tuple[str, ...], products: int) -> None:
    """LoRA freezes the head: no tile is multiplied into its gradient, and none is returned."""
    hidden, weight, targets = head_inputs(60, 90, 8, torch.float64)
    whole = gradients(linear_logprobs(hidden, weight, targets, tile=Tile(20, 30)), [hidden, weight])
    hidden.requires_grad_("hidden" not in frozen)
    weight.requires_grad_("head" not in frozen)
    wanted = [(tensor, full) for tensor, full in zip((hidden, weight), whole, strict=True) if tensor.requires_grad]
    with Operations() as operations:
        outputs = linear_logprobs(hidden, weight, targets, tile=Tile(20, 30))
        found = gradients(outputs, [tensor for tensor, _ in wanted])
    assert operations.products == products * 9
    for gradient, (_, full) in zip(found, wanted, strict=True):
        assert torch.equal(gradient, full)


# ------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_the_tile_or_the_inputs(dtype: torch.dtype) -> None:
    n, vocab_size, width, tile = 300, 500, 4, Tile(30, 70)
    hidden, weight, targets = head_inputs(n, vocab_size, width, dtype)
    with Operations() as operations:
        gradients(linear_logprobs(hidden, weight, targets, top_k=5, tile=tile), [hidden, weight])
    assert operations.largest <= max(tile.rows * tile.columns, n * width, vocab_size * width)


PEAK = """
import torch
from falcon_h1r.model.linear_logprobs import linear_logprobs

torch.set_num_threads(1)

def mebibytes(field):
    # VmHWM is the peak of this address space; ru_maxrss would start from that of the process that started this one.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024

def forward_and_backward(n, vocab_size, width):
    hidden, weight = torch.randn(n, width, requires_grad=True), torch.randn(vocab_size, width, requires_grad=True)
    targets = torch.randint(vocab_size, (n,))
    before = mebibytes("VmRSS:")
    linear_logprobs(hidden, weight, targets, 0.1).logprobs.sum().backward()
    print(mebibytes("VmHWM:") - before)

forward_and_backward(64, 64, 64)  # what libraries load on first use
forward_and_backward({n}, {vocab_size}, {width})
"""


@pytest.mark.slow
def test_memory_is_that_of_the_gradients() -> None:
    """Four times the tokens cost their hidden states' gradient, and nothing else; logits alone would be 1 GiB."""
    vocab_size, width = 32_768, 64

    def peak_mebibytes(n: int) -> float:
        code = PEAK.format(n=n, vocab_size=vocab_size, width=width)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(run.stdout.split()[-1])

    few, many = peak_mebibytes(2_048), peak_mebibytes(8_192)
    of_weight, of_hidden = vocab_size * width / 2**18, 8_192 * width / 2**18
    assert many < of_weight + of_hidden + 16
    assert many - few < 0.75 * of_hidden + 4
