"""The run's log: rows on disk at once, comparable without times, taken back on resume; W&B for real."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import falcon_h1r.progress
import falcon_h1r.tracking
from falcon_h1r.tracking import MOST_TABLE_ROWS, Tracker, environment_versions, strip_times


@dataclass(frozen=True)
class Config:
    wandb: str = "disabled"
    wandb_project: str = "falcon-h1r"
    wandb_entity: str | None = None
    log_every_steps: int = 1


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    with Tracker(tmp_path, "sft", Config(), True, {}) as tracker:
        tracker.log({"loss": 1.5, "tokens": 640, "tokens_per_second": 1234.5}, step=3)
        (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row.pop("seconds") >= 0
    assert row == {"stage": "sft", "step": 3, "loss": 1.5, "tokens": 640, "tokens_per_second": 1234.5}


def test_two_runs_are_equal_once_times_are_stripped(tmp_path: Path) -> None:
    rows = []
    for name, speed in (("a", 10.0), ("b", 20.0)):
        with Tracker(tmp_path / name, "grpo", Config(), True, {}) as tracker:
            tracker.log({"reward_mean": 0.25, "sampling_tokens_per_second": speed, "sync_seconds": speed}, step=1)
        rows += read_rows(tmp_path / name / "metrics.jsonl")
    assert rows[0] != rows[1]
    assert strip_times(rows[0]) == strip_times(rows[1])
    assert strip_times(rows[0]) == {"stage": "grpo", "step": 1, "reward_mean": 0.25}


def test_a_value_that_is_not_finite_becomes_null_and_scalars_of_numpy_numbers(tmp_path: Path) -> None:
    metrics = {
        "loss": float("nan"),
        "grad_norm": float("inf"),
        "entropy": np.float32(0.5),
        "tokens": np.int64(7),
    }
    with Tracker(tmp_path, "sft", Config(), True, {}) as tracker:
        tracker.log(metrics, step=0)
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert [row[key] for key in metrics] == [None, None, 0.5, 7]


def test_other_ranks_write_and_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path / "run", "sft", Config(wandb="offline"), False, {}) as tracker:
        tracker.log({"loss": 1.0}, step=0)
        tracker.log_samples([{"response": "x"}])
        with tracker.progress(1, "SFT", "step") as bar:
            bar.advance(loss=1.0)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_samples_keep_their_text_as_it_is(tmp_path: Path) -> None:
    rows = [{"step": 1, "response": "<think>\nπ ≈ 3\n</think> \\boxed{3}"}]
    with Tracker(tmp_path, "grpo", Config(), True, {}) as tracker:
        tracker.log_samples(rows)
        tracker.log_samples(rows)
    assert read_rows(tmp_path / "samples.jsonl") == rows * 2


def test_resume_takes_back_later_rows_and_a_half_written_line(tmp_path: Path) -> None:
    with Tracker(tmp_path, "sft", Config(), True, {}) as tracker:
        for step in range(1, 6):
            tracker.log({"loss": 1 / step}, step)
            tracker.log_samples([{"step": step, "response": "é"}])
    metrics = tmp_path / "metrics.jsonl"
    uninterrupted = [strip_times(row) for row in read_rows(metrics)]
    metrics.write_text(metrics.read_text().replace('"seconds": 0', '"seconds": 90') + '{"stage": "sft", "st')

    with Tracker(tmp_path, "sft", Config(), True, {}, resume_step=3) as tracker:
        for step in (4, 5):
            tracker.log({"loss": 1 / step}, step)
            tracker.log_samples([{"step": step, "response": "é"}])
    rows = read_rows(metrics)
    assert [strip_times(row) for row in rows] == uninterrupted
    assert rows[3]["seconds"] >= 90
    assert [row["step"] for row in read_rows(tmp_path / "samples.jsonl")] == [1, 2, 3, 4, 5]


def test_resume_reads_any_transcript_and_a_character_cut_in_half(tmp_path: Path) -> None:
    rows = [{"step": step, "response": "one\u2028two\x85three é"} for step in (1, 2)]
    with Tracker(tmp_path, "grpo", Config(), True, {}) as tracker:
        tracker.log_samples(rows)
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(samples.read_bytes() + b'{"step": 3, "response": "' + "é".encode()[:1])

    Tracker(tmp_path, "grpo", Config(), True, {}, resume_step=1).finish()
    assert samples.read_bytes().count(b"\n") == 1
    assert json.loads(samples.read_bytes()) == rows[0]


def test_rows_that_a_full_disk_does_not_take_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, "sft", Config(), True, {}) as tracker:
        tracker.log({"loss": 1.0}, 1)
        metrics = tmp_path / "metrics.jsonl"
        metrics.rename(tmp_path / "away")
        metrics.symlink_to("/dev/full")
        for step in (2, 3):
            tracker.log({"loss": 1.0}, step)
        with pytest.raises(OSError, match="No space left"):
            tracker.sync()
        metrics.unlink()
        (tmp_path / "away").rename(metrics)
        tracker.log({"loss": 1.0}, 4)
        tracker.sync()
    assert [row["step"] for row in read_rows(metrics)] == [1, 2, 3, 4]
    assert capsys.readouterr().out.count("warning:") == 1


# ------------------------------------------------------------------------------------------------------------
# Weights & Biases


def wandb_records(folder: Path) -> list[Any]:
    """The offline run's transaction log as messages; W&B's service completes it after finish()."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        logged = leveldb_log_records(path.read_bytes())
        records = [wandb_internal_pb2.Record.FromString(data) for data in logged]
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.05)
    raise TimeoutError(f"{path} was not completed")


def leveldb_log_records(log: bytes) -> Iterator[bytes]:
    """LevelDB's log format: W&B's header, blocks of 32 KiB, chunks of checksum, length, type."""
    position, parts = 7, b""
    while position + 7 <= len(log):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        length, kind = struct.unpack_from("<HB", log, position + 4)
        parts += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield parts
            parts = b""


def test_wandb_offline_writes_a_run_with_group_job_type_and_step_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run_dir = tmp_path / "quickstart" / "sft"
    with Tracker(run_dir, "sft", Config("offline", log_every_steps=10), True, {"learning_rate": 0.1}) as tracker:
        for step in range(1, 21):
            tracker.log({"loss": 1 / step}, step)
        tracker.log({"dev_loss": 0.5}, step=13)

    records = wandb_records(tmp_path)
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.run_group, run.job_type, run.project) == ("quickstart", "sft", "falcon-h1r")
    assert run.run_id == (run_dir / "wandb_run_id.txt").read_text().strip()
    assert "learning_rate" in [item.key for item in run.config.update]
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert any(metric.glob_name == "sft/*" and metric.step_metric == "sft/step" for metric in metrics)
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [row["sft/step"] for row in history] == [10, 20, 13]
    assert history[0]["sft/loss"] == 0.1


def test_wandb_gets_tables_of_transcripts_with_a_column_for_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    long = "<think>" + "x" * 50_000 + "\ud800 7"
    with Tracker(tmp_path / "run" / "grpo", "grpo", Config("offline", log_every_steps=2), True, {}) as tracker:
        for step in (1, 2):
            row = {"step": step, "response": long, "reward": 0.5, "parts": {"correct": 1.0, "format": -0.5}}
            tracker.log_samples([row | {"sample_index": index} for index in range(40)])
    assert len(read_rows(tmp_path / "run" / "grpo" / "samples.jsonl")) == 80
    wandb_records(tmp_path)  # complete
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/grpo/samples*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["step", "response", "reward", "parts.correct", "parts.format", "sample_index"]
    assert len(table["data"]) == MOST_TABLE_ROWS
    assert table["data"][1][2:] == [0.5, 1.0, -0.5, 1]
    response = table["data"][0][1]
    assert response.startswith("<think>xxx") and response.endswith("x\\ud800 7") and len(response) < 4_100


def test_a_run_that_goes_on_elsewhere_keeps_its_wandb_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(falcon_h1r.tracking, "_start_wandb", lambda *arguments: started.append(arguments[-1]))
    with Tracker(tmp_path / "here", "sft", Config(wandb="offline"), True, {}) as tracker:
        ids = dict(tracker.ids)
    for folder in (
        tmp_path / "here",
        tmp_path / "elsewhere",
    ):  # with the folder's file, and with the checkpoint's alone
        with Tracker(folder, "sft", Config(wandb="offline"), True, {}, resume_step=0, resume_ids=ids) as tracker:
            assert tracker.ids == ids
    assert started == [ids["wandb"]] * 3


def test_wandb_is_not_imported_unless_switched_on(tmp_path: Path) -> None:
    code = (
        "import sys, types, pathlib; from falcon_h1r.tracking import Tracker\n"
        "config = types.SimpleNamespace(wandb='disabled', log_every_steps=1)\n"
        f"Tracker(pathlib.Path({str(tmp_path)!r}), 'sft', config, True, {{}}).log({{'loss': 1.0}}, 1)\n"
        "print([name for name in ('wandb', 'torch') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------
# Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(falcon_h1r.progress, "time", clock)
    return clock


def test_without_a_terminal_progress_is_a_plain_line_every_tenth(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        Tracker(tmp_path, "sft", Config(), True, {}) as tracker,
        tracker.progress(100, "SFT", "steps") as bar,
    ):
        for step in range(100):
            clock.now += 0.5
            bar.advance(tokens=500, loss=2.0 - step / 100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[1] == "SFT  20/100 steps  |  loss 1.81  |  1,000 tokens/s  |  0:10 elapsed, ETA 0:40"
    assert "\x1b" not in "".join(lines)


def test_a_burst_of_rollouts_has_the_speed_of_the_time_it_took(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(tmp_path, "evaluate", Config(), True, {})
    with tracker, tracker.progress(200, "evaluate", "answers") as bar:
        for _ in range(4):
            clock.now += 10
            for _ in range(50):
                clock.now += 1e-6
                bar.advance(1, tokens=20)
    speeds = [line.split("  |  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert len(speeds) == 10 and speeds[-1] == "100 tokens/s"
    assert all(0 < int(speed.split()[0]) <= 100 for speed in speeds)


def test_slow_steps_are_reported_every_twenty_seconds(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(tmp_path, "grpo", Config(), True, {})
    with tracker, tracker.progress(1000, "GRPO", "steps", completed=900) as bar:
        for _ in range(9):
            clock.now += 8
            bar.advance(tokens=100, reward=0.5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  |  ")[0] for line in lines] == [f"GRPO  {count}/1000 steps" for count in (903, 906, 909)]
    assert lines[-1].endswith("1:12 elapsed, ETA 12:08")


# ------------------------------------------------------------------------------------------------------------
# What it ran on


def run_python(code: str) -> list[float]:
    """The numbers that a fresh process prints: the peak of this one depends on the tests before."""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [float(line) for line in lines.splitlines()]


def test_the_meter_remembers_what_was_freed_and_counts_children() -> None:
    before, freed, with_child, after = run_python(
        "import subprocess, sys; from falcon_h1r.tracking import MemoryMeter\n"
        "with MemoryMeter() as meter:\n"
        "    print(meter.look())\n"
        "    block = b'x' * (256 << 20); meter.look(); del block; print(meter.look())\n"
        "    wait = \"block = b'x' * (512 << 20); print(1, flush=True); input()\"\n"
        "    child = subprocess.Popen([sys.executable, '-c', wait], stdin=-1, stdout=-1)\n"
        "    child.stdout.readline(); print(meter.look())\n"
        "    child.communicate(b'\\n'); print(meter.look())"
    )
    assert 0 < before < 0.2
    assert freed - before == pytest.approx(0.25, abs=0.05)
    assert with_child - before == pytest.approx(0.51, abs=0.05)
    assert with_child <= after < with_child + 0.05  # the thread may have met a slightly higher moment


def test_versions_name_what_the_numbers_depend_on() -> None:
    versions = environment_versions()
    assert {"python", "torch", "transformers", "git_revision", "platform", "processor"} <= set(versions)
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(versions.values())
