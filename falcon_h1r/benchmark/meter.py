"""Time and memory of one run: laps that wait for the device, and the most memory held since a starting line."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
import time
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # written to clear_refs: the peak starts anew from what is resident now (proc(5))


class Laps:
    """Seconds by the name of what was done. A lap that is marked again adds up."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = self._now()

    def mark(self, name: str) -> None:
        """End the lap that began at the last mark."""
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class PeakMemory:
    """The most memory beyond what was held when this was made; on a GPU of tensors, on a CPU of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._start = torch.cuda.memory_allocated(device)
        else:
            _give_back_free_memory()
            if _CLEAR.exists():
                _CLEAR.write_text(RESET_PEAK)
            self._start = _resident("VmRSS")

    @property
    def start_bytes(self) -> int:
        """Held when this was made."""
        return self._start

    @property
    def peak_bytes(self) -> int:
        """Held at most, everything included."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _resident("VmHWM")

    @property
    def growth_bytes(self) -> int:
        """Held at most beyond the start."""
        return max(0, self.peak_bytes - self._start)


def resident_bytes(device: torch.device) -> int:
    """Held now: on a GPU by tensors, on a CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    _give_back_free_memory()
    return _resident("VmRSS")


def _give_back_free_memory() -> None:
    """What the C library keeps of freed memory would be used again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_memory(gib: float) -> None:
    """Let allocations beyond so much fail in this process, rather than have the machine kill something."""
    limit = int(gib * 1024**3)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _resident(field: str) -> int:
    """VmRSS or VmHWM in bytes. Without /proc the lifetime's peak stands for both, and growth is a lower bound."""
    if not _STATUS.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024
