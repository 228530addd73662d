"""A model that a stage hands over: on the disk before it has its name, however long that takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import models, publish_model, publish_policy
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.tokenisation import train_tokenizer
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.distributed.world import World


def test_a_model_is_on_the_disk_before_it_has_its_name(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    at_renaming: list[set[str]] = []
    sync, rename = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def note_renaming(source: Path, target: Path) -> None:
        at_renaming.append(set(synced))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_renaming)
    tokenizer = train_tokenizer(["Two and two make 4."] * 4, 384)
    model = publish_model(tiny_model, tokenizer, tmp_path / "model")
    assert {path.name for path in model.iterdir()} | {"model.partial"} <= at_renaming[-1]
    assert "model.safetensors" in at_renaming[-1]


class NotedWatch(Watch):
    """Knows what it is excused for."""

    phase: str | None = None

    @contextmanager
    def long(self, phase: str, seconds: float = 0.0) -> Iterator[None]:
        self.phase = phase
        yield
        self.phase = None


def test_writing_a_large_model_is_no_hang(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, phases = NotedWatch(), []
    world = World(0, 1, torch.device("cpu"), watch=watch)
    monkeypatch.setattr(models, "publish_model", lambda *_: phases.append(watch.phase))
    publish_policy(TorchEngine(tiny_model, OptimizerConfig(), 1, world), object(), tmp_path / "model")
    assert phases == ["publishing"] and watch.phase is None
