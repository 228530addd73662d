"""GRPO: sample -> verify -> credit -> pack -> learn -> sync, on packed rows, with KL 0 and no reference model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from falcon_h1r.checkpoint.stopping import rows_until_stopped
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.packing import Document, pack_for_rank
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.grpo.credit import normalise_within_group
from falcon_h1r.grpo.groups import GroupBatch, ProblemStream, collect_groups
from falcon_h1r.grpo.losses import Denominators, grpo_loss, loss_denominators
from falcon_h1r.rollout.sampler import Sampler
from falcon_h1r.training_run import SKIPPED, TrainingRun
from falcon_h1r.types import RolloutGroup, content_hash
from falcon_h1r.verifier import Verifier, count_boxed

SAMPLES_LOGGED_A_STEP = 2  # groups whose transcripts go to samples.jsonl


def train_grpo(
    run: TrainingRun,
    sampler: Sampler,
    verifier: Verifier,
    stream: ProblemStream,
    config: GRPOConfig,
    seed: int,
) -> None:
    """Train for the steps that are left of the run, which remembers the stream's position."""
    engine = run.engine
    if engine.steps_done:
        sampler.load_weights(engine)
    for step in run.steps():
        step_seed = int(content_hash(f"{seed}/grpo/{step}"), 16)
        metrics, batch = train_step(engine, sampler, verifier, stream, config, step_seed)
        run.progress.advance(1, int(metrics["sampled_tokens"]), reward=metrics["reward_mean"])
        samples = sample_rows(batch.drawn[:SAMPLES_LOGGED_A_STEP], step + 1)
        run.finish_step(metrics, partial(rollout_documents, batch.groups, config), samples)


def train_step(
    engine: Engine,
    sampler: Sampler,
    verifier: Verifier,
    stream: ProblemStream,
    config: GRPOConfig,
    seed: int,
) -> tuple[dict[str, float], GroupBatch]:
    """One update. A step in which no group has contrast learns nothing and says so (`num_groups` 0).

    Raises:
        StopRequested: on every rank, with gradients to discard and the stream further on.
    """
    world = engine.world
    started = time.perf_counter()
    with engine.whole():
        batch = collect_groups(stream, sampler, verifier, config, world, seed)
    sampled = time.perf_counter()
    metrics = rollout_metrics(batch)
    if batch.groups:
        documents = rollout_documents(batch.groups, config)
        rows = pack_for_rank(documents, config.limits.row_tokens, world.data_rank, world.data_size, world.sequence.size)
        denominators = Denominators(*world.sum_over_data(loss_denominators(rows)))  # before the first backward
        metrics["learning_rate"] = engine.learning_rate
        sums: dict[str, float] = {}
        for row in rows_until_stopped(engine, rows):
            policy_logprobs, entropies = engine.logprobs(row, config.rollout.temperature)
            loss, stats = grpo_loss(policy_logprobs, row, denominators, config.loss)
            engine.backward(loss)
            for name, value in {**stats, "loss": loss.detach(), "entropy": entropies.sum()}.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        outcome = engine.step()
        metrics["grad_norm"], metrics[SKIPPED] = outcome.grad_norm, float(not outcome.applied)
        sampler.load_weights(engine)
        metrics.update(_averages(dict(zip(sums, world.sum_over_data(list(sums.values())), strict=True))))
    else:
        engine.skip_step()
    trained = time.perf_counter()
    metrics["sampling_seconds"], metrics["training_seconds"] = sampled - started, trained - sampled
    metrics["sampling_tokens_per_second"] = metrics["sampled_tokens"] / (sampled - started)
    if "tokens" in metrics:
        metrics["training_tokens_per_second"] = metrics["tokens"] / (trained - sampled)
    return metrics, batch


def rollout_documents(groups: Sequence[RolloutGroup], config: GRPOConfig) -> list[Document]:
    """Groups with their credit as documents: weights 1/length (`sequence`) or 1 (`token`) on response tokens."""
    advantages = normalise_within_group(torch.tensor([group.rewards for group in groups]))  # (P, G)
    documents = []
    for group, group_advantages in zip(groups, advantages.tolist(), strict=True):
        credits = zip(group.rollouts, group_advantages, group.verdicts, strict=True)
        for rollout, advantage, verdict in credits:
            length = len(rollout.response_ids)
            weight = 1.0 / length if config.loss.aggregation == "sequence" else 1.0
            blank = [0.0] * len(rollout.prompt_ids)
            documents.append(
                Document(
                    input_ids=rollout.prompt_ids + rollout.response_ids,
                    loss_weights=blank + [weight] * length,
                    advantages=blank + [advantage] * length,
                    positives=blank + [float(verdict.correct)] * length,
                    sampler_logprobs=blank + rollout.sampler_logprobs,
                    uid=f"{rollout.problem_uid}/{rollout.sample_index}",
                )
            )
    return documents


def rollout_metrics(batch: GroupBatch) -> dict[str, float]:
    """What was sampled, over all groups drawn: those without contrast count in every average."""
    rollouts = [rollout for group in batch.drawn for rollout in group.rollouts]
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    rewards = [reward for group in batch.drawn for reward in group.rewards]
    verdicts = [verdict for group in batch.drawn for verdict in group.verdicts]
    num_correct = sum(verdict.correct for verdict in verdicts)
    return {
        "reward_mean": sum(rewards) / len(rewards),
        "pass_at_1": num_correct / len(verdicts),
        "pass_at_group": sum(any(v.correct for v in group.verdicts) for group in batch.drawn) / len(batch.drawn),
        "several_boxes_share": sum(count_boxed(r.text, after_think=True) > 1 for r in rollouts) / len(rollouts),
        "undecided_share": sum(verdict.status == "undecided" for verdict in verdicts) / len(verdicts),
        "zero_variance_share": 1.0 - len(batch.groups) / len(batch.drawn),
        "response_tokens_mean": sum(lengths) / len(lengths),
        "response_tokens_max": float(max(lengths)),
        "truncated_share": sum(rollout.stop_reason == "length" for rollout in rollouts) / len(rollouts),
        "sampled_tokens": float(sum(lengths)),
        "num_groups": float(len(batch.groups)),
        "num_rollouts": float(sum(len(group.rollouts) for group in batch.groups)),
        "num_backfill_rounds": float(batch.num_rounds - 1),
    }


def _averages(sums: dict[str, float]) -> dict[str, float]:
    tokens = sums["tokens"]
    return {
        "loss": sums["loss"],
        "tokens": tokens,
        "entropy": sums["entropy"] / tokens,
        "clip_share": sums["clipped"] / tokens,
        "sampler_kl": sums["sampler_kl"] / tokens,
        "importance_ratio": sums["importance_ratio"] / tokens,
    }


def sample_rows(groups: Sequence[RolloutGroup], step: int) -> list[dict[str, object]]:
    """Transcripts for samples.jsonl."""
    return [
        {
            "step": step,
            "problem_uid": group.problem.uid,
            "question": group.problem.question,
            "gold": group.problem.answer,
            "family": group.problem.family,
            "sample_index": rollout.sample_index,
            "response": rollout.text,
            "reward": reward,
            "status": verdict.status,
            "stage": verdict.stage,
            "stop_reason": rollout.stop_reason,
            "response_tokens": len(rollout.response_ids),
        }
        for group in groups
        for rollout, reward, verdict in zip(group.rollouts, group.rewards, group.verdicts, strict=True)
    ]
