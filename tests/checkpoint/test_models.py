"""A model that a stage hands over is on the disk before it has its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.data.tokenisation import train_tokenizer


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
