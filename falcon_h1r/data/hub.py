"""Hub datasets, streamed: row by row, or spooled as JSONL parts that a restart keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.types import InputError

PART_ROWS = 2_000


def hub_rows(source: SourceConfig, skip: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of a hub dataset, or of a folder that the library reads as one, in its order, after the first `skip`.

    Raises:
        InputError: where the dataset cannot be loaded, or its stream breaks off.
    """
    import datasets

    # What is raised here belongs to the library, the hub's client and the network: no list of types is complete.
    try:
        stream = datasets.load_dataset(
            source.path, source.subset, split=source.split, revision=source.revision, streaming=True
        )
        rows = iter(stream.skip(skip) if skip else stream)
    except Exception as error:
        raise InputError(f"{_name(source)}: cannot be loaded ({_first_line(error)})") from None
    number = skip
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise InputError(
                f"{_name(source)}: the stream broke off after row {number} ({_first_line(error)})"
            ) from None
        number += 1
        yield row


def spool_hub(source: SourceConfig, folder: Path, part_rows: int = PART_ROWS) -> list[Path]:
    """Write a hub dataset's rows to `folder`, up to the limit, in JSONL parts of `part_rows`; return the parts.

    Parts are written beside and renamed. What a run before left is kept: a stream goes on after its whole parts, and
    one that had ended is not opened again.

    Raises:
        InputError: where the folder holds other rows, or the dataset has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(source, folder, part_rows)
    done = folder / "done.jsonl"
    parts = _parts(folder)
    if not done.exists():
        rows = hub_rows(source, skip=len(parts) * part_rows)
        if source.limit is not None:
            rows = islice(rows, max(0, source.limit - len(parts) * part_rows))
        for first in rows:  # of a part, which is written as it comes
            parts.append(folder / f"part-{len(parts):06d}.jsonl")
            write_jsonl(parts[-1], map(_plain, chain([first], islice(rows, part_rows - 1))))
        if not parts:
            raise InputError(f"{_name(source)}: holds no rows")
        write_jsonl(done, [{"num_parts": len(parts)}])
    return parts


def _parts(folder: Path) -> list[Path]:
    """The parts that are there, up to the first that is missing."""
    parts: list[Path] = []
    while (part := folder / f"part-{len(parts):06d}.jsonl").exists():
        parts.append(part)
    return parts


def _check_folder(source: SourceConfig, folder: Path, part_rows: int) -> None:
    """Note whose rows these are; refuse those of another dataset."""
    keys = ("path", "subset", "split", "revision", "limit")
    ours = {**{key: getattr(source, key) for key in keys}, "part_rows": part_rows}
    note = folder / "dataset.jsonl"
    if not note.exists():
        write_jsonl(note, [ours])
    theirs = json.loads(note.read_text(encoding="utf-8"))
    if changed := [key for key in ours if theirs.get(key) != ours[key]]:
        raise InputError(
            f"{folder}: holds rows read with {changed[0]}={theirs.get(changed[0])}; delete it to read anew"
        )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row as JSON can write it: dates and the like as their text."""
    plain: dict[str, Any] = json.loads(json.dumps(row, default=str))
    return plain


def _name(source: SourceConfig) -> str:
    return f"{source.path}, split {source.split}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().split("\n"))) or type(error).__name__
