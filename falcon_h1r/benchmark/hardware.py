"""What the figures ran on, and how fast its arithmetic is at best: the denominator of MFU."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from falcon_h1r.tracking import environment_versions

# Dense bfloat16, from the vendor's data sheets. The longest name that the device's contains holds.
GPU_BF16_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12,
}
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
MATMUL_RUNS = 4
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
COPY_RUNS = 8


@dataclass(frozen=True, slots=True)
class Peak:
    """Floating-point operations a second, and where the number is from."""

    flops_per_second: float
    source: str


def peak_flops(device: torch.device, dtype: torch.dtype) -> Peak:
    """The data sheet's figure for a known GPU in bfloat16; else the best rate of a large product, measured."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = [model for model in GPU_BF16_FLOPS if model in name]
        if known:
            model = max(known, key=len)
            return Peak(GPU_BF16_FLOPS[model], f"{model}, dense bfloat16, data sheet")
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best rate of a large product."""
    size = MATMUL_SIZE[device.type]
    what = f"{size} x {size} product in {str(dtype).removeprefix('torch.')}, best of {MATMUL_RUNS}, measured"
    threads = "" if device.type == "cuda" else f" on {_threads(torch.get_num_threads())}"
    return Peak(_matmul_rate(device, dtype, size), what + threads)


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of the best of some copies of a block that no cache holds."""
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(1 + COPY_RUNS):
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best


def faster(one: Peak, other: Peak) -> Peak:
    """A rate measured beside a busy neighbour is no peak: of two, the higher one."""
    return one if one.flops_per_second >= other.flops_per_second else other


def _matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(MATMUL_RUNS):
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def environment(device: torch.device) -> dict[str, str]:
    """What has to be the same for two figures to be compared: hardware, threads, versions."""
    versions = environment_versions()
    hardware = versions["processor"]
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
    threads = _threads(torch.get_num_threads())
    return {
        "device": device.type,
        "hardware": f"{hardware}, {threads}",
        "torch": versions["torch"],
        "transformers": versions["transformers"],
    }


def _threads(number: int) -> str:
    return "one thread" if number == 1 else f"{number} threads"
