"""Saving that fails leaves the last checkpoint whole and the run going; saving that is slow holds nobody up."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import files, saver
from falcon_h1r.checkpoint.files import saved_steps
from falcon_h1r.checkpoint.saver import Saver
from falcon_h1r.checkpoint.state import SharedState, generator_states
from falcon_h1r.checkpoint.stored import StoredState, newest_checkpoint
from falcon_h1r.config_run import CheckpointConfig
from falcon_h1r.distributed.fragments import Fragment
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.training_run import CHECKPOINTS
from tests.checkpoint.conftest import Train, make_config

ALONE = World(0, 1, torch.device("cpu"))


def shared_state(step: int, world_size: int = 1) -> SharedState:
    return SharedState("sft", step, step, world_size, {}, "")


def fragments(world: World, value: float = 0.0) -> list[Fragment]:
    return [Fragment("weight", 4 * world.rank, {"weight": torch.full((4,), value)})]


# -----------------------------------------------------------------------------
# A full disk


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A file system of so many bytes at `folder`."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def checkpoint_bytes(train: Train, folder: Path) -> int:
    train(ALONE, folder, upto=2)
    return sum(path.stat().st_size for path in (folder / CHECKPOINTS / "step_000002").iterdir())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_going(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    undisturbed = train(ALONE, tmp_path / "undisturbed")
    config = make_config()
    config.checkpoint.asynchronous = asynchronous
    root = tmp_path / "run" / CHECKPOINTS
    with small_disk(root, int(1.5 * checkpoint_bytes(train, tmp_path / "measured"))):
        capsys.readouterr()
        done = train(ALONE, tmp_path / "run", config)
        warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
        assert [path.name for path in root.iterdir()] == ["step_000002"]
        assert newest_checkpoint(root, ALONE) == root / "step_000002"
        assert warnings[0].startswith("warning: the checkpoint of step ")
        assert "No space left on device" in warnings[0]
        assert warnings[0].endswith(f"the newest whole one is {root / 'step_000002'}")
        assert torch.equal(done["weights"], undisturbed["weights"])
        assert 1 <= done["rows"][-1]["failed_saves"] < len(warnings)  # the last is the end's own
        assert "failed_saves" not in done["rows"][1]

        with pytest.raises(
            StopRequested, match="could not be saved .*No space left.*; the newest whole one is"
        ) as stop:
            train(ALONE, tmp_path / "run", make_config(resume=True), prepare=stop_after_step_3)
        assert "stopped after step 3" in str(stop.value)


def stop_after_step_3(engine: Any) -> None:
    class Late(Watch):
        @property
        def stop_requested(self) -> bool:
            return engine.steps_done >= 3

    engine.world = replace(engine.world, watch=Late())


# -----------------------------------------------------------------------------
# Several ranks, and threads


def test_one_rank_that_cannot_write_drops_the_checkpoint_for_all(run_on_ranks: Any, tmp_path: Path) -> None:
    def save_twice(world: World) -> tuple[Any, ...]:
        saving = Saver(tmp_path, CheckpointConfig(), world)
        saving.start(fragments(world), generator_states(), shared_state(1, 2))
        saving.wait()
        if world.rank == 1:  # its disk is full from here on
            write = files.HashingFile.write
            files.HashingFile.write = refuse  # type: ignore[method-assign]
        saving.start(fragments(world), generator_states(), shared_state(2, 2))
        saving.wait()
        first = saving.last_step, saving.num_failures, saving.last_failure
        if world.rank == 1:
            files.HashingFile.write = write  # type: ignore[method-assign]
        saving.start(fragments(world), generator_states(), shared_state(3, 2))
        saving.wait()
        return *first, saving.last_step, saving.num_failures

    by_rank = run_on_ranks(2, save_twice)
    assert by_rank == [(1, 1, "rank 1: [Errno 28] no room", 3, 1)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001", "step_000003"]


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no room")


def test_a_manifest_that_cannot_be_written_is_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = Saver(tmp_path, CheckpointConfig(), ALONE, before_naming=refuse)
    saving.start(fragments(ALONE), generator_states(), shared_state(1))
    saving.wait()
    assert (saving.last_step, saving.num_failures) == (None, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_ours_is_no_full_disk(tmp_path: Path) -> None:
    saving = Saver(tmp_path, CheckpointConfig(), ALONE)
    saving.start(fragments(ALONE), {"generators": object()}, shared_state(1))
    with pytest.raises(TypeError, match="not JSON serializable"):
        saving.wait()


def test_what_is_saved_is_the_moment_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is held up until training has moved on, and changed what the copy was taken of."""
    moved_on = threading.Event()
    write_rank = saver.write_rank

    def write_late(*arguments: Any) -> Any:
        assert moved_on.wait(timeout=60)
        return write_rank(*arguments)

    monkeypatch.setattr(saver, "write_rank", write_late)
    live = fragments(ALONE, 1.0)
    saving = Saver(tmp_path, CheckpointConfig(), ALONE)
    saving.start(live, generator_states(), shared_state(1))
    assert saving.in_flight
    assert saving.is_busy
    saving.advance(num_busy=1)  # as a step's border does meanwhile: nothing is waited for
    assert saved_steps(tmp_path) == []
    live[0].tensors["weight"].fill_(2.0)
    moved_on.set()
    saving.wait()
    with StoredState(tmp_path / "step_000001") as stored:
        assert stored.read("weight", "weight", 0, 4).tolist() == [1.0] * 4
