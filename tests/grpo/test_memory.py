"""Two hundred steps with the real sampler, verifier and engine: what the process holds does not grow."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from falcon_h1r.benchmark.long_tail import CoinFlips
from falcon_h1r.config_grpo import GRPOConfig, RolloutConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.batches import open_batches, sync_sampler
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import Collector
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.loop import train_step
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.types import Problem, Rollout
from falcon_h1r.verifier import Verifier

ALONE = World(0, 1, torch.device("cpu"))
NUM_STEPS = 200
MOST_GROWTH_BYTES = 24 << 20  # between the second and the last quarter; one batch of rollouts is 0.2 MiB


class VerifiedCoinFlips(CoinFlips):
    """Asks the verifier of every response, too: its queues and tables may not grow either."""

    def submit(self, problem: Problem, rollout: Rollout) -> Any:
        self.verifier.submit(rollout.text + r"</think>\boxed{\sqrt{8}}", problem.answer)
        return super().submit(problem, rollout)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("overlap", [False, True])
def test_memory_does_not_grow_over_two_hundred_steps(tiny_model, tokenizer, overlap: bool) -> None:
    rollout = RolloutConfig(max_slots=12, oversampling=1.5, max_partial_steps=2, overlap=overlap)
    config = GRPOConfig(
        problems_per_step=3,
        group_size=4,
        surplus_cache_groups=4,
        surplus_cache_steps=2,
        limits=LimitsConfig(prompt_tokens=16, response_tokens=32, row_tokens=128),
        rollout=rollout,
    )
    engine = TorchEngine(tiny_model.float(), OptimizerConfig(learning_rate=1e-4), NUM_STEPS, ALONE)
    sampler = TorchSampler(tiny_model, tokenizer, 12, dtype=torch.float32 if overlap else None)
    stream = ProblemStream([Problem(str(n), f"question {n}", "2") for n in range(64)], [[5, 6, 7]] * 64, seed=0)
    held = []
    with Verifier(after_think=True) as verifier:
        collector = Collector(stream, sampler, VerifiedCoinFlips(verifier, config), CarriedRollouts(), config, seed=0)
        learner = Learner(engine, config)
        with open_batches(collector, engine) as batches:
            sync_sampler(sampler, engine, 1)
            for step in range(NUM_STEPS):
                train_step(batches, learner, stream, is_last=step + 1 == NUM_STEPS)
                held.append(resident_bytes())
    assert engine.updates_done > 0.9 * NUM_STEPS
    assert median(held[150:]) - median(held[50:100]) < MOST_GROWTH_BYTES
