"""Files of a checkpoint: readable elsewhere, proved by their hashes, rotated without ever leaving none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from falcon_h1r.checkpoint.files import (
    find_fault,
    partial_folder,
    publish_folder,
    read_manifest,
    remove_partial,
    rotate,
    saved_steps,
    step_folder,
    write_json,
    write_tensors,
)


def make_checkpoint(root: Path, step: int) -> Path:
    folder = step_folder(root, step)
    partial_folder(folder).mkdir(parents=True)
    publish_folder(folder, {"state.json": write_json(partial_folder(folder) / "state.json", {"step": step})})
    return folder


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(7).to(torch.bfloat16),  # of an odd number of bytes, before what needs eight
        "double": torch.randn(3, dtype=torch.float64),
        "a view": torch.randn(6, 4)[2:4].reshape(-1),
        "nothing": torch.empty(0),
        "single": torch.randn(2_500_000),  # more than one chunk
    }
    record = write_tensors(tmp_path / "file.safetensors", tensors)
    written = (tmp_path / "file.safetensors").read_bytes()
    assert (record.size_bytes, record.sha256) == (len(written), hashlib.sha256(written).hexdigest())
    loaded = load_file(tmp_path / "file.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 3)
    files = read_manifest(folder).items()
    assert find_fault(folder, files) is None
    whole = (folder / "state.json").read_bytes()
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 1
        (folder / "state.json").write_bytes(changed)
        fault = find_fault(folder, files)
        assert fault == "step_000003/state.json: its content is not what was written (SHA-256 differs)"


def test_rotation_keeps_the_newest_and_nothing_from_beyond_them(tmp_path: Path) -> None:
    for step in (2, 4, 6, 9):
        make_checkpoint(tmp_path, step)
    partial_folder(step_folder(tmp_path, 5)).mkdir()
    rotate(tmp_path, newest=6, keep=2)  # 9 was found broken, and gone back from
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004", "step_000006"]
    rotate(tmp_path, newest=6, keep=0)
    assert saved_steps(tmp_path) == [6]


def test_what_was_never_finished_is_no_checkpoint(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 1)
    unfinished = partial_folder(step_folder(tmp_path, 2))
    unfinished.mkdir()
    write_json(unfinished / "state.json", {})
    assert saved_steps(tmp_path) == [1]
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999):
        make_checkpoint(tmp_path, step)
    (tmp_path / "step_notes").mkdir()
    assert saved_steps(tmp_path) == [999_999, 1_000_000]


@pytest.mark.parametrize("text", ["", "{", '{"files": 3}', '{"files": {"a": {"size": 1}}}'])
def test_a_manifest_that_says_nothing_is_named(text: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 1)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="^step_000001/manifest.json: cannot be read"):
        read_manifest(folder)
