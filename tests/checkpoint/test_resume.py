"""A state written by some ranks goes on with any others; a broken checkpoint is passed over by name."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from falcon_h1r.checkpoint.state import generator_states, restore_generators
from falcon_h1r.checkpoint.stored import StoredState, newest_checkpoint, open_newest
from falcon_h1r.config_run import CheckpointConfig, EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.fragments import MOMENTS, WEIGHT
from falcon_h1r.distributed.world import World
from falcon_h1r.training_run import CHECKPOINTS
from falcon_h1r.types import InputError
from tests.checkpoint.conftest import NUM_STEPS, Train, make_config

ALONE = World(0, 1, torch.device("cpu"))
SIZES = (1, 2, 4)
CUT = 6  # steps before the interruption; ten follow
RESUMED = make_config(resume=True)
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("written_by", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 4))])
def test_any_ranks_go_on_from_what_any_others_wrote(
    train: Train, run_on_ranks: Any, tmp_path: Path, written_by: int, dtype: torch.dtype
) -> None:
    def on(size: int, work: Callable[[World], Any]) -> Any:
        return work(ALONE) if size == 1 else run_on_ranks(size, work)[0]

    alone = train(ALONE, tmp_path / "alone", dtype=dtype)
    written = tmp_path / "written"
    on(written_by, lambda world: train(world, written, dtype=dtype, upto=CUT))
    for size in SIZES:
        folder = tmp_path / f"resumed by {size}"
        shutil.copytree(written, folder)
        resumed = on(size, lambda world, folder=folder: train(world, folder, RESUMED, dtype=dtype))
        assert resumed["first_step"] == CUT
        assert [row["step"] for row in resumed["rows"]] == list(range(1, NUM_STEPS + 1))
        differences = np.abs(np.subtract(losses(resumed["rows"]), losses(alone["rows"])))
        assert differences[:CUT].max() < TOLERANCES[dtype]
        assert differences[CUT:].max() < TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("written_by", "read_by"),
    [
        pytest.param(("deepspeed", 1, 2), ("deepspeed", 3, 2), marks=pytest.mark.slow),
        pytest.param(("deepspeed", 3, 2), ("deepspeed", 1, 4), marks=pytest.mark.slow),
        pytest.param(("deepspeed", 3, 2), ("torch", 0, 1), marks=pytest.mark.slow),
    ],
)
def test_another_zero_stage_goes_on(
    train: Train, run_on_ranks: Any, tmp_path: Path, written_by: tuple[str, int, int], read_by: tuple[str, int, int]
) -> None:
    """Losses of the next ten steps against those of a run that was never cut."""
    pytest.importorskip("deepspeed")

    def on(how: tuple[str, int, int], resume: bool, **options: Any) -> dict[str, Any]:
        name, stage, size = how
        config = make_config(resume=resume, engine=EngineConfig(name=name, zero_stage=stage))
        found: dict[str, Any] = run_on_ranks(size, lambda world: train(world, tmp_path, config, **options))[0]
        return found

    alone = run_on_ranks(1, lambda world: train(world, tmp_path / "alone"))[0]
    on(written_by, False, upto=CUT)
    resumed = on(read_by, True)
    assert resumed["first_step"] == CUT
    assert losses(resumed["rows"]) == pytest.approx(losses(alone["rows"]), abs=1e-5)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_same_ranks_go_on_bit_for_bit(
    train: Train, run_on_ranks: Any, tmp_path: Path, size: int, asynchronous: bool
) -> None:
    settings = CheckpointConfig(every_steps=3, every_minutes=0.0, asynchronous=asynchronous)
    config = make_config(resume=True)
    config.checkpoint = settings

    def interrupted(world: World) -> list[dict[str, Any]]:
        left = [train(world, tmp_path / "twice", config, upto=upto) for upto in (4, 11)]
        return [train(world, tmp_path / "once"), *left, train(world, tmp_path / "twice", config)]

    for once, first, second, last in run_on_ranks(size, interrupted):
        assert first["first_step"] == 0
        assert second["first_step"] == 3
        assert 3 < last["first_step"] <= 11
        assert torch.equal(once["weights"], last["weights"])
        assert torch.equal(once["moments"], last["moments"])
        assert once["rows"] == last["rows"]


def test_a_finished_run_has_its_last_state_and_no_more_than_it_keeps(train: Train, tmp_path: Path) -> None:
    done = train(ALONE, tmp_path)
    steps = sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir())
    assert steps[-1] == f"step_{NUM_STEPS:06d}"
    assert len(steps) == 2
    again = train(ALONE, tmp_path, RESUMED)  # as after a kill between the last step and the model
    assert again["first_step"] == NUM_STEPS
    assert torch.equal(done["weights"], again["weights"])
    assert done["rows"] == again["rows"]


def test_the_clock_of_the_main_rank_saves_on_all(train: Train, run_on_ranks: Any, tmp_path: Path) -> None:
    config = make_config()
    never = CheckpointConfig(every_steps=0, every_minutes=0.0)
    at_once = CheckpointConfig(every_steps=0, every_minutes=1e-9, asynchronous=False)

    def three_steps(world: World) -> int:
        # The others' clocks do not count: theirs never asks.
        config.checkpoint = at_once if world.is_main else replace(at_once, every_minutes=1e9)
        train(world, tmp_path / "clock", config, upto=3)
        config.checkpoint = never
        return len(train(world, tmp_path / "never", config)["rows"])

    assert run_on_ranks(2, three_steps) == [NUM_STEPS] * 2
    assert sorted(path.name for path in (tmp_path / "clock" / CHECKPOINTS).iterdir()) == ["step_000002", "step_000003"]
    assert not (tmp_path / "never" / CHECKPOINTS).exists()


# -----------------------------------------------------------------------------
# What is not whole


def cut_off(folder: Path) -> str:
    path = folder / "rank_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return "rank_00001.safetensors: "


def flip_a_bit(folder: Path) -> str:
    path = folder / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "rank_00000.safetensors: its content is not what was written (SHA-256 differs)"


def lose_a_rank(folder: Path) -> str:
    (folder / "rank_00001.safetensors").unlink()
    return "rank_00001.safetensors: No such file or directory"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json: cannot be read"


def lose_the_state(folder: Path) -> str:
    (folder / "state.json").unlink()
    return "state.json: No such file or directory"


def half_rename(folder: Path) -> str:
    folder.rename(folder.with_name(folder.name + ".partial"))
    return ""


FAULTS = (cut_off, flip_a_bit, lose_a_rank, lose_the_manifest, lose_the_state, half_rename)


@pytest.fixture
def two_checkpoints(train: Train, run_on_ranks: Any, tmp_path: Path) -> Path:
    """Of two ranks, after steps 4 and 6."""
    run_on_ranks(2, lambda world: train(world, tmp_path, upto=CUT)["rows"])
    return tmp_path / CHECKPOINTS


@pytest.mark.parametrize("size", [1, 2])
def test_a_broken_checkpoint_is_named_and_the_one_before_it_taken(
    two_checkpoints: Path, run_on_ranks: Any, tmp_path: Path, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for break_one in FAULTS:
        root = tmp_path / break_one.__name__ / CHECKPOINTS
        shutil.copytree(two_checkpoints, root)
        expected = break_one(root / "step_000006")
        found = run_on_ranks(size, lambda world, root=root: newest_checkpoint(root, world))
        assert [folder.name for folder in found] == ["step_000004"] * size
        warnings = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning")]
        if expected:
            (warning,) = warnings
            assert warning.startswith(f"warning: checkpoints/step_000006/{expected}")
            assert warning.endswith("; going back to the one before")
        else:
            assert [path.name for path in root.iterdir()] == ["step_000004"]


def test_a_run_that_fell_back_rewrites_the_broken_one(two_checkpoints: Path, train: Train, tmp_path: Path) -> None:
    cut_off(two_checkpoints / "step_000006")
    train(ALONE, tmp_path, make_config(resume=True), upto=8)
    assert newest_checkpoint(two_checkpoints, ALONE) == two_checkpoints / "step_000008"
    assert sorted(path.name for path in two_checkpoints.iterdir()) == ["step_000006", "step_000008"]
    shutil.rmtree(two_checkpoints / "step_000008")
    assert newest_checkpoint(two_checkpoints, ALONE) == two_checkpoints / "step_000006"


def test_where_none_is_whole_the_run_does_not_start_over_by_itself(two_checkpoints: Path) -> None:
    for step in (4, 6):
        lose_a_rank(two_checkpoints / f"step_{step:06d}")
    with pytest.raises(InputError, match="checkpoints: none of the 2 checkpoints is whole"):
        newest_checkpoint(two_checkpoints, ALONE)


def test_a_folder_without_checkpoints_starts_anew(train: Train, tmp_path: Path) -> None:
    config = make_config(resume=True)
    config.checkpoint = CheckpointConfig(every_steps=0, every_minutes=0.0)
    once = train(ALONE, tmp_path / "once")
    train(ALONE, tmp_path / "twice", config, upto=3)
    assert not (tmp_path / "twice" / CHECKPOINTS).exists()
    twice = train(ALONE, tmp_path / "twice", config)
    assert twice["first_step"] == 0
    assert twice["rows"] == once["rows"]


# -----------------------------------------------------------------------------
# What is another run's


def test_a_stretch_is_read_across_the_ranks_that_wrote_it(two_checkpoints: Path, tiny_model: Any) -> None:
    name, parameter = next((n, p) for n, p in tiny_model.named_parameters() if p.numel() > 100)
    with StoredState(two_checkpoints / "step_000006") as stored:
        for kind in (WEIGHT, *MOMENTS):
            whole = stored.read(name, kind, 0, parameter.numel())
            for start, length in ((0, 1), (3, parameter.numel() // 2), (parameter.numel() - 1, 1), (5, 0)):
                assert torch.equal(stored.read(name, kind, start, length), whole[start : start + length])
        with pytest.raises(InputError, match=f"weight of {name} holds nothing from {parameter.numel():,} to"):
            stored.read(name, "weight", parameter.numel() - 1, 2)


def test_the_state_of_another_model_or_stage_is_refused(two_checkpoints: Path, tiny_model: Any) -> None:
    tiny_model.lm_head.weight.requires_grad_(False)
    engine = TorchEngine(tiny_model, OptimizerConfig(), 1, ALONE)
    with (
        StoredState(two_checkpoints / "step_000006") as stored,
        pytest.raises(InputError, match="lm_head.weight is not trained by this run; it holds another model's state"),
    ):
        stored.load_into(engine)
    with pytest.raises(InputError, match="step_000006: a checkpoint of sft, not of grpo"):
        open_newest(RESUMED, "grpo", two_checkpoints, ALONE)


def test_other_settings_are_pointed_out(two_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_newest(replace(RESUMED, run_dir="elsewhere"), "sft", two_checkpoints, ALONE)
    assert "warning" not in capsys.readouterr().out
    open_newest(replace(RESUMED, seed=1), "sft", two_checkpoints, ALONE)
    assert "written under other settings" in capsys.readouterr().out


def test_random_numbers_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]

    draw()  # leaves half a pair of Gaussians behind
    states = generator_states()
    expected = draw()
    restore_generators(states)
    assert draw() == expected
