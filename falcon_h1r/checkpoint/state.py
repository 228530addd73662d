"""What a checkpoint holds, copied out of the live run at one moment.

Every rank writes rank_XXXXX.safetensors, its fragments of the weights and of Adam's moments, rank_XXXXX.json, the
states of its random number generators, and where its stage carries something of its own from step to step,
rank_XXXXX.carried.jsonl; rank 0 also state.json, what all ranks agree on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from falcon_h1r.checkpoint.files import FileRecord, HashingFile, write_json, write_tensors
from falcon_h1r.config import Config
from falcon_h1r.distributed.fragments import Fragment

STATE = "state.json"
CARRIED = "carried.jsonl"  # the ending of a rank's file
SEPARATOR = "|"  # occurs in no parameter's name
# Where and how a run is carried out, as against what it computes.
NOT_HASHED = (
    *("name", "run_dir", "resume", "dry_run", "dry_run_steps", "launch", "engine", "checkpoint", "supervision"),
    *("tracking", "benchmark", "export"),
)


Rows = Callable[[], Iterable[Mapping[str, Any]]]  # what a rank carries, made when it is written


@dataclass(frozen=True, slots=True)
class SharedState:
    """What all ranks agree on, after `step` steps."""

    stage: str
    step: int
    updates: int  # steps that changed the weights
    world_size: int
    engine: dict[str, Any]  # name, zero_stage: of the run that wrote it, for the reader
    config_sha256: str
    stage_state: dict[str, Any] = field(default_factory=dict)  # the stage's own: position in its data, ...
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    tracker: dict[str, Any] = field(default_factory=dict)
    unlogged: dict[str, Any] | None = None  # of the last step, whose evaluation was interrupted: metrics and samples


def config_sha256(config: Config) -> str:
    """Of the settings that decide what is computed."""
    settings = {key: value for key, value in asdict(config).items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# -----------------------------------------------------------------------------
# A rank's own


class HostCopies:
    """Copies of fragments in the host's memory, in buffers that are used again by the next checkpoint."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, fragments: Sequence[Fragment]) -> dict[str, Tensor]:
        """By the name that a stretch has in its file. The buffers are in use until these have been written."""
        copies = {}
        on_gpu = False
        for fragment in fragments:
            for kind, live in fragment.tensors.items():
                if not live.numel():
                    continue
                key = stretch_key(fragment.name, kind, fragment.start)
                buffer = self._buffers.get(key)
                if buffer is None or buffer.shape != live.shape or buffer.dtype != live.dtype:
                    buffer = self._buffers[key] = torch.empty_like(live, device="cpu", pin_memory=live.is_cuda)
                copies[key] = buffer.copy_(live, non_blocking=True)
                on_gpu |= live.is_cuda
        if on_gpu:
            torch.cuda.synchronize()
        return copies


def stretch_key(name: str, kind: str, start: int) -> str:
    """What a stretch of a parameter's line is called in its file."""
    return f"{name}{SEPARATOR}{kind}{SEPARATOR}{start}"


def parse_stretch_key(key: str) -> tuple[str, str, int]:
    name, kind, start = key.split(SEPARATOR)
    return name, kind, int(start)


def rank_file(rank: int, ending: str) -> str:
    return f"rank_{rank:05d}.{ending}"


def write_rank(
    beside: Path,
    rank: int,
    tensors: Mapping[str, Tensor],
    generators: Mapping[str, Any],
    shared: SharedState | None,
    carried: Rows | None = None,
) -> dict[str, FileRecord]:
    """This rank's files into the folder written beside.

    Args:
        shared: on rank 0.
        carried: of a stage that carries something; None: there is no such file.

    Raises:
        OSError: where one cannot be written whole.
    """
    beside.mkdir(parents=True, exist_ok=True)
    records = {
        rank_file(rank, "safetensors"): write_tensors(beside / rank_file(rank, "safetensors"), tensors),
        rank_file(rank, "json"): write_json(beside / rank_file(rank, "json"), {"generators": generators}),
    }
    if carried is not None:
        with HashingFile(beside / rank_file(rank, CARRIED)) as file:
            for row in carried():
                file.write((json.dumps(row) + "\n").encode())
        records[rank_file(rank, CARRIED)] = file.record
    if shared is not None:
        records[STATE] = write_json(beside / STATE, asdict(shared))
    return records


def generator_states() -> dict[str, Any]:
    """Of every random number generator of this process that the libraries share, as JSON."""
    version, numbers, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [algorithm, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _encoded(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = _encoded(torch.cuda.get_rng_state())
    return states


def restore_generators(states: Mapping[str, Any]) -> None:
    """Go on with the random numbers where `generator_states` was called."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    algorithm, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decoded(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decoded(states["cuda"]))


def _encoded(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decoded(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
