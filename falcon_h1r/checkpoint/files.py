"""A checkpoint's files: hashed as they are written, listed in a manifest, and named only once all of them are whole.

A folder is written as step_XXXXXX.partial, synced to the disk and renamed: a name without `.partial` promises a
manifest, and the manifest the size and SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

MANIFEST = "manifest.json"
PARTIAL = ".partial"
CHUNK_BYTES = 8 * 2**20  # hashed and written at a time; both let other threads run meanwhile
STEP_NAME = re.compile(r"step_(\d{6,})")
SAFETENSORS_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest says of a file."""

    size_bytes: int
    sha256: str


class HashingFile:
    """A new file whose SHA-256 is taken of what is written, on its way; on the disk when the context ends."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """All of it.

        Raises:
            OSError: where the disk is full, among others.
        """
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            self._hash.update(chunk)
            written = 0
            while written < len(chunk):  # a disk about to be full takes a part first
                written += self._file.write(chunk[written:]) or 0
            self._size_bytes += len(chunk)

    @property
    def record(self) -> FileRecord:
        return FileRecord(self._size_bytes, self._hash.hexdigest())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """A safetensors file of tensors on the CPU, hashed while it is written (which its library's writer cannot)."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # keeps each aligned to its elements
    header, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with HashingFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            if tensor.numel():
                file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return file.record


def write_json(path: Path, value: Any) -> FileRecord:
    """An object as indented JSON, on the disk when this returns."""
    with HashingFile(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
    return file.record


def replace_text(path: Path, text: str) -> None:
    """A small file, whole or as it was before."""
    beside = path.with_name(f".{path.name}{PARTIAL}")
    with HashingFile(beside) as file:
        file.write(text.encode())
    beside.replace(path)


def sync_path(path: Path) -> None:
    """A file's content, or the names in a folder, are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -----------------------------------------------------------------------------
# Folders


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:06d}"


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it has its name."""
    return folder.with_name(folder.name + PARTIAL)


def publish_folder(folder: Path, records: Mapping[str, FileRecord]) -> None:
    """Give the folder written beside its manifest and its name. What stands there under that name is not whole."""
    beside = partial_folder(folder)
    write_json(beside / MANIFEST, {"files": {name: asdict(record) for name, record in sorted(records.items())}})
    sync_path(beside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)
    sync_path(folder.parent)


def saved_steps(root: Path) -> list[int]:
    """Of the folders that have their names, ascending."""
    if not root.is_dir():
        return []
    return sorted(int(found[1]) for path in root.iterdir() if (found := STEP_NAME.fullmatch(path.name)))


def rotate(root: Path, newest: int, keep: int, spared: int | None = None) -> None:
    """Keep `keep` folders up to step `newest`, which has just been written; those beyond it were found broken.

    Args:
        spared: one more that stays.
    """
    steps = saved_steps(root)
    kept = [*[step for step in steps if step <= newest][-max(1, keep) :], spared]
    for step in steps:
        if step not in kept:
            folder = step_folder(root, step)
            os.replace(folder, partial_folder(folder))  # a name without .partial is never half removed
    remove_partial(root)


def remove_partial(root: Path) -> None:
    """Remove what was never finished."""
    if root.is_dir():
        for path in root.glob(f"step_*{PARTIAL}"):
            shutil.rmtree(path, ignore_errors=True)


# -----------------------------------------------------------------------------
# Proof


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """By file name.

    Raises:
        ValueError: naming the manifest, where it is missing or cannot be read.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return {name: FileRecord(**record) for name, record in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder.name}/{MANIFEST}: cannot be read ({error})") from None


def find_fault(folder: Path, files: Iterable[tuple[str, FileRecord]]) -> str | None:
    """What is wrong with the first of these files that is not what the manifest says, in one line."""
    for name, record in files:
        path, shown = folder / name, f"{folder.name}/{name}"
        try:
            if (size_bytes := path.stat().st_size) != record.size_bytes:
                return f"{shown}: {size_bytes:,} bytes instead of {record.size_bytes:,}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                    return f"{shown}: its content is not what was written (SHA-256 differs)"
        except OSError as error:
            return f"{shown}: {error.strerror}"
    return None
