"""The rows of an evaluation that is under way: a file of its own for each process, which all of them read.

    FOLDER/parts/asked-1f0c....json     what is being evaluated; another configuration finds it, and is refused
    FOLDER/parts/rows-OWNER.jsonl       one row a line, appended the moment it is judged
    FOLDER/parts/owners, claims         see falcon_h1r.evaluation.work

A row is there when its line has an end. What a kill has cut has none, and its owner never writes again: whoever goes on
has a file of its own. So a row is complete or absent, and no line is ever read before it is whole.

The index in memory holds places, not texts: 512 traces of some problems are gigabytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from falcon_h1r.data.jsonl import json_line, new_file, parse_row
from falcon_h1r.types import InputError, content_hash

PARTS = "parts"
SUMMARY_FILE = "summary.json"  # where it is, the evaluation has ended, and its parts may be gone
SAMPLES, GREEDY, ONLINE = "samples", "greedy", "online"
TEXTS = ("question", "gold", "response", "prediction", "reason")  # of a row: not kept in memory

Row = dict[str, Any]


class RowKey(NamedTuple):
    """What a row is of; there is one row of it in the end."""

    kind: str  # SAMPLES, GREEDY or ONLINE
    problem_uid: str
    sample_index: int


class Place(NamedTuple):
    """Where a row's line stands."""

    shard: Path
    start: int
    num_bytes: int


class Store:
    """The rows of all processes, as far as they have been read by `refresh`. One thread reads, any may append."""

    def __init__(self, folder: Path, owner: str) -> None:
        """
        Args:
            folder: FOLDER/parts.
            owner: a name that no other process has or had.
        """
        self.folder = folder
        self.online: dict[str, dict[int, Row]] = {}  # problem -> sample index -> row without its texts
        self.own = folder / f"rows-{owner}.jsonl"
        self._places: dict[RowKey, list[Place]] = {}
        self._read_to: dict[Path, int] = {}
        self._files = ExitStack()
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def __contains__(self, key: RowKey) -> bool:
        return key in self._places

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Out of this process when it returns, so that no kill takes it. Other processes find it.

        Raises:
            InputError: where the disk does not take it. This process must append nothing more then.
        """
        line = memoryview(json_line({"kind": kind, "row": row}))
        try:
            with open(self.own, "ab", buffering=0) as file:  # closed each time: other machines see it then
                while line:
                    line = line[file.write(line) :]
        except OSError as error:
            raise InputError(f"{self.own}: cannot be written ({error.strerror})") from None

    def refresh(self) -> list[tuple[RowKey, int]]:
        """Read what has come since; returns the new keys with their rows' tokens.

        Raises:
            InputError: where a file holds something else than rows, naming the line.
        """
        found = []
        for shard in sorted(self.folder.glob("rows-*.jsonl")):
            found += list(self._read_on(shard))
        return found

    def _read_on(self, shard: Path) -> Iterator[tuple[RowKey, int]]:
        start = self._read_to.get(shard, 0)
        with open(shard, "rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written, or a kill has cut it
                place = Place(shard, start, len(line))
                kind, row = _parse(line, place)
                start += len(line)
                self._read_to[shard] = start
                key = RowKey(kind, row["problem_uid"], row["sample_index"])
                is_new = key not in self._places
                self._places.setdefault(key, []).append(place)
                if is_new:
                    if kind == ONLINE:
                        light = {name: value for name, value in row.items() if name not in TEXTS}
                        self.online.setdefault(key.problem_uid, {})[key.sample_index] = light
                    yield key, row["response_tokens"]

    def row(self, key: RowKey) -> Row:
        """A row, read from its file. Of two, as after a claim that was taken from somebody alive, always the same."""
        lines = []
        for shard, start, num_bytes in self._places[key]:
            if shard not in self._open:
                self._open[shard] = self._files.enter_context(open(shard, "rb"))  # noqa: SIM115
            self._open[shard].seek(start)
            lines.append(self._open[shard].read(num_bytes))
        return _parse(min(lines), self._places[key][0])[1]


def _parse(line: bytes, place: Place) -> tuple[str, Row]:
    try:
        parsed = parse_row(line)
        return parsed["kind"], parsed["row"]
    except (InputError, KeyError) as error:
        raise InputError(f"{place.shard}, byte {place.start}: no row of an evaluation ({error})") from None


def is_ended(folder: Path) -> bool:
    """Whether an evaluation's summary is there. The folder is listed: NFS may hold on to what a file's name was not."""
    return folder.is_dir() and SUMMARY_FILE in os.listdir(folder)


# -----------------------------------------------------------------------------
# What is evaluated


def agree_on_what_is_asked(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write down what is evaluated in FOLDER/parts, or find it there.

    The name holds the content's hash: two processes that start at once with two configurations write two files, and
    each finds the other's.

    Raises:
        InputError: where something else is being evaluated there, naming the first setting that differs.
    """
    asked = json.loads(json.dumps(flat(asked)))
    own = folder / f"asked-{content_hash(json.dumps(asked, sort_keys=True))}.json"
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_others(folder, own, asked)
    if not own.exists():
        with new_file(own) as file:
            file.write((json.dumps(asked, indent=2) + "\n").encode())
        try:
            _refuse_others(folder, own, asked)
        except InputError:
            own.unlink(missing_ok=True)
            raise


def _refuse_others(folder: Path, own: Path, asked: Mapping[str, Any]) -> None:
    for other in sorted(folder.glob("asked-*.json")):
        if other.name != own.name:
            before = json.loads(other.read_text(encoding="utf-8"))
            key = next(key for key in (*asked, *before) if asked.get(key) != before.get(key))
            raise InputError(
                f"{key}={_shown(asked.get(key))}: the evaluation in {folder.parent} was begun with "
                f"{_shown(before.get(key))}, and goes on as it was begun"
            )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
