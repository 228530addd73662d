"""A whole GRPO update: weights move towards what was rewarded, equally on any number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from falcon_h1r.config import Config
from falcon_h1r.config_grpo import GRPOConfig, GRPOLossConfig, RolloutConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.alarms import Alarms
from falcon_h1r.grpo.batches import InTurn, policy_version
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import Collector
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.loop import StepReport, train_grpo, train_step
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.model.hybrid import ForwardPlan, packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.rollout.sampler import RolloutRequest
from falcon_h1r.training_run import SKIPPED
from falcon_h1r.types import Problem, content_hash
from tests.grpo.conftest import Line, QuickVerifier, Script, ScriptedSampler

ALONE = World(0, 1, torch.device("cpu"))
RIGHT, WRONG = [40, 41, 2], [50, 51, 52, 2]
PROMPT = [7, 8, 9]


def half_right(request: RolloutRequest) -> Line:
    is_right = request.sample_index % 2 == 0
    return Line(RIGHT if is_right else WRONG, is_right)


def all_right(request: RolloutRequest) -> Line:
    return Line(RIGHT, True)


def response_logprobs(engine: TorchEngine, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """The policy's, computed by this rank alone."""
    row = pack_row([Document([*prompt, *response], [0.0] * len(prompt) + [1.0] * len(response))])
    with torch.no_grad():
        hidden = packed_hidden_states(engine.model, row, ForwardPlan())
        return packed_logprobs(engine.model, hidden, row, 1.0, ForwardPlan())[0][len(prompt) :]


def taking_steps(
    engine: TorchEngine, config: GRPOConfig, num_problems: int, num_steps: int, script: Script = half_right
) -> tuple[list[StepReport], ScriptedSampler]:
    """So many steps with a sampler whose logprobs are the policy's own."""
    collector = make_collector(engine, config, num_problems, script)
    batches, learner = InTurn(collector, engine), Learner(engine, config)
    reports = [train_step(batches, learner, collector.stream) for _ in range(num_steps)]
    return reports, collector.sampler  # type: ignore[return-value]


def make_collector(
    engine: TorchEngine, config: GRPOConfig, num_problems: int, script: Script = half_right
) -> Collector:
    problems = [Problem(str(index), f"question {index}", "7") for index in range(num_problems)]
    stream = ProblemStream(problems, [[*PROMPT, index] for index in range(num_problems)], seed=0)
    sampler = ScriptedSampler(script, logprobs=lambda p, r: response_logprobs(engine, p, r).tolist())
    scorer = Scorer(QuickVerifier(), config)  # type: ignore[arg-type]
    return Collector(stream, sampler, scorer, CarriedRollouts(), config, seed=0)


def two_updates(
    world: World, model: Any, loss: GRPOLossConfig, sequence_parallel: int = 1
) -> tuple[list[dict[str, float]], torch.Tensor, int]:
    if sequence_parallel > 1:
        world = world.sharing_rows(sequence_parallel)
    engine = TorchEngine(copy.deepcopy(model), OptimizerConfig(learning_rate=1e-3, weight_decay=0.0), 2, world)
    config = GRPOConfig(problems_per_step=3, group_size=4, loss=loss)
    reports, sampler = taking_steps(engine, config, num_problems=5, num_steps=2)
    weights = torch.cat([p.detach().flatten() for p in engine.parameters])
    return [report.metrics for report in reports], weights, sampler.num_syncs


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


@pytest.mark.parametrize(("size", "degree"), [(2, 1), (4, 1), (4, 2)])
def test_any_number_of_ranks_makes_the_same_update(tiny_model, run_on_ranks, size: int, degree: int) -> None:
    loss = GRPOLossConfig(cross_entropy_weight=0.5)
    alone_metrics, alone_weights, _ = two_updates(ALONE, tiny_model, loss)
    for metrics, weights, _ in run_on_ranks(size, lambda world: two_updates(world, tiny_model, loss, degree)):
        assert (weights - alone_weights).abs().max() < 1e-8
        for row, alone_row in zip(metrics, alone_metrics, strict=True):
            for key in ("loss", "grad_norm", "entropy", "reward_mean", "num_groups"):
                assert row[key] == pytest.approx(alone_row[key], rel=1e-8)


def test_a_step_without_contrast_moves_the_schedule_and_nothing_else(tiny_model) -> None:
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 4, ALONE)
    before = torch.cat([p.detach().flatten() for p in engine.parameters])
    config = GRPOConfig(problems_per_step=1, group_size=4, max_backfill_rounds=1, updates_per_batch=2)
    (report,), sampler = taking_steps(engine, config, 2, num_steps=1, script=all_right)
    assert report.metrics["num_groups"] == 0
    assert "loss" not in report.metrics
    assert engine.steps_done == 2
    assert sampler.num_syncs == 0
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in engine.parameters]))


def test_a_policy_that_has_not_learnt_is_no_newer_one(tiny_model) -> None:
    """A batch without contrast, then one with: its rollouts are of the policy that learns from them."""

    def right_later(request: RolloutRequest) -> Line:
        return Line([1, 2], request.settings.seed != first_seed and request.sample_index % 2 == 0)

    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 8, ALONE)
    first_seed = int(content_hash("0/grpo/0"), 16)
    config = GRPOConfig(problems_per_step=1, group_size=4, zero_variance="reject", updates_per_batch=2)
    reports, _ = taking_steps(engine, config, num_problems=8, num_steps=3, script=right_later)
    assert [report.metrics["num_groups"] for report in reports] == [0, 1, 1]
    assert [report.metrics["version_lag_mean"] for report in reports[1:]] == [0, 0]
    assert policy_version(engine, 2) == 2


def test_tokens_that_are_learnt_from_twice_count_twice_for_the_speed(tiny_model) -> None:
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 2, ALONE)
    config = GRPOConfig(problems_per_step=1, group_size=4, updates_per_batch=2)
    ((report,), _) = taking_steps(engine, config, num_problems=4, num_steps=1)
    metrics = report.metrics
    learnt_tokens = metrics["training_tokens_per_second"] * metrics["training_seconds"]
    assert metrics["tokens"] == 2 * (len(RIGHT) + len(WRONG))
    assert learnt_tokens == pytest.approx(2 * metrics["tokens"])


def test_an_update_that_is_not_finite_is_left_out_and_told(tiny_model) -> None:
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 2, ALONE)
    before = torch.cat([p.detach().flatten() for p in engine.parameters])
    logprobs = engine.logprobs

    def broken(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        values, entropies = logprobs(*arguments)
        return (values * float("nan") if torch.is_grad_enabled() else values), entropies

    engine.logprobs = broken  # type: ignore[method-assign]
    config = GRPOConfig(problems_per_step=1, group_size=4)
    (report,), _ = taking_steps(engine, config, num_problems=1, num_steps=1)
    assert report.metrics[SKIPPED] == 1.0
    assert len(report.dealt.own) == 4
    assert (engine.steps_done, engine.updates_done) == (1, 0)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in engine.parameters]))


def test_a_step_tells_its_phases_its_tokens_and_how_old_they_are(tiny_model) -> None:
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 4, ALONE)
    config = GRPOConfig(problems_per_step=2, group_size=4, surplus_cache_groups=2, surplus_cache_steps=2)
    config = replace(config, rollout=RolloutConfig(oversampling=2.0))
    reports, sampler = taking_steps(engine, config, num_problems=8, num_steps=2)
    first, second = (report.metrics for report in reports)
    for phase in ("sampling", "verdicts", "meetings", "batch", "exchange", "training", "sync"):
        assert first[f"{phase}_seconds"] >= 0 == first[f"{phase}_skew_seconds"]  # of one rank
    assert first["sampled_tokens"] == sampler.num_tokens == 4 * 14
    assert (first["cache_groups"], first["cache_used_groups"]) == (2, 0)
    assert (second["cache_groups"], second["cache_used_groups"], second["sampled_tokens"]) == (0, 2, 0)
    assert (first["version_lag_mean"], first["version_lag_max"]) == (0, 0)
    assert (second["version_lag_mean"], second["version_lag_max"]) == (1, 1)
    assert second["loss"] != 0
    assert {row["step"] for report in reports for row in report.samples} == {1}


def test_a_step_that_draws_nothing_shows_no_reward_and_every_step_its_sync(tiny_model) -> None:
    """Its batch is of the cache; 0 would look like a collapse."""
    engine = TorchEngine(tiny_model, OptimizerConfig(learning_rate=1e-3), 2, ALONE)
    config = GRPOConfig(problems_per_step=2, group_size=4, surplus_cache_groups=2, surplus_cache_steps=2)
    config = replace(config, rollout=RolloutConfig(oversampling=2.0))
    shown: list[dict[str, float]] = []
    logged: list[dict[str, float]] = []
    run = SimpleNamespace(
        engine=engine,
        config=Config(grpo=config),
        steps=lambda: iter(range(2)),
        finish_step=lambda metrics, *_: logged.append(metrics),
        progress=SimpleNamespace(advance=lambda steps, tokens, **rest: shown.append({"tokens": tokens, **rest})),
    )
    collector = make_collector(engine, config, num_problems=8)
    collector.sampler.sync_gap = 0.01  # type: ignore[attr-defined]  # as vLLM's samplers have it
    train_grpo(run, collector, Learner(engine, config), Alarms())  # type: ignore[arg-type]
    assert shown == [{"tokens": 4 * 14, "reward": 0.5}, {"tokens": 0}]
    assert [metrics["sync_gap"] for metrics in logged] == [0.01, 0.01]
