"""GRPO: sample -> verify -> credit -> pack -> learn -> sync, on packed rows, with KL 0 and no reference model."""

from __future__ import annotations

import time
from functools import partial

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.packing import pack_for_rank
from falcon_h1r.grpo.alarms import Alarms
from falcon_h1r.grpo.collect import GroupBatch, collect_groups
from falcon_h1r.grpo.documents import rollout_documents
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.metrics import group_facts, rollout_metrics, sample_rows
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.rollout.sampler import Sampler
from falcon_h1r.training_run import TrainingRun
from falcon_h1r.types import content_hash

SAMPLES_LOGGED_A_STEP = 2  # groups whose transcripts go to samples.jsonl


def train_grpo(
    run: TrainingRun,
    sampler: Sampler,
    scorer: Scorer,
    stream: ProblemStream,
    alarms: Alarms,
    config: GRPOConfig,
    seed: int,
) -> None:
    """Train for the steps that are left of the run, which remembers the stream's position and what the alarms saw."""
    engine = run.engine
    learner = Learner(engine, config)
    if engine.steps_done:
        sampler.load_weights(engine)
    for step in run.steps():
        step_seed = int(content_hash(f"{seed}/grpo/{step}"), 16)
        metrics, batch = train_step(learner, sampler, scorer, stream, step_seed)
        run.progress.advance(1, int(metrics["sampled_tokens"]), reward=metrics["reward_mean"])
        metrics |= alarms.look(metrics, announce=engine.world.is_main)
        samples = sample_rows(batch.drawn[:SAMPLES_LOGGED_A_STEP], step + 1, scorer.thinking_opened)
        run.finish_step(metrics, partial(rollout_documents, batch.groups, config), samples)


def train_step(
    learner: Learner, sampler: Sampler, scorer: Scorer, stream: ProblemStream, seed: int
) -> tuple[dict[str, float], GroupBatch]:
    """One update. A step in which no group has contrast learns nothing and says so (`num_groups` 0).

    Raises:
        StopRequested: on every rank, with gradients to discard and the stream further on.
    """
    engine, config, world = learner.engine, learner.config, learner.engine.world
    started = time.perf_counter()
    with engine.whole():
        batch = collect_groups(stream, sampler, scorer, config, world, seed)
    sampled = time.perf_counter()
    metrics = rollout_metrics([group_facts(group, thinking_opened=scorer.thinking_opened) for group in batch.drawn])
    metrics["num_groups"] = float(len(batch.groups))
    metrics["num_rollouts"] = float(sum(len(group.rollouts) for group in batch.groups))
    metrics["num_backfill_rounds"] = float(batch.num_rounds - 1)
    if batch.groups:
        documents = rollout_documents(batch.groups, config)
        rows = pack_for_rank(documents, config.limits.row_tokens, world.data_rank, world.data_size, world.sequence.size)
        metrics |= learner.update(rows)
        sampler.load_weights(engine)
    else:
        engine.skip_step()
    trained = time.perf_counter()
    metrics["sampling_seconds"], metrics["training_seconds"] = sampled - started, trained - sampled
    metrics["sampling_tokens_per_second"] = metrics["sampled_tokens"] / (sampled - started)
    if "tokens" in metrics:
        metrics["training_tokens_per_second"] = metrics["tokens"] / (trained - sampled)
    return metrics, batch
