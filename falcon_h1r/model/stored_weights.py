"""Weights read from safetensors files straight into tensors: nothing is mapped, and nothing is held twice.

A file is the length of its header in 8 bytes, the header in JSON (dtype, shape and place of every tensor), and the
tensors' bytes. Mapping it, as safetensors does, keeps what was read resident until the last tensor of the file is
gone: with float32 on disk and bfloat16 in memory that is three times the model. Here a tensor is read piece by piece
through a small buffer. All headers are looked at before the first piece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from falcon_h1r.types import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
LENGTH_BYTES = 8  # of the number before the header
BUFFER_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    file: Path
    offset: int  # of its first byte
    dtype: torch.dtype
    shape: tuple[int, ...]


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint's folder by its name, from the headers of its files.

    Raises:
        InputError: where a file is missing, cut off or no safetensors file, naming it.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        tensors.update(_read_header(file))
    return tensors


def read_tensors(stored: Mapping[str, StoredTensor], targets: Mapping[str, Tensor]) -> None:
    """Fill the targets, on any device and in any dtype, in the order in which their sources lie."""
    order = sorted(targets, key=lambda name: (stored[name].file, stored[name].offset))
    for file, names in groupby(order, key=lambda name: stored[name].file):
        with file.open("rb", buffering=0) as opened:
            for name in names:
                _read_tensor(opened, stored[name], targets[name])


def _weight_files(folder: Path) -> list[Path]:
    """The one file, or those that the index names."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [_present(folder / WEIGHTS, "the checkpoint has no weights (and no index of several files)")]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{INDEX}: not an index of safetensors files") from None
    return [_present(folder / name, f"{INDEX} names it") for name in names]


def _present(file: Path, reason: str) -> Path:
    if not file.is_file():
        raise InputError(f"{file.name}: no such file; {reason}")
    return file


def _read_header(file: Path) -> dict[str, StoredTensor]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        start = LENGTH_BYTES + length
        if start > size:
            raise InputError(f"{file.name}: {size:,} bytes, which cannot hold its header: cut off, or not safetensors")
        try:
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            tensors = {
                name: StoredTensor(
                    file, start + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"])
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{file.name}: not a safetensors file of floating-point weights") from None
    if size < end:
        raise InputError(f"{file.name}: cut off, {size:,} bytes of {end:,}")
    return tensors


def _read_tensor(opened: BinaryIO, stored: StoredTensor, target: Tensor) -> None:
    assert target.shape == stored.shape and target.is_contiguous()
    opened.seek(stored.offset)
    buffer = torch.empty(BUFFER_BYTES // stored.dtype.itemsize, dtype=stored.dtype)
    for piece in target.view(-1).split(buffer.numel()):
        staged = buffer[: piece.numel()]
        view, filled = staged.view(torch.uint8).numpy().data, 0
        while filled < len(view):
            count = opened.readinto(view[filled:])  # type: ignore[attr-defined]  # typeshed has it on RawIOBase
            if not count:
                raise InputError(f"{stored.file.name}: ended while it was read")
            filled += count
        piece.copy_(staged)
