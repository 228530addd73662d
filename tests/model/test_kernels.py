"""What a GPU's kernels are called with, and which of them is chosen, shown without a GPU.

The scan's kernels themselves run, in Triton's interpreter (interpreted_scan.py). flash-attn, torch's varlen attention
and causal-conv1d are compiled for CUDA only: a stand-in checks what the real function demands of its arguments, as
their sources state it, and computes the documented result document by document. That proves the adapters' layouts,
scales and paddings; whether the real kernels keep their word, only tests/gpu can tell.
"""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from falcon_h1r.model import kernels
from falcon_h1r.model.attention import bucketed_attention
from falcon_h1r.model.conv import packed_conv_taps
from falcon_h1r.model.kernels import (
    ELEMENTS,
    choose_kernels,
    flash_attention,
    fused_conv,
    fused_scan,
    most_row_tokens,
    scan_row_width,
    varlen_attention,
)
from falcon_h1r.model.ssd import ssd_recurrence
from falcon_h1r.types import InputError
from tests.model.kernel_cases import (
    HALF_CASE,
    NEIGHBOUR_CASES,
    SCAN_CASES,
    SCAN_NAMES,
    ScanCase,
    mamba_ssm_folder,
    normals,
    outputs_and_gradients,
    relative_error,
    row_of,
    scan_inputs,
)

ROOT = Path(__file__).resolve().parents[2]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LENGTHS = (5, 1, 1, 9, 4)

# -----------------------------------------------------------------------------
# The scan, in Triton's interpreter

Interpreted = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def interpretation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that the interpreter computes, once for this file."""
    missing = [name for name in ("triton", "einops") if find_spec(name) is None]
    missing += [] if mamba_ssm_folder() else ["mamba-ssm"]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed (make setup, on Linux)")
    results = tmp_path_factory.mktemp("interpreted") / "results.pt"
    command = [sys.executable, "-m", "tests.model.interpreted_scan", str(results)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    loaded: dict[str, Any] = torch.load(results)
    return loaded


@pytest.fixture(scope="module")
def interpreted(interpretation: dict[str, Any]) -> Interpreted:
    results: Interpreted = interpretation["results"]
    return results


@cache
def recurrence(case: ScanCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """The literal recurrence in float64, on inputs rounded to `dtype`."""
    inputs = {name: tensor.double() for name, tensor in scan_inputs(case, dtype).items()}
    seq_idx = row_of(case.lengths).seq_idx
    return outputs_and_gradients(lambda *tensors: ssd_recurrence(*tensors, seq_idx)[0], inputs)


def test_the_interpreter_ran_what_a_gpu_is_given(interpretation: dict[str, Any]) -> None:
    assert "scan mamba-ssm 2." in interpretation["description"]


@pytest.mark.parametrize("name", ["outputs", *SCAN_NAMES])
@pytest.mark.parametrize("case", SCAN_CASES, ids=str)
def test_interpreted_scan_equals_the_recurrence(interpreted: Interpreted, case: ScanCase, name: str) -> None:
    actual, expected = interpreted[f"{case}-{torch.float32}"][name], recurrence(case, torch.float32)[name]
    assert relative_error(actual, expected) < 3e-6


@pytest.mark.parametrize("name", ["outputs", *SCAN_NAMES])
def test_interpreted_scan_takes_half_precision_beside_float32_step_sizes(interpreted: Interpreted, name: str) -> None:
    """As bfloat16 does in training, which the interpreter does not know."""
    actual, expected = interpreted[f"{HALF_CASE}-{torch.float16}"][name], recurrence(HALF_CASE, torch.float16)[name]
    assert relative_error(actual, expected) < 3e-3


@pytest.mark.parametrize("name", ["outputs", "x", "dt", "B", "C"])
def test_redrawing_one_document_leaves_the_others_alone(interpreted: Interpreted, name: str) -> None:
    case, redrawn_case = NEIGHBOUR_CASES
    assert redrawn_case.redrawn is not None
    before, after = (interpreted[f"{each}-{torch.float32}"][name] for each in NEIGHBOUR_CASES)
    redrawn = torch.zeros(len(before), dtype=torch.bool)
    redrawn[case.tokens_of(redrawn_case.redrawn)] = True
    assert relative_error(after[~redrawn], before[~redrawn]) < 3e-6
    assert relative_error(after[redrawn], before[redrawn]) > 0.1


# -----------------------------------------------------------------------------
# Attention and convolution, against stand-ins


def attend(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Attention by its formula, document after document, with a mask."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
    outputs = []
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        scores = torch.einsum("thd,shd->hts", query[start:stop], key[start:stop]) * scale
        hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hts,shd->thd", weights, value[start:stop]))
    return torch.cat(outputs)


def check_varlen_arguments(heads: tuple[Tensor, ...], cu_seqlens: tuple[Tensor, ...], longest: tuple[int, ...]) -> None:
    query, key, value = heads
    assert key.shape == value.shape and query.shape[1] % key.shape[1] == 0
    assert query.shape[2] == key.shape[2] <= 256
    assert all(tensor.stride(-1) == 1 for tensor in heads)
    for ends, most in zip(cu_seqlens, longest, strict=True):
        assert ends.dtype == torch.int32 and ends.is_contiguous()
        assert ends[0] == 0 and ends[-1] == len(query) and most == ends.diff().max()


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """flash-attn 2.8's function, by its parameters' names."""
    check_varlen_arguments((q, k, v), (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k))
    assert causal and dropout_p == 0.0
    return attend(q, k, v, cu_seqlens_q, softmax_scale or q.shape[-1] ** -0.5)


def varlen_stand_in(*args: Any, **kwargs: Any) -> Tensor:
    """torch's varlen attention: called by its real signature, and with head widths that its kernel takes."""
    call = inspect.signature(varlen_attn).bind(*args, **kwargs)
    call.apply_defaults()
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    cu_seqlens = call.arguments["cu_seq_q"], call.arguments["cu_seq_k"]
    check_varlen_arguments((query, key, value), cu_seqlens, (call.arguments["max_q"], call.arguments["max_k"]))
    assert query.shape[-1] % 8 == 0
    assert call.arguments["window_size"] == (-1, 0) and call.arguments["enable_gqa"]
    assert call.arguments["seqused_k"] is None and call.arguments["block_table"] is None
    return attend(query, key, value, cu_seqlens[0], call.arguments["scale"])


@pytest.mark.parametrize("head_width", [8, 6])
@pytest.mark.parametrize(
    "fused",
    [partial(flash_attention, flash_attn_varlen_func), partial(varlen_attention, varlen_stand_in)],
    ids=["flash-attn", "torch varlen"],
)
def test_fused_attention_is_handed_the_row_as_it_asks(fused: kernels.Attention, head_width: int) -> None:
    row, normal = row_of(LENGTHS), normals(seed=0)
    heads = {name: normal(20, count, head_width) for name, count in (("query", 4), ("key", 2), ("value", 2))}
    actual = outputs_and_gradients(lambda *tensors: fused(*tensors, row, 0.3), heads)
    expected = outputs_and_gradients(lambda *tensors: bucketed_attention(*tensors, row, 0.3), heads)
    for name in expected:
        assert relative_error(actual[name], expected[name]) < 1e-12, name


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """causal-conv1d 1.7's function: the demands of its C++ on (1, C, T), forward and backward, and its result."""
    _, channels, num_tokens = x.shape
    assert weight.shape[0] == channels and 2 <= weight.shape[1] <= 4
    assert bias is None or (bias.shape == (channels,) and bias.stride(-1) == 1 and bias.dtype == weight.dtype)
    assert activation == "silu"
    assert seq_idx is not None and seq_idx.dtype == torch.int32 and seq_idx.is_contiguous()
    assert seq_idx.shape == (1, num_tokens)
    assert channels % 8 == 0 and x.data_ptr() % 16 == 0
    assert x.stride(1) == 1 and x.stride(2) > 1, "seq_idx is only supported for channel last layout"
    assert x.stride(0) % 8 == 0 and x.stride(2) % 8 == 0
    lengths = torch.unique_consecutive(seq_idx[0], return_counts=True)[1].tolist()
    documents = []
    for document in x.split(lengths, dim=2):
        padded = F.pad(document, (weight.shape[1] - 1, 0))
        documents.append(F.silu(F.conv1d(padded, weight[:, None], bias, groups=channels)))
    outputs = torch.cat(documents, dim=2).transpose(1, 2).contiguous().transpose(1, 2)

    def check_gradient(gradient: Tensor) -> None:
        if gradient.stride(1) == 1:  # otherwise the kernel copies
            assert gradient.stride(0) % 8 == 0 and gradient.stride(2) % 8 == 0

    outputs.register_hook(check_gradient)
    return outputs


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "row_width", "offset"),
    [(16, 16, 0), (16, 40, 8), (16, 37, 8), (16, 40, 3), (13, 40, 8), (3, 3, 0)],
    ids=["whole row", "slice", "slice of an odd row", "slice at an odd offset", "odd channels", "few channels"],
)
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (2, 1)], ids=str)
def test_fused_convolution_is_handed_the_row_as_it_asks(
    lengths: tuple[int, ...], channels: int, row_width: int, offset: int, with_bias: bool
) -> None:
    row, normal = row_of(lengths), normals(seed=0)
    projected = normal(sum(lengths), row_width)
    inputs = {"inputs": projected[:, offset : offset + channels], "weight": normal(channels, 4)}
    inputs |= {"bias": normal(channels)} if with_bias else {}

    def call(convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> dict[str, Tensor]:
        def halves(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            first, second = convolve(inputs, weight, bias).split([channels - 2, 2], dim=1)  # as into x, B and C
            return torch.cat([second, first], dim=1)

        return outputs_and_gradients(halves, inputs)

    actual = call(lambda *tensors: fused_conv(causal_conv1d_fn, *tensors, row))
    expected = call(lambda *tensors: packed_conv_taps(*tensors, row.position_ids))
    for name in expected:
        assert relative_error(actual[name], expected[name]) < 1e-12, name


def test_a_slice_of_a_wider_row_is_convolved_where_it_lies() -> None:
    inputs = torch.randn(20, 40)[:, 8:24]
    read_from = []

    def spy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        read_from.append(x.data_ptr())
        return causal_conv1d_fn(x.requires_grad_(), *args, **kwargs)

    fused_conv(spy, inputs, torch.randn(16, 4), None, row_of(LENGTHS))
    assert read_from == [inputs.data_ptr()]


# -----------------------------------------------------------------------------
# The choice


@pytest.fixture(autouse=True)
def nothing_chosen_yet() -> Iterator[None]:
    kernels._chosen.cache_clear()
    yield
    kernels._chosen.cache_clear()


@pytest.fixture
def a_gpu_without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 with a torch that has flash attention, and none of the optional packages."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)

    def none_installed(distribution: str) -> str:
        raise kernels.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(kernels.metadata, "version", none_installed)


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, a_gpu_without_packages: None) -> Iterator[Install]:
    """Puts a package of one module on the path, by its distribution's name, version, module and source."""
    versions: dict[str, str] = {}

    def version_of(distribution: str) -> str:
        if distribution not in versions:
            raise kernels.metadata.PackageNotFoundError(distribution)
        return versions[distribution]

    def write(distribution: str, version: str, module: str, source: str) -> None:
        versions[distribution] = version
        *packages, name = module.split(".")
        folder = tmp_path.joinpath(*packages)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(source)

    monkeypatch.setattr(kernels.metadata, "version", version_of)
    monkeypatch.syspath_prepend(tmp_path)
    imported = set(sys.modules)
    yield write
    for name in set(sys.modules) - imported:
        if name.partition(".")[0] in ("flash_attn", "causal_conv1d", "mamba_ssm"):
            del sys.modules[name]


SCAN_MODULE = "mamba_ssm.ops.triton.ssd_combined"
SCAN_SOURCE = "def mamba_chunk_scan_combined(): ..."


@pytest.mark.parametrize(
    ("device", "dtype"), [(CPU, torch.float32), (CPU, torch.bfloat16), (CPU, torch.float64), (CUDA, torch.float64)]
)
def test_a_cpu_and_float64_take_torch_whatever_is_installed(
    install: Install, device: torch.device, dtype: torch.dtype
) -> None:
    install("mamba-ssm", "2.3.2", SCAN_MODULE, SCAN_SOURCE)
    chosen = choose_kernels(device, dtype)
    assert (chosen.attention, chosen.conv, chosen.scan) == (
        bucketed_attention,
        kernels._torch_conv,
        kernels._torch_scan,
    )
    name = str(dtype).removeprefix("torch.")
    assert chosen.description == f"kernels on {device}, {name}: attention, convolution, scan torch"


def test_torch_paths_compute_what_the_adapters_promise() -> None:
    chosen, case, normal = choose_kernels(CPU, torch.float64), SCAN_CASES[3], normals(seed=0)
    row = row_of(case.lengths)
    inputs = scan_inputs(case, torch.float64)
    scanned = outputs_and_gradients(lambda *tensors: chosen.scan(*tensors, row), inputs)
    assert all(relative_error(scanned[name], recurrence(case, torch.float64)[name]) < 1e-12 for name in scanned)
    channels, weight = normal(sum(case.lengths), 5), normal(5, 4)
    taps = packed_conv_taps(channels, weight, None, row.position_ids)
    assert relative_error(chosen.conv(channels, weight, None, row), taps) < 1e-12


def test_installed_packages_are_used_and_named(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("flash-attn", "2.8.3", "flash_attn", "def flash_attn_varlen_func(): ...")
    install("causal-conv1d", "1.7.0", "causal_conv1d", "def causal_conv1d_fn(): ...")
    install("mamba-ssm", "2.3.2.post1", SCAN_MODULE, SCAN_SOURCE)
    with caplog.at_level(logging.INFO):
        chosen = choose_kernels(CUDA, torch.bfloat16)
    assert chosen.description == (
        "kernels on cuda, bfloat16: attention flash-attn 2.8.3, convolution causal-conv1d 1.7.0, "
        "scan mamba-ssm 2.3.2.post1"
    )
    assert [(record.levelname, record.message) for record in caplog.records] == [("INFO", chosen.description)]


def test_missing_packages_are_named_in_one_warning(
    a_gpu_without_packages: None, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = choose_kernels(CUDA, torch.bfloat16)
    assert choose_kernels(torch.device("cuda", 0), torch.bfloat16) is chosen
    assert chosen.description == (
        "kernels on cuda, bfloat16: attention torch varlen (flash-attn is not installed), "
        "convolution torch (causal-conv1d is not installed), scan torch (mamba-ssm is not installed)"
    )
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", chosen.description)]


def test_one_rank_warns_for_all(
    a_gpu_without_packages: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "3")
    choose_kernels(CUDA, torch.bfloat16)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_package_that_does_not_import_is_named_with_its_reason(install: Install) -> None:
    install("causal-conv1d", "1.7.0", "causal_conv1d", "raise ImportError('undefined symbol: c10\\nmore')")
    described = choose_kernels(CUDA, torch.bfloat16).description
    assert "convolution torch (causal-conv1d 1.7.0 does not import: undefined symbol: c10), scan" in described


@pytest.mark.parametrize(("version", "used"), [("2.2.4", False), ("2.3.0", True), ("2.10.1", True), ("3.0", True)])
def test_mamba_ssm_before_2_3_is_refused(install: Install, version: str, used: bool) -> None:
    install("mamba-ssm", version, SCAN_MODULE, SCAN_SOURCE)
    chosen = choose_kernels(CUDA, torch.bfloat16)
    assert (chosen.scan is not kernels._torch_scan) == used
    refused = f"scan torch (mamba-ssm {version} is refused: before 2.3, B's gradient is wrong across documents)"
    assert (refused in chosen.description) != used


@pytest.mark.parametrize(
    ("capability", "has_flash", "dtype", "reason"),
    [
        ((7, 5), True, torch.float16, "flash attention needs compute capability 8.0"),
        ((9, 0), False, torch.bfloat16, "flash-attn is not installed; this torch was built without flash attention"),
        ((9, 0), True, torch.float32, "flash attention takes bfloat16 and float16 only"),
    ],
)
def test_attention_without_a_flash_kernel_is_sdpa_and_says_why(
    a_gpu_without_packages: None,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    has_flash: bool,
    dtype: torch.dtype,
    reason: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: has_flash)
    chosen = choose_kernels(CUDA, dtype)
    assert chosen.attention is bucketed_attention
    assert f"attention torch SDPA ({reason})" in chosen.description


@pytest.mark.parametrize("chunk_size", [8, 100, 0])
def test_a_chunk_that_triton_cannot_tile_is_refused(install: Install, chunk_size: int) -> None:
    install("mamba-ssm", "2.3.2", SCAN_MODULE, SCAN_SOURCE)
    with pytest.raises(InputError, match=f"mamba_chunk_size={chunk_size}: .* power of two from 16 up"):
        choose_kernels(CUDA, torch.bfloat16, chunk_size)
    choose_kernels(CPU, torch.bfloat16, chunk_size)


# -----------------------------------------------------------------------------
# 32-bit indices


@given(row_width=st.integers(1, 1 << 20), chunk_size=st.sampled_from([1, 16, 256]))
def test_the_longest_row_is_the_last_that_an_index_reaches(row_width: int, chunk_size: int) -> None:
    most = most_row_tokens(row_width, chunk_size)
    assert most % chunk_size == 0
    assert most * row_width < ELEMENTS <= (most + chunk_size) * row_width


def scan_tensors_7b(num_tokens: int) -> list[Tensor]:
    """Falcon-H1-7B's 24 heads of 128, one group of 256 states, in a convolved row of 3,584: shapes alone."""
    x, B, C = torch.empty(num_tokens, 3584, device="meta").split([3072, 256, 256], dim=1)
    dt, A, D = (torch.empty(*shape, device="meta") for shape in ((num_tokens, 24), (24,), (24,)))
    return [x.unflatten(1, (24, 128)), dt, A, B[:, None], C[:, None], D]


@pytest.mark.parametrize(
    ("chunk_size", "width"),
    [
        (256, 3584),  # x lies in the convolved row
        (128, 6144),  # 24 x 128 x 256 numbers of state for 128 tokens
    ],
)
def test_the_scan_counts_strides_and_states(chunk_size: int, width: int) -> None:
    x, dt, _, B, C, _ = scan_tensors_7b(1000)
    assert scan_row_width(x, dt, B, C, chunk_size) == width


def test_the_scan_counts_what_its_backward_pass_makes_for_narrow_heads() -> None:
    x, dt, B = (torch.empty(*shape, device="meta") for shape in ((1000, 4, 8), (1000, 4), (1000, 2, 16)))
    assert scan_row_width(x, dt, B, B, chunk_size=256) == 2 * 2 * 256  # C B^T in two groups, and in two parts


def never_launched(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("launched")


def test_a_row_beyond_32_bits_is_refused_before_the_scan_is_launched() -> None:
    with pytest.raises(InputError, match=r"limits.row_tokens: .* 599,041 .* 3,584 .* 599,040 tokens are the most"):
        fused_scan(never_launched, 256, *scan_tensors_7b(599_041), row_of((1,)))
    with pytest.raises(AssertionError, match="launched"):
        fused_scan(never_launched, 256, *scan_tensors_7b(599_040), row_of((1,)))


def test_a_row_beyond_32_bits_is_refused_before_the_convolution_is_launched() -> None:
    inputs, weight = torch.empty(599_187, 3584, device="meta"), torch.empty(3584, 4, device="meta")
    with pytest.raises(InputError, match=r"limits.row_tokens: .* causal-conv1d reach; 599,186 tokens are the most"):
        fused_conv(never_launched, inputs, weight, None, row_of((1,)))
