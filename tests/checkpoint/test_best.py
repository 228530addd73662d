"""The best checkpoint outlives the rotation, whatever came before and after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import saver
from falcon_h1r.checkpoint.best import BEST, BestMark, mark_if_better, nearest_step, read_best, remark
from falcon_h1r.checkpoint.files import saved_steps
from falcon_h1r.checkpoint.saver import Saver
from falcon_h1r.checkpoint.state import generator_states
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config
from falcon_h1r.config_run import CheckpointConfig
from falcon_h1r.distributed.world import World
from falcon_h1r.training_run import CHECKPOINTS, TrainingRun
from falcon_h1r.types import InputError
from tests.checkpoint.conftest import Train, make_config
from tests.checkpoint.test_saver import fragments, shared_state

ALONE = World(0, 1, torch.device("cpu"))
METRIC = "dev_pass_at_1"


def save(saving: Saver, step: int) -> list[int]:
    """Save a step; returns what there is then."""
    saving.start(fragments(ALONE), generator_states(), shared_state(step))
    saving.wait()
    return saved_steps(saving.root)


def run_through(root: Path, keep: int, values: dict[int, float], saves: Sequence[int]) -> list[list[int]]:
    """Evaluations and saves in the order of their steps; what there is after each save."""
    saving = Saver(root, CheckpointConfig(keep=keep, keep_best=METRIC), ALONE)
    left = []
    for step in sorted({*values, *saves}):
        if step in values:
            saving.note({METRIC: values[step], "loss": 0.0}, step)
        if step in saves:
            left.append(save(saving, step))
    return left


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_stays_beside_the_newest(tmp_path: Path, keep: int) -> None:
    values = {10: 0.1, 20: 0.5, 30: 0.4, 40: 0.5, 50: 0.3, 60: 0.6, 70: 0.2}
    left = run_through(tmp_path, keep, values, list(values))
    for steps, newest in zip(left, values, strict=True):
        seen = [step for step in values if step <= newest]
        best = max(seen, key=lambda step: (values[step], -step))  # of equal ones the earliest
        assert steps == sorted({best, *seen[-keep:]})


def test_an_evaluation_between_two_saves_keeps_the_nearer_one(tmp_path: Path) -> None:
    left = run_through(tmp_path, 1, {14: 0.9, 27: 0.1, 41: 0.2}, [10, 20, 30, 40, 50])
    assert left == [[10], [10, 20], [10, 30], [10, 40], [10, 50]]
    assert [nearest_step([10, 20], step) for step in (1, 14, 15, 16, 99)] == [10, 10, 10, 20, 20]
    assert nearest_step([], 3) is None


def test_without_the_setting_the_newest_alone_stay(tmp_path: Path) -> None:
    saving = Saver(tmp_path, CheckpointConfig(keep=1), ALONE)
    saving.note({METRIC: 0.9}, 1)
    assert (save(saving, 1), save(saving, 2)) == ([1], [2])
    assert not (tmp_path / BEST).exists()


def test_a_mark_set_by_another_job_is_heeded(tmp_path: Path) -> None:
    saving = Saver(tmp_path, CheckpointConfig(keep=1, keep_best="watch_pass_at_1"), ALONE)
    save(saving, 1)
    mark_if_better(tmp_path, BestMark("watch_pass_at_1", 1, 0.4))
    assert save(saving, 2) == [1, 2]
    mark_if_better(tmp_path, BestMark("watch_pass_at_1", 2, 0.5))
    assert save(saving, 3) == [2, 3]


def test_a_mark_moves_only_to_a_higher_number(tmp_path: Path) -> None:
    values = [0.2, float("nan"), 0.2, 0.1, 0.3]
    assert [mark_if_better(tmp_path, BestMark(METRIC, n, value)) for n, value in enumerate(values)] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert read_best(tmp_path, METRIC) == BestMark(METRIC, 4, 0.3)
    assert read_best(tmp_path, "dev_greedy") is None
    assert mark_if_better(tmp_path, BestMark("dev_greedy", 9, 0.1))  # another metric is asked for now


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metric": "dev_pass_at_1", "step": null, "value": 1}'])
def test_a_broken_mark_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / BEST).write_text(text)
    assert read_best(tmp_path, METRIC) is None
    assert run_through(tmp_path, 1, {}, [1, 2])[-1] == [2]


def test_a_mark_that_cannot_be_written_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "no room")

    monkeypatch.setattr(saver, "mark_if_better", refuse)
    run_through(tmp_path, 1, {1: 0.5}, [1])
    assert "step 1 could not be marked as the best ([Errno 28] no room)" in capsys.readouterr().out


def test_the_mark_is_made_anew_from_the_log(tmp_path: Path) -> None:
    mark_if_better(tmp_path, BestMark(METRIC, 99, 1.0))  # of steps that were gone back from
    remark(
        tmp_path, METRIC, [{"step": 1, METRIC: 0.3}, {"step": 2}, {"step": 3, METRIC: None}, {"step": 4, METRIC: 0.3}]
    )
    assert read_best(tmp_path, METRIC) == BestMark(METRIC, 1, 0.3)
    remark(tmp_path, METRIC, [])
    assert not (tmp_path / BEST).exists()


# -----------------------------------------------------------------------------
# In a run


def evaluating(config: Config, values: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run evaluate, with these numbers by step."""
    finish = TrainingRun.__init__

    def begin(self: TrainingRun, *arguments: Any, **named: Any) -> None:
        finish(self, *arguments, **named)
        self._evaluate_dev = lambda: {METRIC: values[self.engine.steps_done]}

    monkeypatch.setattr(TrainingRun, "__init__", begin)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_best_of_the_whole_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    config.sft.dev_every_steps, config.checkpoint.keep, config.checkpoint.keep_best = 2, 1, METRIC
    values = {2: 0.1, 4: 0.8, 6: 0.2, 8: 0.8, 10: 0.9, 12: 0.1, 14: 0.2, 16: 0.9}
    evaluating(config, values, monkeypatch)
    root = tmp_path / "run" / CHECKPOINTS
    train(ALONE, tmp_path / "run", config, upto=9)
    assert saved_steps(root) == [4, 8]
    mark_if_better(root, BestMark(METRIC, 9, 1.0))  # as of a step that the run is about to make again
    train(ALONE, tmp_path / "run", replace(config, resume=True))
    assert saved_steps(root) == [10, 16]
    assert json.loads((root / BEST).read_text()) == {"metric": METRIC, "step": 10, "value": 0.9}


def test_a_metric_that_is_never_measured_is_refused() -> None:
    config = Config()
    config.checkpoint.keep_best = "loss"
    with pytest.raises(InputError, match=r"checkpoint.keep_best=loss: no metric of an evaluation"):
        check_config(config)
    config.checkpoint.keep_best = METRIC
    with pytest.raises(InputError, match=r"checkpoint.keep_best=dev_pass_at_1: is never measured"):
        check_config(config)
    config.grpo.dev_every_steps = 5
    check_config(config)
    config.grpo.dev_every_steps, config.checkpoint.keep_best = 0, "watch_pass_at_1"
    check_config(config)
