"""The files of a source, in their order, and the format of each."""

from __future__ import annotations

import os
from glob import glob
from pathlib import Path

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.types import InputError

ENDINGS = {"jsonl": (".jsonl", ".jsonl.gz"), "parquet": (".parquet",)}
_WILD = set("*?[")
PACKED = (".zst", ".xz", ".bz2", ".zip")


def source_files(source: SourceConfig) -> list[Path]:
    """The files that a source names, sorted by name; a folder gives those in it that have a known ending.

    Raises:
        InputError: where there are none, they cannot be looked for, or one is packed in a way that is not read.
    """
    try:
        return _source_files(source)
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read ({error.strerror})") from None


def _source_files(source: SourceConfig) -> list[Path]:
    assert source.path is not None
    path = Path(source.path)
    if path.is_dir():
        endings = ENDINGS[source.format] if source.format else sum(ENDINGS.values(), ())
        files = [file for file in path.iterdir() if file.name.endswith(endings) and not file.name.startswith(".")]
        if not files:
            raise InputError(f"{path}: has no {' or '.join(endings)} files")
    elif _is_pattern(source.path):
        files = [file for file in map(Path, glob(source.path, recursive=True)) if file.is_file()]
        if not files:
            raise InputError(f"{path}: no file matches")
    else:
        files = [path]
    for file in files:
        if not file.exists():
            raise InputError(f"{file}: no such file")
        if file.name.endswith(PACKED):
            raise InputError(f"{file}: {file.suffix} is not read; unpack it, or pack it with gzip")
    return sorted(files, key=lambda file: file.as_posix())


def format_of(source: SourceConfig, file: str | Path) -> str:
    """jsonl or parquet: as the source says, else by the file's name. A hub dataset's spooled parts are JSONL."""
    if source.format in ENDINGS:
        return source.format
    return "parquet" if str(file).endswith(ENDINGS["parquet"]) else "jsonl"


def name_in_source(source: SourceConfig, file: str | Path) -> str:
    """A file's name for messages and origins: relative to the source's folder, or to a pattern's fixed beginning."""
    assert source.path is not None
    root = Path(source.path)
    if _is_pattern(source.path):
        parts = root.parts
        root = Path(*parts[: next(index for index, part in enumerate(parts) if set(part) & _WILD)])
    name = Path(file).relative_to(root).as_posix() if Path(file) != root and root.is_dir() else Path(file).name
    return os.fsencode(name).decode(errors="backslashreplace")  # a name that is not UTF-8 goes into text


def _is_pattern(path: str) -> bool:
    return bool(set(path) & _WILD) and not Path(path).exists()
