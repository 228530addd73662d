"""Reading a checkpoint back, by whatever ranks and engine it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from falcon_h1r.checkpoint.files import find_fault, read_manifest, remove_partial, saved_steps, step_folder
from falcon_h1r.checkpoint.state import (
    CARRIED,
    STATE,
    SharedState,
    config_sha256,
    parse_stretch_key,
    rank_file,
    restore_generators,
)
from falcon_h1r.config import Config
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.world import World
from falcon_h1r.types import InputError


def newest_checkpoint(root: Path, world: World) -> Path | None:
    """The newest whole one, on every rank; ranks share the work of hashing its files. Removes unfinished ones.

    Every one that is passed over is named with what is wrong with it.

    Raises:
        InputError: where there are checkpoints, but none is whole.
    """
    steps = world.on_main(lambda: _forget_unfinished(root))
    for step in reversed(steps):
        folder = step_folder(root, step)
        fault = next((fault for fault in world.gather(_own_fault(folder, world)) if fault is not None), None)
        if fault is None:
            return folder
        if world.is_main:
            print(f"warning: {root.name}/{fault}; going back to the one before", flush=True)
    if steps:
        raise InputError(f"{root}: none of the {len(steps)} checkpoints is whole; remove them to start anew")
    return None


def _forget_unfinished(root: Path) -> list[int]:
    remove_partial(root)
    return saved_steps(root)


def _own_fault(folder: Path, world: World) -> str | None:
    """What is wrong with this rank's share of the files."""
    try:
        files = read_manifest(folder)
    except ValueError as error:
        return str(error)
    if STATE not in files:
        return f"{folder.name}/{STATE}: not in the manifest"
    for file in world.share(sorted(files.items())):
        world.watch.beat("loading")
        if (fault := find_fault(folder, [file])) is not None:
            return fault
    return None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a part of a parameter's line is stored."""

    start: int
    length: int
    file: str
    key: str


class StoredState:
    """A whole checkpoint, open for reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared = SharedState(**json.loads((folder / STATE).read_text()))
        self._open_files = ExitStack()
        self._files: dict[str, Any] = {}
        self._stretches: dict[tuple[str, str], list[Stretch]] = {}  # by parameter and kind, ascending
        for rank in range(self.shared.world_size):
            self._index(rank_file(rank, "safetensors"))
        for stretches in self._stretches.values():
            stretches.sort(key=lambda stretch: stretch.start)

    def __enter__(self) -> StoredState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()

    @property
    def names(self) -> set[str]:
        """Of the parameters."""
        return {name for name, _ in self._stretches}

    def read(self, name: str, kind: str, start: int, length: int) -> Tensor:
        """A stretch of a parameter's line: (length), in the dtype that was stored.

        Raises:
            InputError: where it is not there.
        """
        parts, reached, end = [], start, start + length
        for stretch in self._stretches.get((name, kind), []):
            stretch_end = stretch.start + stretch.length
            if stretch.start <= reached < min(end, stretch_end):
                upto = min(end, stretch_end)
                stored = self._files[stretch.file].get_slice(stretch.key)
                parts.append(stored[reached - stretch.start : upto - stretch.start])
                reached = upto
        if reached < end:
            raise InputError(
                f"{self.folder}: {kind} of {name} holds nothing from {reached:,} to {end:,}: not a checkpoint of this "
                "model"
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def generators_of(self, rank: int) -> Mapping[str, Any] | None:
        """Their states on a rank; None on one that the writing run did not have."""
        path = self.folder / rank_file(rank, "json")
        return json.loads(path.read_text())["generators"] if rank < self.shared.world_size else None

    def load_into(self, engine: Engine) -> None:
        """Weights, optimizer and position in the schedule.

        Raises:
            InputError: where it is the state of another model.
        """
        ours = set(engine.trained)
        if differing := sorted(ours ^ self.names):
            where = "not in the checkpoint" if differing[0] in ours else "not trained by this run"
            raise InputError(f"{self.folder}: {differing[0]} is {where}; it holds another model's state")

        def read(name: str, kind: str, start: int, length: int) -> Tensor:
            engine.world.watch.beat("loading")
            return self.read(name, kind, start, length)

        engine.load_state(read, self.shared.step, self.shared.updates)

    def carried_rows(self, rank: int, num_ranks: int) -> list[dict[str, Any]]:
        """What a rank carries: its own, or where others wrote it, its share of all, every `num_ranks`-th row.

        An older checkpoint has none.
        """
        is_own = num_ranks == self.shared.world_size
        writers = [rank] if is_own else range(self.shared.world_size)
        paths = [path for writer in writers if (path := self.folder / rank_file(writer, CARRIED)).exists()]
        rows: list[dict[str, Any]] = []
        number = 0
        for path in paths:
            with path.open() as file:
                for line in file:
                    if is_own or number % num_ranks == rank:
                        rows.append(json.loads(line))
                    number += 1
        return rows

    def restore_generators(self, rank: int) -> None:
        if (states := self.generators_of(rank)) is not None:
            restore_generators(states)

    def _index(self, file: str) -> None:
        opened = self._open_files.enter_context(safe_open(self.folder / file, framework="pt"))
        self._files[file] = opened
        for key in opened.keys():  # noqa: SIM118 (not a dictionary)
            name, kind, start = parse_stretch_key(key)
            (length,) = opened.get_slice(key).get_shape()
            self._stretches.setdefault((name, kind), []).append(Stretch(start, length, file, key))


def open_newest(config: Config, stage: str, root: Path, world: World) -> StoredState | None:
    """The newest whole checkpoint of a stage, open on every rank; None where there is none.

    Raises:
        InputError: where none is whole, or it is another stage's.
    """
    folder = newest_checkpoint(root, world)
    if folder is None:
        return None
    stored = StoredState(folder)
    if stored.shared.stage != stage:
        raise InputError(f"{folder}: a checkpoint of {stored.shared.stage}, not of {stage}")
    if world.is_main:
        print(f"{stage}: going on after step {stored.shared.step}, from {folder}", flush=True)
        if stored.shared.config_sha256 != config_sha256(config):
            print(f"warning: {folder}: written under other settings; what follows is not what it would have been")
    return stored
