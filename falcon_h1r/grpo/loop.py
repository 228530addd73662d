"""GRPO: sample -> verify -> credit -> exchange -> learn -> sync, on packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from falcon_h1r.grpo.alarms import Alarms
from falcon_h1r.grpo.batches import BatchSource, open_batches, policy_version, sync_sampler
from falcon_h1r.grpo.collect import Collector, GroupBatch
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.metrics import rollout_metrics, sample_rows
from falcon_h1r.grpo.phases import PhaseClock, oldest_lag, phase_metrics, summed, version_lags
from falcon_h1r.grpo.redistribute import DealtDocuments, gather_documents, redistribute
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.training_run import TrainingRun


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step leaves for the log, the same on every rank but for its documents."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]  # rows for samples.jsonl
    dealt: DealtDocuments


def train_grpo(run: TrainingRun, collector: Collector, learner: Learner, alarms: Alarms) -> None:
    """Train for the steps that are left of the run, which remembers the stream's position and what is carried over.

    Raises:
        InputError: where the sampler cannot sample as the config asks.
    """
    engine, world, config = run.engine, run.engine.world, learner.config
    with open_batches(collector, engine, run.config.supervision.wait_seconds) as batches:
        sync_sampler(collector.sampler, engine, config.updates_per_batch)
        for step in run.steps():
            is_last = step + config.updates_per_batch >= engine.num_steps
            report = train_step(batches, learner, collector.stream, is_last)
            # A step that is filled from the cache draws nothing, and has no reward of its own.
            shown = {"reward": report.metrics["reward_mean"]} if "reward_mean" in report.metrics else {}
            run.progress.advance(engine.steps_done - step, int(report.metrics["sampled_tokens"]), **shown)
            metrics = report.metrics | _sync_gap(collector) | alarms.look(report.metrics, announce=world.is_main)
            documents = partial(gather_documents, report.dealt, world)
            run.finish_step(metrics, documents, report.samples, report.dealt.plan)


def train_step(batches: BatchSource, learner: Learner, stream: ProblemStream, is_last: bool = True) -> StepReport:
    """One batch. A step in which no group has contrast learns nothing and says so (`num_groups` 0).

    Raises:
        StopRequested: on every rank, with gradients to discard and the stream further on.
    """
    engine, config, world = learner.engine, learner.config, learner.engine.world
    version = policy_version(engine, config.updates_per_batch)
    clock = PhaseClock()
    with clock.phase("batch"):
        batch = batches.take(is_last)  # groups with contrast, each on the rank that sampled it
    with clock.phase("exchange"):
        dealt = redistribute(batch, stream, config, world)  # their credit, packed for the rank that learns from it
    with clock.phase("training"):
        learnt = learner.update(dealt.rows, dealt.num_left_out) if dealt.rows else learner.skip()
    with clock.phase("sync"):
        if dealt.rows:
            batches.sync()
    told = world.gather(_own_part(batch, clock, version, engine.steps_done))
    metrics = _step_metrics(batch, told, clock) | learnt
    if "tokens" in metrics:
        learnt_tokens = metrics["tokens"] * config.updates_per_batch
        metrics["training_tokens_per_second"] = learnt_tokens / metrics["training_seconds"]
    return StepReport(metrics, [row for own in told for row in own.samples], dealt)


# -----------------------------------------------------------------------------
# The log


@dataclass(frozen=True, slots=True)
class _OwnPart:
    """What a rank tells of its step."""

    seconds: dict[str, float]
    sums: dict[str, float]
    oldest_lag: int
    samples: list[dict[str, Any]]


def _own_part(batch: GroupBatch, clock: PhaseClock, version: int, step: int) -> _OwnPart:
    groups = list(batch.own_groups.values())
    return _OwnPart(
        seconds=batch.own_seconds | clock.seconds,
        sums=batch.own_sums | version_lags(groups, version),
        oldest_lag=oldest_lag(groups, version),
        samples=sample_rows(batch.own_samples, step, batch.thinking_opened),
    )


def _sync_gap(collector: Collector) -> dict[str, float]:
    """How far the logprobs of a sampler that is not the trainer's were from its own, after the last sync."""
    gap = getattr(collector.sampler, "sync_gap", None)
    return {} if gap is None else {"sync_gap": gap}


def _step_metrics(batch: GroupBatch, told: list[_OwnPart], clock: PhaseClock) -> dict[str, float]:
    """What was sampled, carried and waited for."""
    metrics = rollout_metrics(batch.drawn) if batch.drawn else {}
    sums = summed([own.sums for own in told])
    lagging, lag_tokens = sums.pop("lagging"), sums.pop("lag_tokens")
    metrics |= batch.counts | sums | phase_metrics([own.seconds for own in told])
    if lag_tokens:
        metrics["version_lag_mean"] = lagging / lag_tokens
        metrics["version_lag_max"] = float(max(own.oldest_lag for own in told))
    metrics["step_seconds"] = clock.all_seconds
    drawing = max(sum(own.seconds[name] for name in ("sampling", "verdicts", "meetings")) for own in told)
    metrics["sampling_tokens_per_second"] = metrics["sampled_tokens"] / drawing
    return metrics
