"""Which attention, convolution and scan a layer runs on a packed row: torch's, or the fused kernels of a GPU.

    attention     flash-attn (its varlen function), else torch's own varlen attention, else SDPA over buckets
    convolution   causal-conv1d, else blocks of torch operations
    scan          mamba-ssm's Triton kernels (2.3 or newer), else chunks of torch operations

The device decides, not what is installed: tensors on a CPU, and float64 anywhere, take the torch paths. Each fused
kernel has one adapter here, which hands over the row in the layout that the kernel wants; the kernel's own function
is the adapter's first argument. Adapter and torch path compute the same, rounding apart, so a missing package costs
speed and nothing else, and `Kernels.description` says so.

Shapes: T tokens, H heads of width d or P, K KV heads, C channels, G groups of N states (attention.py, conv.py, ssd.py).
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.model.attention import bucketed_attention
from falcon_h1r.model.conv import packed_conv
from falcon_h1r.model.row import Row
from falcon_h1r.model.ssd import ssd_scan
from falcon_h1r.types import InputError

log = logging.getLogger(__name__)

Attention = Callable[[Tensor, Tensor, Tensor, Row, float], Tensor]
Convolution = Callable[[Tensor, Tensor, Tensor | None, Row], Tensor]
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Row], Tensor]

CHUNK_TOKENS = 256  # of mamba-ssm's scan: a matter of speed only
SMALLEST_CHUNK = 16  # Triton multiplies no smaller tiles
OLDEST_MAMBA_SSM = (2, 3)
CHANNELS_AT_ONCE = 8  # causal-conv1d loads so many of a token, from an address that is a multiple of 16 bytes
FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_CAPABILITY = (8, 0)  # Ampere
FLASH_HEAD_MULTIPLE = 8
ELEMENTS = 1 << 31  # what a 32-bit index reaches


@dataclass(frozen=True, slots=True)
class Kernels:
    """The three kernels of a layer, and one line that names them."""

    attention: Attention  # query (T, H, d), key and value (T, K, d), row, scale -> (T, H, d)
    conv: Convolution  # inputs (T, C), weight (C, kernel), bias (C) or None, row -> silu of the convolution (T, C)
    scan: Scan  # x (T, H, P), dt (T, H) after softplus, A (H), B and C (T, G, N), D (H), row -> (T, H, P)
    description: str


def choose_kernels(device: torch.device, dtype: torch.dtype, chunk_size: int = CHUNK_TOKENS) -> Kernels:
    """The fastest kernels for a model of this dtype on this device. Logs them, once for each.

    Args:
        chunk_size: of mamba-ssm's scan; the checkpoint's `mamba_chunk_size` is a good choice.
    """
    return _chosen(device.type, dtype, chunk_size)


@cache
def _chosen(device_type: str, dtype: torch.dtype, chunk_size: int) -> Kernels:
    where = f"kernels on {device_type}, {str(dtype).removeprefix('torch.')}"
    if device_type != "cuda" or dtype == torch.float64:
        kernels = Kernels(bucketed_attention, _torch_conv, _torch_scan, f"{where}: attention, convolution, scan torch")
        log.info(kernels.description)
        return kernels
    attention, attention_name = _choose_attention(dtype)
    conv, conv_name = _choose_conv()
    scan, scan_name = _choose_scan(chunk_size)
    named = f"attention {attention_name}, convolution {conv_name}, scan {scan_name}"
    kernels = Kernels(attention, conv, scan, f"{where}: {named}")
    slow = attention is bucketed_attention or conv is _torch_conv or scan is _torch_scan
    # A warning shows without any set-up of logging, and one rank's is enough.
    log.log(logging.WARNING if slow and os.environ.get("RANK", "0") == "0" else logging.INFO, kernels.description)
    return kernels


def _torch_conv(inputs: Tensor, weight: Tensor, bias: Tensor | None, row: Row) -> Tensor:
    return packed_conv(inputs, weight, bias, row.position_ids)


def _torch_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, row: Row) -> Tensor:
    return ssd_scan(x, dt, A, B, C, D, row.seq_idx)[0]


# -----------------------------------------------------------------------------
# What is there


@dataclass(frozen=True, slots=True)
class _Found:
    """A function of an optional package, and the package with its version; or no function, and why."""

    function: Callable[..., Any] | None
    name: str
    version: str = ""


def _find(distribution: str, module: str, function: str) -> _Found:
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return _Found(None, f"{distribution} is not installed")
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:  # compiled for another torch, or without its extension
        return _Found(None, f"{distribution} {version} does not import: {str(error).partition(chr(10))[0]}")
    return _Found(found, f"{distribution} {version}", version)


def _find_torch_varlen() -> _Found:
    """torch's own attention over documents of different lengths, from the release on that has all we need."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return _Found(None, "this torch has no varlen attention")
    if not {"scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return _Found(None, "this torch's varlen attention takes no scale or no KV heads")
    if not torch.backends.cuda.is_flash_attention_available():
        return _Found(None, "this torch was built without flash attention")
    return _Found(varlen_attn, "torch varlen")


def _choose_attention(dtype: torch.dtype) -> tuple[Attention, str]:
    if dtype not in FLASH_DTYPES:
        return bucketed_attention, "torch SDPA (flash attention takes bfloat16 and float16 only)"
    if torch.cuda.get_device_capability() < FLASH_CAPABILITY:
        return bucketed_attention, "torch SDPA (flash attention needs compute capability 8.0)"
    flash = _find("flash-attn", "flash_attn", "flash_attn_varlen_func")
    if flash.function is not None:
        return partial(flash_attention, flash.function), flash.name
    varlen = _find_torch_varlen()
    if varlen.function is not None:
        return partial(varlen_attention, varlen.function), f"{varlen.name} ({flash.name})"
    return bucketed_attention, f"torch SDPA ({flash.name}; {varlen.name})"


def _choose_conv() -> tuple[Convolution, str]:
    found = _find("causal-conv1d", "causal_conv1d", "causal_conv1d_fn")
    if found.function is None:
        return _torch_conv, f"torch ({found.name})"
    return partial(fused_conv, found.function), found.name


def _choose_scan(chunk_size: int) -> tuple[Scan, str]:
    found = _find("mamba-ssm", "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    if found.function is None:
        return _torch_scan, f"torch ({found.name})"
    if _release(found.version) < OLDEST_MAMBA_SSM:
        return _torch_scan, f"torch ({found.name} is refused: before 2.3, B's gradient is wrong across documents)"
    if chunk_size < SMALLEST_CHUNK or chunk_size & (chunk_size - 1):
        raise InputError(f"mamba_chunk_size={chunk_size}: mamba-ssm wants a power of two from {SMALLEST_CHUNK} up")
    return partial(fused_scan, found.function, chunk_size), found.name


def _release(version: str) -> tuple[int, int]:
    """`2.3.2.post1` -> (2, 3)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


# -----------------------------------------------------------------------------
# Adapters


def flash_attention(
    flash_attn_varlen_func: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float
) -> Tensor:
    """flash-attn. It pads odd head widths itself and reads KV heads as they are."""
    longest = max(row.lengths)
    return flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=row.cu_seqlens,
        cu_seqlens_k=row.cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=True,
    )


def varlen_attention(
    varlen_attn: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float
) -> Tensor:
    """torch's varlen attention. Heads are padded here, with zeros that change no product, to a width it takes."""
    width, longest = query.shape[-1], max(row.lengths)
    query, key, value = (F.pad(heads, (0, -width % FLASH_HEAD_MULTIPLE)) for heads in (query, key, value))
    outputs = varlen_attn(
        query,
        key,
        value,
        row.cu_seqlens,
        row.cu_seqlens,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=True,
    )
    return outputs[..., :width]


def fused_conv(
    causal_conv1d_fn: Callable[..., Tensor], inputs: Tensor, weight: Tensor, bias: Tensor | None, row: Row
) -> Tensor:
    """causal-conv1d on the row as (1, C, T) with channels innermost, the one layout in which it takes `seq_idx`.

    The convolution's inputs are a slice of a wider projection. It is read where it lies if it may be; otherwise, or
    where channels come in no multiple of eight, it is copied. A row of one token takes the torch path: with one
    token, strides no longer tell in which layout a gradient is, and the kernel refuses it.
    """
    if len(inputs) == 1:
        return _torch_conv(inputs, weight, bias, row)
    channels = inputs.shape[1]
    spare = -channels % CHANNELS_AT_ONCE
    refuse_overflow("causal-conv1d", len(inputs), channels + spare)
    if spare:
        inputs, weight = F.pad(inputs, (0, spare)), F.pad(weight, (0, 0, 0, spare))
        bias = None if bias is None else F.pad(bias, (0, spare))
    elif not _reads_in_place(inputs):
        inputs = inputs.contiguous()
    outputs = causal_conv1d_fn(
        inputs.t()[None], weight, bias, seq_idx=row.seq_idx.to(torch.int32)[None], activation="silu"
    )  # (1, C, T)
    return outputs[0].t()[:, :channels]


def _reads_in_place(inputs: Tensor) -> bool:
    """Whether causal-conv1d may read (T, C) where it lies."""
    row_width, innermost = inputs.stride()
    return (
        innermost == 1
        and row_width % CHANNELS_AT_ONCE == 0
        and inputs.data_ptr() % 16 == 0
        and len(inputs) * row_width < ELEMENTS
    )


def fused_scan(
    mamba_chunk_scan_combined: Callable[..., Tensor],
    chunk_size: int,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    row: Row,
) -> Tensor:
    """mamba-ssm's scan on a batch of one. `dt` has had its softplus, and views of wider rows are read in place."""
    width = scan_row_width(x, dt, B, C, chunk_size)
    refuse_overflow("mamba-ssm's scan", len(x), width, chunk_size)
    outputs = mamba_chunk_scan_combined(
        x[None],
        dt[None],
        A,
        B[None],
        C[None],
        chunk_size,
        D=D,
        seq_idx=row.seq_idx.to(torch.int32)[None],
    )
    return outputs[0]


# -----------------------------------------------------------------------------
# 32-bit indices


def scan_row_width(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> int:
    """Elements a token of the widest tensor that mamba-ssm's scan indexes in 32 bits.

    Beside its arguments, which may be slices of wider rows, these are the states (chunks, H, P, N) and, made in parts
    that are summed, the gradients of B and C (T, parts, G, N) and of C B^T (chunks, parts, G, chunk, chunk). There is
    more than one part only as long as a row leaves multiprocessors idle, so that two count for all.
    """
    num_heads, head_width = x.shape[1:]
    num_groups, num_states = B.shape[1:]
    return max(
        *(tensor.stride(0) for tensor in (x, dt, B, C)),
        num_heads * head_width,
        -(-num_heads * head_width * num_states // chunk_size),
        2 * num_groups * max(num_states, chunk_size),
    )


def refuse_overflow(kernel: str, num_tokens: int, row_width: int, chunk_size: int = 1) -> None:
    """Refuse a row whose elements a 32-bit index cannot count: the kernel would write elsewhere, without a word."""
    most = most_row_tokens(row_width, chunk_size)
    if num_tokens > most:
        raise InputError(
            f"limits.row_tokens: a row of {num_tokens:,} tokens with {row_width:,} elements each is more than the "
            f"32-bit indices of {kernel} reach; {most:,} tokens are the most"
        )


def most_row_tokens(row_width: int, chunk_size: int = 1) -> int:
    """The longest row, in whole chunks, of fewer than 2^31 elements."""
    return (ELEMENTS - 1) // (row_width * chunk_size) * chunk_size
