"""The plan of each stage: the layout asked for, the others, and for GRPO how GPUs are shared with the rollouts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from falcon_h1r.planning.layout import DTYPE_BYTES, Layout, layout_of
from falcon_h1r.planning.rollouts import RolloutPhase, rollout_phase
from falcon_h1r.planning.search import Planned, Subject, best, judge, search, usable_bytes, what_would_fit
from falcon_h1r.planning.speed import Workload
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.config import Config
    from falcon_h1r.config_sources import SourceConfig
    from falcon_h1r.config_stage import LimitsConfig

SERVER_SHARE = 0.9  # of its memory that a rollout server takes for weights, states and caches


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Training of one stage on all of its GPUs."""

    stage: str
    work: Workload
    num_steps: float | None  # None where the data's size is unknown
    asked: Planned
    found: list[Planned]  # all layouts, those that fit first, cheapest first
    advice: str | None  # where none fits


@dataclass(frozen=True, slots=True)
class Split:
    """A GRPO step with so many GPUs for rollouts and so many for training."""

    rollout_gpus: int
    training_gpus: int
    rollouts: RolloutPhase
    training: Planned

    @property
    def seconds(self) -> float:
        """Rollouts and training take turns: a step trains on rollouts of the policy as it is."""
        return self.rollouts.seconds + self.training.time.seconds


@dataclass(frozen=True, slots=True)
class GRPOPlan:
    """Training, and the splits that were looked at, shortest step first."""

    training: StagePlan
    shared: bool  # the same GPUs do one after the other (the torch sampler)
    splits: list[Split]


def plan_sft(config: Config, subject: Subject, num_gpus: int) -> StagePlan:
    """The cold start."""
    sft, plan = config.sft, config.plan
    document = _document_tokens(config, sft.data, sft.limits)
    batch_tokens = sft.batch_rows * sft.limits.row_tokens if sft.batch_rows else (sft.batch_sequences or 0) * document
    work = Workload(batch_tokens, document)
    tokens = plan.tokens or (sft.data.expected_tokens * sft.num_epochs if sft.data.expected_tokens else None)
    num_steps = tokens / work.tokens if tokens else (float(sft.num_steps) if sft.num_steps else None)
    asked = _asked(config, num_gpus, sft.limits)
    return _stage_plan("sft", config, subject, asked, work, num_steps)


def plan_grpo(config: Config, subject: Subject, num_gpus: int) -> GRPOPlan:
    """Rollouts and training."""
    grpo, plan = config.grpo, config.plan
    document = grpo.limits.prompt_tokens / 2 + plan.response_share * grpo.limits.response_tokens
    work = Workload(grpo.problems_per_step * grpo.group_size * document * grpo.updates_per_batch, document)
    num_batches = grpo.num_steps / grpo.updates_per_batch  # each of which is `work`
    training = _stage_plan("grpo", config, subject, _asked(config, num_gpus, grpo.limits), work, num_batches)
    if grpo.rollout.name == "torch":
        return GRPOPlan(training, True, _in_turns(config, subject, training, num_gpus))
    splits = []
    for training_gpus in _shares(num_gpus, plan.gpu.gpus_per_node):
        asked = _asked(config, training_gpus, grpo.limits)
        trained = best(search(subject, asked, work, plan))
        rollouts = _server_phase(config, subject, num_gpus - training_gpus)
        if trained is not None and rollouts is not None:
            splits.append(Split(num_gpus - training_gpus, training_gpus, rollouts, trained))
    return GRPOPlan(training, False, sorted(splits, key=lambda split: split.seconds))


def _stage_plan(
    stage: str, config: Config, subject: Subject, asked: Layout, work: Workload, num_steps: float | None
) -> StagePlan:
    found = search(subject, asked, work, config.plan)
    advice = what_would_fit(subject, asked, work, config.plan) if best(found) is None else None
    return StagePlan(stage, work, num_steps, judge(subject, asked, work, config.plan), found, advice)


def _asked(config: Config, num_gpus: int, limits: LimitsConfig) -> Layout:
    return replace(layout_of(config, num_gpus, limits.row_tokens), backend=config.plan.gpu.backend)


def _document_tokens(config: Config, data: SourceConfig, limits: LimitsConfig) -> float:
    if config.plan.document_tokens:
        return float(config.plan.document_tokens)
    if data.expected_tokens and data.expected_samples:
        return data.expected_tokens / data.expected_samples
    return (limits.prompt_tokens + limits.response_tokens) / 2


def _shares(num_gpus: int, gpus_per_node: int) -> list[int]:
    """GPUs for training: whole nodes where there are several, else powers of two."""
    if num_gpus > gpus_per_node and num_gpus % gpus_per_node == 0:
        return list(range(gpus_per_node, num_gpus, gpus_per_node))
    return [share for share in (1, 2, 4, 8, 16) if share < num_gpus]


def _server_phase(config: Config, subject: Subject, num_gpus: int) -> RolloutPhase | None:
    """Of GPUs that serve and do nothing else."""
    weights = subject.parameters.total * DTYPE_BYTES["bfloat16"]
    free = SERVER_SHARE * config.plan.gpu.memory_gib * 1024**3 - weights
    return rollout_phase(
        subject.widths, subject.parameters, config.grpo, "bfloat16", config.plan, num_gpus, max(0.0, free)
    )


def _in_turns(config: Config, subject: Subject, training: StagePlan, num_gpus: int) -> list[Split]:
    """Every rank samples with the weights that it trains, beside their gradients' and optimizer's memory."""
    chosen = training.asked if training.asked.fits else best(training.found)
    if chosen is None:
        return []
    parts = chosen.memory.parts
    held = parts.weights + parts.optimizer  # gradients are let go of before rollouts begin
    if chosen.layout.zero_stage == 3:
        held += subject.parameters.total * chosen.layout.size  # sampling needs whole weights
    free = usable_bytes(config.plan) - held
    phase = rollout_phase(
        subject.widths, subject.parameters, config.grpo, config.model.dtype, config.plan, num_gpus, max(0.0, free)
    )
    return [Split(num_gpus, num_gpus, phase, chosen)] if phase is not None else []


def check_plan(config: Config, subject: Subject, num_gpus: int) -> None:
    """Refuse a layout that could never be launched.

    Raises:
        InputError: where sequence parallelism divides neither GPUs, heads nor rows.
    """
    from falcon_h1r.config_checks import check_shared_rows
    from falcon_h1r.model.sequence import check_degree

    degree = config.engine.sequence_parallel
    if num_gpus % degree:
        raise InputError(f"engine.sequence_parallel={degree}: does not divide the {num_gpus} GPUs that are planned for")
    check_degree(degree, subject.config.mamba_n_heads, subject.config.mamba_n_groups)
    for stage in config.plan.stages:
        check_shared_rows(f"{stage}.limits", (config.sft if stage == "sft" else config.grpo).limits, degree)
