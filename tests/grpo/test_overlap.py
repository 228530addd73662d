"""Sampling beside training: one step off-policy, together on all ranks, and stopped with the step."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from falcon_h1r.config_grpo import GRPOConfig, RolloutConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.batches import InTurn, Overlapped, SideWatch, open_batches, sync_sampler
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import Collector
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.loop import train_step
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.rollout.sampler import RolloutRequest
from falcon_h1r.types import InputError
from tests.grpo.conftest import Line, QuickVerifier, ScriptedSampler, draw, stream_of

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = GRPOConfig(problems_per_step=2, group_size=4, rollout=RolloutConfig(overlap=True, meeting_tokens=4))
NUM_STEPS = 4


def half_right(request: RolloutRequest) -> Line:
    length = 2 + draw(request, "length", 20)
    return Line([1 + draw(request, f"token {i}", 50) for i in range(length)], request.sample_index % 2 == 0)


def make_collector(config: GRPOConfig = CONFIG, shares_weights: bool = False, watch: Watch | None = None) -> Collector:
    sampler = ScriptedSampler(half_right, shares_weights=shares_weights, watch=watch)
    scorer = Scorer(QuickVerifier(), config)  # type: ignore[arg-type]
    return Collector(stream_of([2] * 12), sampler, scorer, CarriedRollouts(), config, seed=0)


def make_engine(model: Any, world: World = ALONE) -> TorchEngine:
    return TorchEngine(model, OptimizerConfig(learning_rate=1e-3), NUM_STEPS, world)


def train(world: World, model: Any) -> list[tuple[list[str], float, float]]:
    """Every step's problems, the age of what it learnt from, and its loss."""
    collector, engine = make_collector(), make_engine(model, world)
    learner, told = Learner(engine, CONFIG), []
    with open_batches(collector, engine) as batches:
        sync_sampler(collector.sampler, engine, 1)
        for step in range(NUM_STEPS):
            report = train_step(batches, learner, collector.stream, is_last=step + 1 == NUM_STEPS)
            uids = sorted({row["problem_uid"] for row in report.samples})
            told.append((uids, report.metrics["version_lag_mean"], report.metrics["loss"]))
    assert collector.stream.step == NUM_STEPS  # none was drawn in vain
    return told


def test_the_next_batch_is_drawn_with_the_weights_of_one_step_before(tiny_model, run_on_ranks) -> None:
    by_rank = run_on_ranks(2, lambda world: train(world, tiny_model))
    assert by_rank[0] == by_rank[1]
    assert [lag for _, lag, _ in by_rank[0]] == [0.0, 1.0, 1.0, 1.0]
    assert [uids for uids, _, _ in by_rank[0]] == [uids for uids, _, _ in train(ALONE, tiny_model)]


def test_a_sampler_that_uses_the_trainers_weights_is_refused(tiny_model) -> None:
    collector, engine = make_collector(shares_weights=True), make_engine(tiny_model)
    with pytest.raises(InputError, match=r"^grpo\.rollout\.overlap=true: .*grpo\.rollout\.dtype.*vllm_server$"):
        open_batches(collector, engine).__enter__()
    by_turns = replace(CONFIG, rollout=RolloutConfig())
    with open_batches(make_collector(by_turns, shares_weights=True), engine) as batches:
        assert isinstance(batches, InTurn)


class Gate(Watch):
    """Holds a sampler up until it is opened, and may ask to stop."""

    def __init__(self) -> None:
        self.is_open, self.is_stopped, self.was_reached = threading.Event(), False, threading.Event()
        self.is_open.set()

    def beat(self, phase: str, step: int | None = None) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.was_reached.set()
            self.is_open.wait(30)

    @property
    def stop_requested(self) -> bool:
        return self.is_stopped


def test_training_goes_on_while_the_next_batch_is_drawn_and_its_state_is_that_before_it(tiny_model) -> None:
    gate = Gate()
    collector, engine = make_collector(watch=gate), make_engine(tiny_model)
    with open_batches(collector, engine) as batches:
        gate.is_open.clear()
        report = train_step(batches, Learner(engine, CONFIG), collector.stream, is_last=False)
        assert gate.was_reached.wait(30)
        assert report.metrics["loss"] != 0 and engine.steps_done == 1  # with the sampler held up
        state = collector.stream.state_dict()
        assert (state["step"], state["num_drawn"], collector.stream.step) == (1, 2, 2)
        gate.is_open.set()
        batch = batches.take(is_last=True)
    assert [each.number for each in batch.chosen] == [2, 3]
    assert collector.stream.state_dict()["step"] == 2


def test_a_stop_ends_both_threads(tiny_model) -> None:
    gate = Gate()
    watched = replace(ALONE, watch=gate)
    collector, engine = make_collector(watch=gate), make_engine(tiny_model, watched)
    with pytest.raises(StopRequested), open_batches(collector, engine) as batches:
        gate.is_open.clear()
        train_step(batches, Learner(engine, CONFIG), collector.stream, is_last=False)
        assert gate.was_reached.wait(30)
        gate.is_stopped = True
        threading.Timer(0.2, gate.is_open.set).start()
        train_step(batches, Learner(engine, CONFIG), collector.stream, is_last=False)
    assert not [thread for thread in threading.enumerate() if thread.name == "sampling"]
    assert collector.sampler.free_slots == 8


def test_a_stop_that_one_rank_hears_ends_both_threads_of_all(tiny_model, run_on_ranks) -> None:
    class StopAt(Watch):
        num_looks = 0

        @property
        def stop_requested(self) -> bool:
            self.num_looks += 1
            return self.num_looks > 40

    def work(world: World) -> tuple[bool, int]:
        watch = StopAt() if world.rank == 1 else Watch()
        world = replace(world, watch=watch)
        collector, engine = make_collector(watch=watch), make_engine(tiny_model, world)
        learner, num_done = Learner(engine, CONFIG), 0
        try:
            with open_batches(collector, engine) as batches:
                for _ in range(1000):
                    train_step(batches, learner, collector.stream, is_last=False)
                    num_done += 1
        except StopRequested:
            return any(thread.name == "sampling" for thread in threading.enumerate()), num_done
        raise AssertionError("never stopped")

    by_rank = run_on_ranks(2, work)
    assert by_rank[0] == by_rank[1]
    assert not by_rank[0][0]


def test_what_fails_in_the_thread_is_raised_where_the_batch_is_taken(tiny_model) -> None:
    collector, engine = make_collector(), make_engine(tiny_model)
    batches = Overlapped(collector, engine)
    batches.take(is_last=False)
    batches.take(is_last=False)
    collector.sampler.script = None  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        for _ in range(3):
            batches.take(is_last=False)


def test_a_second_threads_watch_keeps_its_signs_to_itself_and_hears_of_stops() -> None:
    gate = Gate()
    side = SideWatch(gate)
    side.beat("sampling")
    with side.waiting():
        assert side.is_waiting
    assert not side.is_waiting
    assert side.num_beats == 2
    gate.is_stopped = True
    with pytest.raises(StopRequested):
        side.check()
