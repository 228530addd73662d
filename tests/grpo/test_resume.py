"""What is carried over survives kills: a run with partial rollouts and a cache goes on bit for bit."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from falcon_h1r.checkpoint.files import saved_steps
from falcon_h1r.checkpoint.stored import StoredState, open_newest
from falcon_h1r.config import Config
from falcon_h1r.config_grpo import GRPOConfig, RolloutConfig
from falcon_h1r.config_run import CheckpointConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.alarms import Alarms
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import Collector
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.loop import train_grpo
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.rollout.sampler import RolloutRequest
from falcon_h1r.tracking import strip_times
from falcon_h1r.training_run import CHECKPOINTS, TrainingRun, open_tracker
from tests.grpo.conftest import Line, QuickVerifier, ScriptedSampler, draw, stream_of

ALONE = World(0, 1, torch.device("cpu"))
NUM_STEPS = 8


def long_tailed(request: RolloutRequest) -> Line:
    length = 2 + draw(request, "length", 10 if draw(request, "tail", 4) else 60)
    return Line([1 + draw(request, f"token {i}", 60) for i in range(length)], bool(draw(request, "right", 2)))


def make_config(**rollout: Any) -> Config:
    settings = {"meeting_tokens": 12, "oversampling": 2.0, "max_partial_steps": 3, **rollout}
    grpo = GRPOConfig(
        problems_per_step=3,
        group_size=3,
        num_steps=NUM_STEPS,
        surplus_cache_groups=4,
        surplus_cache_steps=2,
        surplus_cache_refresh=True,
        skip_solved_steps=2,
        limits=LimitsConfig(prompt_tokens=4, response_tokens=64, row_tokens=80),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        rollout=RolloutConfig(**settings),
    )
    checkpoint = CheckpointConfig(every_steps=1, every_minutes=0.0, asynchronous=False, keep=100)
    return replace(Config(grpo=grpo), checkpoint=checkpoint, resume=True)


class Abandoned(Exception):
    """Stands for a kill: nothing is saved on the way out."""


class GivesUp(ScriptedSampler):
    """Leaves the run in the midst of a stretch, when its policy has come so far."""

    last_version: int | None = None
    step_seconds = 0.0

    def advance(self, num_tokens: int) -> Any:
        time.sleep(self.step_seconds)
        rollouts = super().advance(num_tokens)
        if self.policy_version == self.last_version and self.num_tokens > 20:
            raise Abandoned
        return rollouts


def train(
    world: World,
    folder: Path,
    model: Any,
    config: Config | None = None,
    last_version: int | None = None,
    step_seconds: float = 0.0,
) -> dict[str, Any]:
    """A run, or what is left of it, on a scripted sampler; what it leaves."""
    config = config or make_config()
    engine = TorchEngine(copy.deepcopy(model).float(), config.grpo.optimizer, NUM_STEPS, world)
    stored = open_newest(config, "grpo", folder / CHECKPOINTS, world)
    is_apart = config.grpo.rollout.overlap
    sampler = GivesUp(long_tailed, num_slots=10, watch=world.watch, shares_weights=not is_apart)
    sampler.last_version, sampler.step_seconds = last_version, step_seconds
    stream, carried = stream_of([2] * 30, skip_solved_steps=config.grpo.skip_solved_steps), CarriedRollouts()
    with (
        open_tracker(config, "grpo", folder, world.is_main, "test", stored) as tracker,
        TrainingRun(config, "grpo", folder, engine, tracker, dict, {"stream": stream}, stored, carried) as run,
    ):
        scorer = Scorer(QuickVerifier(), config.grpo)  # type: ignore[arg-type]
        collector = Collector(stream, sampler, scorer, carried, config.grpo, seed=0)
        train_grpo(run, collector, Learner(engine, config.grpo), Alarms())
    return {
        "first_step": stored.shared.step if stored is not None else 0,
        "weights": torch.cat([weight.flatten().clone() for _, weight in engine.full_weights()]),
        "rows": [strip_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "carried": list(carried.snapshot()()),
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["rows"] == expected["rows"]
    assert found["carried"] == expected["carried"]
    assert torch.equal(found["weights"], expected["weights"])


@pytest.mark.slow
def test_a_run_that_was_abandoned_goes_on_with_what_it_carried(tiny_model, tmp_path: Path) -> None:
    once = train(ALONE, tmp_path / "once", tiny_model)
    for name in ("carried_rollouts", "cache_used_groups", "cache_groups", "solved_problems"):
        assert any(row[name] for row in once["rows"]), name
    assert any(row.get("version_lag_max", 0) > 0 for row in once["rows"])
    for version in (3, 4, 6):
        with pytest.raises(Abandoned):
            train(ALONE, tmp_path / "again", tiny_model, last_version=version)
    again = train(ALONE, tmp_path / "again", tiny_model)
    assert again["first_step"] == 6
    assert_equal(again, once)


def test_a_stop_in_the_midst_of_sampling_leaves_no_trace(tiny_model, tmp_path: Path, run_on_ranks) -> None:
    """One of two ranks hears of it; both save the state of the step's beginning."""

    class StopAt(Watch):
        def __init__(self, beat: int) -> None:
            self.num_left = beat

        def beat(self, phase: str, step: int | None = None) -> None:
            self.num_left -= 1

        @property
        def stop_requested(self) -> bool:
            return self.num_left <= 0

    def work(world: World) -> dict[str, Any]:
        once = train(world, tmp_path / "once", tiny_model)
        for beat in (60, 120):
            watched = replace(world, watch=StopAt(beat if world.rank == 1 else 10**9))
            with pytest.raises(StopRequested, match="resume=true goes on from"):
                train(watched, tmp_path / "again", tiny_model)
        again = train(world, tmp_path / "again", tiny_model)
        assert again["first_step"] > 0
        assert_equal(again, once)
        return once

    first, second = run_on_ranks(2, work)
    assert torch.equal(first["weights"], second["weights"])
    assert first["carried"] != second["carried"]  # each its own


@pytest.mark.slow
def test_other_ranks_share_what_was_carried(tiny_model, tmp_path: Path, run_on_ranks) -> None:
    def interrupted(world: World) -> None:
        with pytest.raises(Abandoned):
            train(world, tmp_path, tiny_model, last_version=5)

    run_on_ranks(2, interrupted)
    with StoredState(tmp_path / CHECKPOINTS / "step_000005") as stored:
        written = [row["number"] for rank in range(2) for row in stored.carried_rows(rank, 2)]
        for size in (1, 3):
            read = [row["number"] for rank in range(size) for row in stored.carried_rows(rank, size)]
            assert sorted(read) == sorted(written)
            assert len(written) > 2
    assert train(ALONE, tmp_path, tiny_model)["first_step"] == 5


def test_a_checkpoint_of_before_there_were_carried_rollouts_is_gone_on_from(tiny_model, tmp_path: Path) -> None:
    with pytest.raises(Abandoned):
        train(ALONE, tmp_path, tiny_model, last_version=2)
    folder = tmp_path / CHECKPOINTS / "step_000002"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["rank_00000.carried.jsonl"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "rank_00000.carried.jsonl").unlink()
    assert train(ALONE, tmp_path, tiny_model)["first_step"] == 2


def test_a_run_that_overlaps_draws_the_batch_in_flight_again(tiny_model, tmp_path: Path) -> None:
    config = make_config(overlap=True)
    with pytest.raises(Abandoned):
        train(ALONE, tmp_path, tiny_model, config, last_version=5)
    with StoredState(tmp_path / CHECKPOINTS / "step_000006") as stored:
        assert stored.shared.stage_state["stream"]["step"] == 6  # of seven that were begun
    again = train(ALONE, tmp_path, tiny_model, config)
    assert (again["first_step"], len(again["rows"])) == (6, NUM_STEPS)


# -----------------------------------------------------------------------------
# Kills


def _rank_main(rank: int, folder: Path, model: Any, store: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    train(World(rank, 2, torch.device("cpu"), dist.group.WORLD), folder, model, step_seconds=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_of_a_rank_leave_no_trace(tiny_model, tmp_path: Path, run_on_ranks) -> None:
    once = run_on_ranks(2, lambda world: train(world, tmp_path / "once", tiny_model))
    folder, rng = tmp_path / "again", random.Random(0)
    context = multiprocessing.get_context("fork")
    for attempt in range(6):
        store = str(tmp_path / f"store_{attempt}")
        ranks = [context.Process(target=_rank_main, args=(rank, folder, tiny_model, store)) for rank in range(2)]
        for process in ranks:
            process.start()
        wanted = len(saved_steps(folder / CHECKPOINTS)) + rng.randrange(3)
        deadline = time.monotonic() + 60
        while len(saved_steps(folder / CHECKPOINTS)) < min(wanted, NUM_STEPS - 1) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        for rank in rng.sample(range(2), 2):  # the second would notice, but need not
            assert ranks[rank].pid is not None
            os.kill(ranks[rank].pid, signal.SIGKILL)
        for process in ranks:
            process.join(60)
    assert 0 < saved_steps(folder / CHECKPOINTS)[-1] < NUM_STEPS
    again = run_on_ranks(2, lambda world: train(world, folder, tiny_model))
    for found, expected in zip(again, once, strict=True):
        assert_equal(found, expected)
