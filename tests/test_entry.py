"""How a run starts: one config for all ranks, one folder for one run; what goes on is the run that was begun."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from falcon_h1r.config import Config
from falcon_h1r.distributed.world import World
from falcon_h1r.entry import accept_local_rank, agree_on_config
from falcon_h1r.entry_folder import check_folder, give_back_folder, open_run
from falcon_h1r.types import InputError
from tests.integration.test_launch import run

OnRanks = Callable[[int, Callable[[World], Any]], list[Any]]


def run_config(folder: Path, **settings: Any) -> Config:
    """Settings by dotted key, with __ for the dot."""
    config = Config(run_dir=str(folder))
    for key, value in settings.items():
        *sections, name = key.split("__")
        node: Any = config
        for section in sections:
            node = getattr(node, section)
        setattr(node, name, value)
    return config


def outcome_of(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except InputError as error:
        return str(error)


# -----------------------------------------------------------------------------
# All ranks


def test_ranks_of_one_config_agree(run_on_ranks: OnRanks) -> None:
    agreed = run_on_ranks(2, lambda world: agree_on_config(world, Config(seed=3)).seed)
    assert agreed == [3, 3]


def test_ranks_of_different_settings_are_refused_by_key_and_rank(run_on_ranks: OnRanks) -> None:
    def agree(world: World) -> Any:
        config = Config()
        config.sft.num_steps = 40 if world.rank == 2 else 30
        return outcome_of(lambda: agree_on_config(world, config))

    host = os.uname().nodename
    assert run_on_ranks(3, agree) == [f"sft.num_steps: 30 on rank 0, but 40 on rank 2 ({host})"] * 3


def test_a_mistake_on_one_ranks_command_line_reaches_all(run_on_ranks: OnRanks) -> None:
    def agree(world: World) -> Any:
        outcome = InputError("sft.num_stepz: no such key") if world.rank == 1 else Config()
        return outcome_of(lambda: agree_on_config(world, outcome))

    told = run_on_ranks(2, agree)
    assert told[0] == told[1] and told[0].startswith("rank 1 (") and told[0].endswith("): sft.num_stepz: no such key")


@pytest.mark.parametrize("argument", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]])
def test_a_local_rank_is_accepted_and_not_shown_to_hydra(argument: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["sft.py", *argument, "seed=1"])
    accept_local_rank()
    assert sys.argv == ["sft.py", "seed=1"]
    assert os.environ.pop("LOCAL_RANK") == "1"


def test_the_environments_local_rank_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(sys, "argv", ["sft.py", "seed=1", "--local_rank=1"])
    accept_local_rank()
    assert (sys.argv, os.environ["LOCAL_RANK"]) == (["sft.py", "seed=1"], "3")


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_one_line_of_ours(tmp_path: Path) -> None:
    result = run("bash", "launch/torchrun.sh", "recipes/sft.py", "sft.num_stepz=3", f"run_dir={tmp_path / 'run'}")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: sft.num_stepz: no such key (did you mean sft.num_steps?)"]
    assert result.returncode != 0


# -----------------------------------------------------------------------------
# A run goes on


def begin(folder: Path, **settings: Any) -> None:
    """A run of those settings, by a process that has ended."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=lambda: open_run(run_config(folder, **settings), "sft", 1))
    process.start()
    process.join()
    assert process.exitcode == 0


def reopen(folder: Path, **settings: Any) -> Any:
    """In a child, which lets go of the lock: the outcome of opening the run again, and what is then recorded."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()

    def work() -> None:
        answers.put(outcome_of(lambda: open_run(run_config(folder, **settings), "sft", 1).is_new))

    process = context.Process(target=work)
    process.start()
    process.join()
    return answers.get()


def test_a_run_goes_on_with_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    begin(tmp_path / "run", seed=7)
    assert reopen(tmp_path / "run", seed=7, resume=True) is False


def test_a_run_that_is_not_there_yet_is_begun(tmp_path: Path) -> None:
    assert reopen(tmp_path / "run", resume=True) is True


@pytest.mark.parametrize("resume", [False, True])
def test_a_stages_folder_of_a_pipeline_is_not_written_over(tmp_path: Path, resume: bool) -> None:
    begin(tmp_path / "run")
    (tmp_path / "run/sft/model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run_dir=.*run/sft: holds model of a run and no config.yaml"):
        check_folder(Config(run_dir=str(tmp_path / "run/sft"), resume=resume))


def test_what_spreads_or_watches_a_run_may_change_and_is_noted(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    begin(tmp_path / "run")
    changed = {
        **{"launch__num_processes": 4, "tracking__wandb": "offline", "checkpoint__keep": 5},
        **{"supervision__lost_seconds": 60.0, "engine__name": "deepspeed", "engine__zero_stage": 2},
        **{"engine__sequence_parallel": 2, "engine__activation_checkpointing": "layer"},
        **{"engine__zero_json": "zero2.json"},
    }
    assert reopen(tmp_path / "run", resume=True, **changed) is False
    noted = [line for line in capfd.readouterr().out.splitlines() if line.startswith("resume:")]
    assert len(noted) == len(changed)
    assert "resume: launch.num_processes was 1, now 4" in noted
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["launch"]["num_processes"] == 4


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        (
            "sft__optimizer__learning_rate",
            1e-5,
            "sft.optimizer.learning_rate=1e-05: the run in {} was begun with 0.001",
        ),
        ("seed", 1, "seed=1: the run in {} was begun with 0"),
        ("model__path", "elsewhere", 'model.path="elsewhere": the run in {} was begun with null'),
    ],
)
def test_what_a_run_computes_may_not_change(tmp_path: Path, key: str, value: Any, shown: str) -> None:
    begin(tmp_path / "run")
    refusal = reopen(tmp_path / "run", resume=True, **{key: value})
    assert refusal == f"{shown.format(tmp_path / 'run')}, and a run goes on as it was begun"


def test_settings_that_came_later_count_with_their_default(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    recorded = yaml.safe_load(path.read_text())
    del recorded["sft"]["num_epochs"]
    path.write_text(yaml.safe_dump(recorded))
    assert reopen(tmp_path / "run", resume=True) is False
    path.write_text(yaml.safe_dump(recorded))
    assert "sft.num_epochs=2.0" in str(reopen(tmp_path / "run", resume=True, sft__num_epochs=2.0))


def test_to_go_on_needs_the_folder_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run_dir is not set: resume=true needs the folder"):
        check_folder(Config(resume=True))


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already; resume=true goes on with it"):
        check_folder(run_config(tmp_path / "run"))


def test_a_damaged_record_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(InputError, match="config.yaml: not YAML"):
        check_folder(run_config(tmp_path, resume=True))


# -----------------------------------------------------------------------------
# One process at a run


def test_a_run_that_is_still_going_is_not_entered_twice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    opened, enough = context.Event(), context.Event()

    def hold() -> None:
        open_run(run_config(folder), "sft", 1)
        opened.set()
        enough.wait(60)

    holder = context.Process(target=hold)
    holder.start()
    assert opened.wait(60)
    refusal = reopen(folder, resume=True)
    assert refusal == f"run_dir={folder}: process {holder.pid} on {os.uname().nodename} is still at this run"
    holder.kill()
    holder.join()
    assert reopen(folder, resume=True) is False  # the kernel lets go of what a killed process held


def test_evaluations_share_a_folder_with_each_other_and_with_nothing_else(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    opened, enough = context.Event(), context.Event()

    def hold() -> None:
        open_run(run_config(tmp_path), "evaluate", 1)
        opened.set()
        enough.wait(60)

    def enter(stage: str) -> Any:
        answers: Any = context.SimpleQueue()
        config = run_config(tmp_path, resume=True)
        config.evaluate.work.merge = False
        process = context.Process(
            target=lambda: answers.put(outcome_of(lambda: open_run(config, stage, 1).is_new))
        )  # fmt: skip
        process.start()
        process.join()
        return answers.get()

    holder = context.Process(target=hold)
    holder.start()
    assert opened.wait(60)
    assert enter("evaluate") is False
    assert "is still at this run" in enter("sft")
    enough.set()
    holder.join()


def test_a_child_that_outlives_a_run_does_not_hold_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    enough = context.Event()
    children: Any = context.SimpleQueue()

    def run_and_leave_a_child() -> None:
        open_run(run_config(folder), "sft", 1)
        child = os.fork()
        if child == 0:
            enough.wait(60)
            os._exit(0)
        children.put(child)
        os._exit(0)

    process = context.Process(target=run_and_leave_a_child)
    process.start()
    process.join()
    assert children.get()
    try:
        assert reopen(folder, resume=True) is False
    finally:
        enough.set()


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    open_run(run_config(tmp_path / "run"), "sft", 1)
    assert "no locks on this file system" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, why in (("file", "File exists"), ("file/run", "Not a directory")):
        with pytest.raises(InputError, match=rf"^run_dir=.*{folder}: cannot be written to \({why}\)$"):
            open_run(run_config(tmp_path / folder), "sft", 1)


def test_a_folder_is_given_back_only_by_the_run_that_began_in_it(tmp_path: Path) -> None:
    run = open_run(run_config(tmp_path / "run"), "sft", 1)
    (run.folder / "logs").mkdir()
    give_back_folder(run)
    assert [path.name for path in run.folder.iterdir()] == ["lock"]

    begin(tmp_path / "other")
    again = open_run(run_config(tmp_path / "other", resume=True), "sft", 1)
    give_back_folder(again)
    assert (again.folder / "config.yaml").exists()
