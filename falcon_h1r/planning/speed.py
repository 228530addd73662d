"""How long a training step of a layout takes: arithmetic, communication, the update.

    arithmetic      operations / (rate * utilisation): forward, backward (twice the forward), the head's logits made
                    anew, and what checkpointing recomputes
    exchanges       tokens for heads and back in every layer (sequence parallelism), never hidden
    gradients       reduced once a step (replicas, ZeRO 1) or with every row (ZeRO 2, 3), hidden up to `overlap`
    weights         gathered once a step (ZeRO 1, 2) or twice with every row (3), the latter hidden up to `overlap`
    update          bandwidth: weights, moments and gradients of the rank's share, read and written
    offloading      activations and optimizer states over the CPU's link, never hidden

A ring over N ranks moves (N - 1) / N of the data past each of them; the slowest link on the way decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from falcon_h1r.benchmark.flops import BACKWARD_TO_FORWARD, ForwardFlops, forward_flops
from falcon_h1r.model.sequence import query_heads
from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.shape import Parameters, Widths
from falcon_h1r.planning.state_bytes import precision_of

if TYPE_CHECKING:
    from transformers import FalconH1Config

    from falcon_h1r.config_tools import GPUConfig, PlanConfig

UPDATE_PASSES = 2  # over all bytes of a parameter's states: read, and written
HOST_UPDATE_BYTES_PER_SECOND = 20e9  # of the CPU's memory, for one GPU's share of an update there


@dataclass(frozen=True, slots=True)
class Workload:
    """What an optimizer step has to get through, over all ranks."""

    tokens: float
    document_tokens: float  # of a mean document


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step by part, of all ranks together in parallel."""

    arithmetic: float
    exchanges: float
    sharding: float  # gradients and weights, what shows of it
    update: float
    offloading: float
    micro_batches: int
    model_flops: float  # of the step over all ranks, without recomputation

    @property
    def seconds(self) -> float:
        return self.arithmetic + self.exchanges + self.sharding + self.update + self.offloading


def step_time(
    config: FalconH1Config,
    widths: Widths,
    parameters: Parameters,
    layout: Layout,
    work: Workload,
    plan: PlanConfig,
) -> StepTime:
    """Of one optimizer step."""
    gpu = plan.gpu
    per_rank = work.tokens / layout.data_ranks / layout.sequence_parallel  # tokens that a rank computes
    micro_batches = max(1, math.ceil(work.tokens / layout.data_ranks / layout.row_tokens))
    forward = forward_flops(config, [round(work.document_tokens)])
    rate = (gpu.flops_per_second if layout.size < 4 else gpu.float32_flops_per_second) * plan.utilisation
    heads, _ = query_heads(widths.num_heads, widths.num_kv_heads, layout.sequence_parallel)
    attention = forward.attention * heads // widths.num_heads  # idle heads of a padded exchange work too
    executed = _executed_flops(replace(forward, attention=attention), layout) / round(work.document_tokens)
    arithmetic = per_rank * executed / rate
    once, with_rows = _sharding_seconds(parameters, layout, micro_batches, gpu)
    hidden = min(with_rows * plan.overlap, arithmetic)
    return StepTime(
        arithmetic=arithmetic,
        exchanges=per_rank * _exchanged_bytes(widths, layout) / gpu.intra_node_bytes_per_second,
        sharding=once + with_rows - hidden,
        update=_update_seconds(parameters, layout, gpu),
        offloading=_offloading_seconds(widths, layout, per_rank, gpu),
        micro_batches=micro_batches,
        model_flops=work.tokens * (1 + BACKWARD_TO_FORWARD) * forward.total / round(work.document_tokens),
    )


def _executed_flops(forward: ForwardFlops, layout: Layout) -> float:
    """Of forward and backward over a document; frozen weights need no gradient of their own."""
    backward = 1 if layout.lora_rank else BACKWARD_TO_FORWARD
    layers = forward.linear + forward.convolution + forward.attention + forward.scan
    executed = (1 + BACKWARD_TO_FORWARD) * (forward.attention + forward.scan + forward.convolution)
    executed += (1 + backward) * (forward.linear + forward.head) + forward.head  # the logits are made twice
    if layout.checkpointing == "layer":
        executed += layers
    elif layout.checkpointing == "selective":
        executed += layers - forward.attention
    return executed


def _exchanged_bytes(widths: Widths, layout: Layout) -> float:
    """Sent by a rank for each of its tokens: all layers, there and back, and again where layers are recomputed."""
    degree = layout.sequence_parallel
    if degree == 1:
        return 0.0
    heads = 2 * widths.query + 2 * widths.key + 2 * widths.inner + widths.num_ssm_heads
    gathered = degree * widths.states  # every rank takes B and C of the whole row
    passes = 2 if layout.checkpointing == "none" else 3
    return (degree - 1) / degree * (heads + gathered) * layout.size * widths.num_layers * passes


def _sharding_seconds(
    parameters: Parameters, layout: Layout, micro_batches: int, gpu: GPUConfig
) -> tuple[float, float]:
    """Of a step: what happens once at its end, and what goes along with its rows."""
    ranks, stage = layout.num_gpus, layout.zero_stage if layout.engine == "deepspeed" else 0
    if ranks == 1:
        return 0.0, 0.0
    across = ranks > gpu.gpus_per_node
    bandwidth = gpu.inter_node_bytes_per_second if across else gpu.intra_node_bytes_per_second
    ring = (ranks - 1) / ranks / bandwidth
    precision = precision_of(layout)
    reduced = parameters.trained * precision.gradient * ring  # a reduce-scatter; an all-reduce is two
    gathered = parameters.trained * precision.weight * ring
    if stage == 0:
        return 2 * reduced, 0.0
    if stage == 1:
        return reduced + gathered, 0.0
    if stage == 2:
        return gathered, micro_batches * reduced
    whole = parameters.total * layout.weight_size * ring
    return 0.0, micro_batches * (reduced + 2 * whole)


def _update_seconds(parameters: Parameters, layout: Layout, gpu: GPUConfig) -> float:
    precision = precision_of(layout)
    size = precision.weight + precision.gradient + precision.master + precision.moments
    sharded = layout.engine == "deepspeed" and layout.zero_stage >= 1
    own = parameters.trained / (layout.num_gpus if sharded else 1)
    if not layout.optimizer_offload:
        return own * size * UPDATE_PASSES / gpu.memory_bytes_per_second
    moved = own * (precision.gradient + precision.weight) / gpu.host_bytes_per_second
    return moved + own * size * UPDATE_PASSES / HOST_UPDATE_BYTES_PER_SECOND


def _offloading_seconds(widths: Widths, layout: Layout, tokens: float, gpu: GPUConfig) -> float:
    if not layout.activation_offload:
        return 0.0
    return 2 * tokens * widths.hidden * layout.size * widths.num_layers / gpu.host_bytes_per_second
