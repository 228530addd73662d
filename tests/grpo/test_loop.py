"""A whole GRPO update: weights move towards what was rewarded, equally on any number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from falcon_h1r.config_grpo import GRPOConfig, GRPOLossConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.loop import train_step
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.training_run import SKIPPED
from falcon_h1r.types import Problem, Rollout
from falcon_h1r.verifier import Verifier

ALONE = World(0, 1, torch.device("cpu"))
RIGHT, WRONG = [40, 41, 2], [50, 51, 52, 2]
PROMPT = [7, 8, 9]


class ScriptedSampler:
    """Half of each group is right; the logprobs are the policy's own."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.num_syncs = 0

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        rollouts = []
        for prompt in prompts:
            for sample in range(settings.num_samples):
                right = sample % 2 == 0
                ids = RIGHT if right else WRONG
                text = f"<think>hm</think>\\boxed{{{7 if right else 8}}}"
                logprobs = response_logprobs(self.engine, prompt.input_ids, ids)
                rollouts.append(
                    Rollout(prompt.problem_uid, sample, prompt.input_ids, ids, logprobs.tolist(), "stop", 0, text)
                )
        return rollouts

    def load_weights(self, policy: Any) -> None:
        self.num_syncs += 1


def response_logprobs(engine: TorchEngine, prompt: list[int], response: list[int]) -> torch.Tensor:
    document = Document(prompt + response, [0.0] * len(prompt) + [1.0] * len(response))
    with torch.no_grad():
        return engine.logprobs(pack_row([document]))[0][len(prompt) :]


def two_updates(world: World, model: Any, loss: GRPOLossConfig) -> tuple[list[dict[str, float]], torch.Tensor, int]:
    engine = TorchEngine(copy.deepcopy(model), OptimizerConfig(learning_rate=1e-3, weight_decay=0.0), 2, world)
    config = GRPOConfig(problems_per_step=3, group_size=4, loss=loss)
    problems = [Problem(str(index), f"question {index}", "7") for index in range(5)]
    stream = ProblemStream(problems, [[*PROMPT, index] for index in range(5)], seed=0)
    sampler = ScriptedSampler(engine)
    with Verifier(after_think=True) as verifier:
        learner, scorer = Learner(engine, config), Scorer(verifier, config)
        metrics = [train_step(learner, sampler, scorer, stream, seed)[0] for seed in range(2)]
    return metrics, torch.cat([p.detach().flatten() for p in engine.parameters]), sampler.num_syncs


def test_an_update_raises_what_was_rewarded_and_lowers_what_was_not(tiny_model) -> None:
    before = TorchEngine(tiny_model, OptimizerConfig(), 1, ALONE)
    right, wrong = (response_logprobs(before, [*PROMPT, 0], ids).sum() for ids in (RIGHT, WRONG))
    metrics, weights, num_syncs = two_updates(ALONE, tiny_model, GRPOLossConfig())
    assert num_syncs == 2
    for row in metrics:
        assert row["num_groups"] == 3
        assert row["grad_norm"] > 0
        assert row["pass_at_1"] == 0.5
        assert row["sampler_kl"] < 1e-12
        assert row["importance_ratio"] == pytest.approx(1.0, abs=1e-6)
    after = copy.deepcopy(tiny_model)
    torch.nn.utils.vector_to_parameters(weights, after.parameters())
    engine = TorchEngine(after, OptimizerConfig(), 1, ALONE)
    assert response_logprobs(engine, [*PROMPT, 0], RIGHT).sum() > right
    assert response_logprobs(engine, [*PROMPT, 0], WRONG).sum() < wrong


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_makes_the_same_update(tiny_model, run_on_ranks, size: int) -> None:
    loss = GRPOLossConfig(cross_entropy_weight=0.5)
    alone_metrics, alone_weights, _ = two_updates(ALONE, tiny_model, loss)
    for metrics, weights, _ in run_on_ranks(size, lambda world: two_updates(world, tiny_model, loss)):
        assert (weights - alone_weights).abs().max() < 1e-8
        for row, alone_row in zip(metrics, alone_metrics, strict=True):
            for key in ("loss", "grad_norm", "entropy", "reward_mean", "num_groups"):
                assert row[key] == pytest.approx(alone_row[key], rel=1e-8)


def test_a_step_without_contrast_moves_the_schedule_and_nothing_else(tiny_model) -> None:
    class AlwaysRight(ScriptedSampler):
        def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
            rollouts = super().generate(prompts, settings)
            return [r for r in rollouts for _ in range(2) if r.sample_index % 2 == 0]

    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 2, ALONE)
    before = torch.cat([p.detach().flatten() for p in engine.parameters])
    stream = ProblemStream([Problem("0", "question", "7")], [PROMPT], seed=0)
    config = GRPOConfig(problems_per_step=1, group_size=4, max_backfill_rounds=1)
    with Verifier(after_think=True) as verifier:
        learner = Learner(engine, config)
        metrics, _ = train_step(learner, AlwaysRight(engine), Scorer(verifier, config), stream, seed=0)
    assert metrics["num_groups"] == 0
    assert engine.steps_done == 1
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in engine.parameters]))


def test_an_update_that_is_not_finite_is_left_out_and_told(tiny_model) -> None:
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 2, ALONE)
    sampler = ScriptedSampler(engine)
    before = torch.cat([p.detach().flatten() for p in engine.parameters])
    logprobs = engine.logprobs

    def broken(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        values, entropies = logprobs(*arguments)
        return (values * float("nan") if torch.is_grad_enabled() else values), entropies

    engine.logprobs = broken  # type: ignore[method-assign]
    stream = ProblemStream([Problem("0", "question", "7")], [PROMPT], seed=0)
    config = GRPOConfig(problems_per_step=1, group_size=4)
    with Verifier(after_think=True) as verifier:
        metrics, batch = train_step(Learner(engine, config), sampler, Scorer(verifier, config), stream, 0)
    assert metrics[SKIPPED] == 1.0
    assert len(batch.groups) == 1
    assert (engine.steps_done, engine.updates_done) == (1, 0)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in engine.parameters]))
