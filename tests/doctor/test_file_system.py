"""The file system: green here, red where it is full, read-only, not shared, or does not keep its word."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from falcon_h1r.distributed.world import World
from falcon_h1r.doctor import file_system
from falcon_h1r.doctor.file_system import RENAMED_BYTES, RENAMES, check_file_system, check_locks, check_rename
from falcon_h1r.doctor.finding import Finding
from falcon_h1r.doctor.runner import Check, Runner
from tests.doctor.examinations import ALONE, RunOnRanks, assert_green, examination, only, statuses

NAMES = ["run_dir", "files", "free space", "rename", "locks"]


def through_the_runner(folder: Path) -> Finding:
    (found,) = Runner(ALONE, [Check("file system", check_file_system)], 60.0).run(0, examination(folder)).findings
    return found


def test_a_sound_folder_is_green_and_left_as_it_was(tmp_path: Path) -> None:
    findings = check_file_system(examination(tmp_path))
    assert_green(findings)
    assert [f.name for f in findings] == NAMES and not list(tmp_path.iterdir())


def test_two_ranks_on_one_folder_are_green(run_on_ranks: RunOnRanks, tmp_path: Path) -> None:
    for findings in run_on_ranks(2, lambda world: check_file_system(examination(tmp_path, world))):
        assert_green(findings)
        assert [f.name for f in findings] == NAMES


def test_a_folder_that_takes_no_files_is_red() -> None:
    found = through_the_runner(Path("/proc"))  # takes none from anybody
    assert found.status == "failed" and "Error" in found.measured


def test_a_full_disk_is_red(tmp_path: Path) -> None:
    files = tmp_path / file_system.FOLDER
    files.mkdir()
    (files / "speed_00000").symlink_to("/dev/full")
    found = through_the_runner(tmp_path)
    assert found.status == "failed" and "No space left on device" in found.measured


def test_too_little_space_for_the_checkpoints_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = examination(tmp_path)
    needed, checkpoint = file_system.planned_bytes(patient)
    assert needed > (patient.config.checkpoint.keep + 1) * checkpoint > 0
    for free, status in ((needed, "ok"), (needed - 1, "failed")):
        monkeypatch.setattr(file_system.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert file_system.check_space(ALONE, tmp_path, needed).status == status


def test_adapters_make_small_checkpoints(tmp_path: Path) -> None:
    _, whole = file_system.planned_bytes(examination(tmp_path))
    _, adapters = file_system.planned_bytes(examination(tmp_path, ALONE, "model.lora.rank=2"))
    assert 0 < adapters < whole / 4


def test_folders_that_ranks_do_not_share_are_red(
    run_on_ranks: RunOnRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_system, "APPEARS_SECONDS", 0.3)

    def work(world: World) -> list[Finding]:
        return check_file_system(examination(tmp_path / str(world.rank), world))

    for findings in run_on_ranks(2, work):
        found = statuses(findings)
        assert found["run_dir"] == "failed" and found["rename"] == found["locks"] == "skipped"
        assert "not seen by rank 1" in only(findings, "run_dir").measured


@pytest.mark.parametrize("fault", ["in place", "missing in between"])
def test_a_replacement_that_is_not_atomic_is_red(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace_badly(path: Path, stop: Path) -> None:
        import time

        for number in range(RENAMES):
            if fault == "in place":
                path.write_bytes(bytes([number]) * (RENAMED_BYTES // 2))
            else:
                path.unlink()
            time.sleep(0.005)
            path.write_bytes(bytes([number]) * RENAMED_BYTES)
        stop.touch()

    monkeypatch.setattr(file_system, "_replace_repeatedly", replace_badly)
    assert check_rename(ALONE, tmp_path).status == "failed"


def test_locks_that_let_everybody_in_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system.fcntl, "flock", lambda *_: None)
    found = check_locks(ALONE, tmp_path)
    assert found.status == "failed" and "rank 0 got a lock" in found.measured


def test_a_file_system_without_locks_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(file_system.fcntl, "flock", refuse)
    found = check_locks(ALONE, tmp_path)
    assert found.status == "failed" and "No locks available" in found.measured


def test_bytes_that_come_back_changed_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = file_system.write_synced

    def write_and_spoil(path: Path, num_bytes: int) -> float:
        seconds = write(path, num_bytes)
        with path.open("r+b") as file:
            file.seek(num_bytes // 2)
            file.write(b"\xff\xff")
        return seconds

    monkeypatch.setattr(file_system, "write_synced", write_and_spoil)
    assert statuses(check_file_system(examination(tmp_path)))["files"] == "failed"


def test_a_checkpoint_of_many_minutes_is_a_warning(tmp_path: Path) -> None:
    (found,) = file_system.check_speed(ALONE, tmp_path, 4, checkpoint_bytes=10**18)
    assert found.status == "warn"
