"""Every layout of so many GPUs, the ones that fit, and the fastest of them, which is the cheapest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from falcon_h1r.model.sequence import check_degree
from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.memory import MemoryEstimate, estimate_memory
from falcon_h1r.planning.shape import Parameters, Widths, count_parameters
from falcon_h1r.planning.speed import StepTime, Workload, step_time
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import FalconH1Config

    from falcon_h1r.config import LoRAConfig
from falcon_h1r.config_tools import PlanConfig

GIB = 1024**3
DEGREES = (1, 2, 4, 8)  # of sequence parallelism, within a node
KEEPING = (("none", False), ("selective", False), ("layer", False), ("layer", True))  # checkpointing and offloading
MOST_GPUS = 4096  # looked at for what would fit


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is planned for."""

    config: FalconH1Config
    widths: Widths
    parameters: Parameters

    @classmethod
    def of(cls, config: FalconH1Config, lora: LoRAConfig) -> Subject:
        return cls(config, Widths.of(config), count_parameters(config, lora))


@dataclass(frozen=True, slots=True)
class Planned:
    """A layout, what it needs and how long a step takes."""

    layout: Layout
    memory: MemoryEstimate
    time: StepTime
    fits: bool


def judge(subject: Subject, layout: Layout, work: Workload, plan: PlanConfig) -> Planned:
    """Memory and time of one layout."""
    memory = estimate_memory(subject.widths, subject.parameters, layout)
    time = step_time(subject.config, subject.widths, subject.parameters, layout, work, plan)
    fits = memory.peak_bytes <= usable_bytes(plan) and memory.host_bytes <= plan.gpu.host_memory_gib * GIB
    return Planned(layout, memory, time, fits)


def usable_bytes(plan: PlanConfig) -> float:
    """Of a GPU, by tensors as they are estimated: with the margin to spare."""
    return (plan.gpu.memory_gib - plan.gpu.reserved_gib) / (1 + plan.margin) * GIB


def search(subject: Subject, asked: Layout, work: Workload, plan: PlanConfig) -> list[Planned]:
    """All layouts for the GPUs, dtype and row of the one that is asked for: those that fit first, fastest first."""
    found = [judge(subject, layout, work, plan) for layout in layouts(subject, asked, plan, work)]
    return sorted(found, key=lambda planned: (not planned.fits, planned.time.seconds))


def layouts(subject: Subject, asked: Layout, plan: PlanConfig, work: Workload) -> Iterator[Layout]:
    """The settings of the engine section that could be asked for instead, each combination once."""
    offloads = (False, True) if asked.backend == "cuda" else (False,)  # a CPU has nowhere to move its optimizer
    sharded = [("deepspeed", stage, offload) for stage in (1, 2, 3) for offload in offloads]
    engines = [("torch", 0, False), *(sharded if asked.num_gpus > 1 or asked.backend == "cuda" else [])]
    for degree in degrees(subject, asked, plan):
        if work.tokens / work.document_tokens < asked.num_gpus // degree:
            continue  # fewer documents than data ranks: some would never learn
        for (engine, stage, optimizer_offload), (checkpointing, offload) in itertools.product(engines, KEEPING):
            yield replace(
                asked,
                engine=engine,
                zero_stage=stage,
                optimizer_offload=optimizer_offload,
                sequence_parallel=degree,
                checkpointing=checkpointing,
                activation_offload=offload,
            )


def degrees(subject: Subject, asked: Layout, plan: PlanConfig) -> list[int]:
    """Those that divide the GPUs, the row and the model's heads, and stay within a node."""
    allowed = []
    for degree in DEGREES:
        if degree > plan.gpu.gpus_per_node or asked.num_gpus % degree or asked.row_tokens % degree:
            continue
        try:
            check_degree(degree, subject.config.mamba_n_heads, subject.config.mamba_n_groups)
        except InputError:
            continue
        allowed.append(degree)
    return allowed


def best(found: list[Planned]) -> Planned | None:
    """The cheapest that fits."""
    return found[0] if found and found[0].fits else None


def what_would_fit(subject: Subject, asked: Layout, work: Workload, plan: PlanConfig) -> str:
    """One line for GPUs on which no layout fits: how many more, or how much shorter rows."""
    nearest = min(
        (judge(subject, layout, work, plan).memory.peak_bytes for layout in layouts(subject, asked, plan, work)),
        default=None,
    )
    needs = "" if nearest is None else f", the leanest needs {nearest / GIB:.1f} GiB"
    first = f"nothing fits {asked.num_gpus} x {usable_bytes(plan) / GIB:.1f} GiB{needs}"
    ways = []
    more = asked.num_gpus * 2
    while more <= MOST_GPUS:
        fitting = best(search(subject, replace(asked, num_gpus=more), work, plan))
        if fitting is not None:
            ways.append(f"{more} GPUs with {fitting.layout.describe()}")
            break
        more *= 2
    row = asked.row_tokens // 2 // 64 * 64
    while row >= 64:
        fitting = best(search(subject, replace(asked, row_tokens=row), work, plan))
        if fitting is not None:
            ways.append(f"rows of {row:,} tokens with {fitting.layout.describe()}")
            break
        row = row // 2 // 64 * 64
    return f"{first}; would fit: {' or '.join(ways)}" if ways else f"{first}; neither would more GPUs or shorter rows"
