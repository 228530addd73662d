"""A short SFT of the tiny model through a TrainingRun, on any number of ranks, stopped and resumed at will."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint.stored import open_newest
from falcon_h1r.config import Config, SFTConfig
from falcon_h1r.config_run import CheckpointConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.world import World
from falcon_h1r.sft.loop import train_sft
from falcon_h1r.tracking import strip_times
from falcon_h1r.training_run import CHECKPOINTS, TrainingRun, open_tracker

NUM_STEPS = 16


def make_config(**changes: Any) -> Config:
    limits = LimitsConfig(prompt_tokens=16, response_tokens=48, row_tokens=64)
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=3)
    return replace(
        Config(sft=SFTConfig(batch_sequences=4, limits=limits, optimizer=optimizer)),
        checkpoint=CheckpointConfig(every_steps=2, every_minutes=0.0, asynchronous=False),
        **changes,
    )


Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tiny_model: Any, random_documents: Any) -> Train:
    """Runs SFT in a folder until `num_steps` or a stop; what it left: weights, moments, metrics."""
    documents = random_documents([20, 7, 13, 4, 31, 9, 16, 25])

    def run(
        world: World,
        folder: Path,
        config: Config | None = None,
        num_steps: int = NUM_STEPS,
        dtype: torch.dtype = torch.float32,
        prepare: Callable[[Engine], None] = lambda engine: None,
        upto: int | None = None,
    ) -> dict[str, Any]:
        """
        Args:
            num_steps: of the schedule.
            upto: abandon it after so many, as a kill would.
        """
        config = config or make_config()
        model = copy.deepcopy(tiny_model).to(dtype)
        engine = open_engine(model, config.sft.optimizer, num_steps, world, config.engine)
        prepare(engine)
        stored = open_newest(config, "sft", folder / CHECKPOINTS, world) if config.resume else None
        with open_tracker(config, "sft", folder, world.is_main, "test", stored) as tracker:
            training = TrainingRun(config, "sft", folder, engine, tracker, dict, stored=stored)
            if upto is None:
                with training:
                    train_sft(training, documents, config.sft, seed=0)
            else:
                _train_upto(training, documents, config, upto)
        return {
            "first_step": stored.shared.step if stored is not None else 0,
            "weights": torch.cat([weight.flatten().clone() for _, weight in engine.full_weights()]),
            "moments": torch.cat([f.tensors["exp_avg_sq"] for f in engine.fragments()]),
            "rows": read_rows(folder / "metrics.jsonl"),
        }

    return run


class Abandoned(Exception):
    """Stands for a kill: nothing is saved on the way out."""


def _train_upto(training: TrainingRun, documents: Any, config: Config, upto: int) -> None:
    finish_step = training.finish_step

    def finish_and_leave(*arguments: Any) -> None:
        finish_step(*arguments)
        if training.engine.steps_done == upto:
            training.saver.wait()
            raise Abandoned

    training.finish_step = finish_and_leave  # type: ignore[method-assign]
    try:
        with training:
            train_sft(training, documents, config.sft, seed=0)
    except Abandoned:
        return


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [strip_times(json.loads(line)) for line in path.read_text().splitlines()]
