"""Weights, gradients and optimizer states of a rank, and what the update needs: bytes a parameter, by engine.

`Precision` is the one place where an engine's number formats stand; `state_bytes` shards them as ZeRO does
(Rajbhandari et al. 2020, arXiv 1910.02054): 1 the optimizer's states, 2 gradients too, 3 weights too.
"""

from __future__ import annotations

from dataclasses import dataclass

from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.shape import Parameters

# DeepSpeed's defaults, in elements (deepspeed/runtime/zero/config.py).
REDUCE_BUCKET = 500_000_000
PREFETCH_BUCKET = 50_000_000
MAX_LIVE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of a parameter in each part."""

    weight: int
    gradient: int
    master: int  # 0: the weights are updated themselves
    moments: int  # both of AdamW
    update: int  # while it is updated, for each parameter of the rank's share


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Of one rank."""

    weights: int
    gradients: int
    optimizer: int  # master weights and moments
    gathered: int  # ZeRO 3: whole weights that are in use, or fetched ahead
    buckets: int  # in which gradients are reduced
    update: int  # only while the optimizer steps
    host: int  # in the CPU's memory


def precision_of(layout: Layout) -> Precision:
    """The engine's number formats.

    torch: all in the weights' dtype. deepspeed: float32 master weights and moments beside bfloat16 weights; gradients
    add up in the weights' dtype; the update works on a float32 copy of the rank's gradients.
    """
    size = layout.size
    if layout.engine == "torch":
        return Precision(weight=size, gradient=size, master=0, moments=2 * size, update=size)
    wide = layout.wide
    return Precision(weight=size, gradient=size, master=wide, moments=2 * wide, update=wide)


def state_bytes(parameters: Parameters, layout: Layout) -> StateBytes:
    """Of one rank, gradients standing: what is held between the first micro-batch and the update."""
    precision = precision_of(layout)
    extra = layout.wide - layout.size  # A_log, D and dt_bias are float32 at least
    weights = parameters.total * precision.weight + parameters.full_precision * extra
    weights += parameters.adapters * layout.wide
    if parameters.adapters:  # float32 adapters beside a frozen model
        precision = Precision(layout.wide, layout.wide, 0, 2 * layout.wide, layout.wide)
    trained, full = parameters.trained, 0 if parameters.adapters else parameters.full_precision * extra
    gradients = trained * precision.gradient + full
    optimizer = trained * (precision.master + precision.moments)
    if layout.engine == "torch":
        return _replicated(parameters, layout, weights, gradients, optimizer + 2 * full)
    return _sharded(parameters, layout, precision, weights, gradients, optimizer)


def _replicated(
    parameters: Parameters, layout: Layout, weights: int, gradients: int, optimizer: int
) -> StateBytes:
    """TorchEngine. Its update: the gradients of all ranks laid end to end, and after that the square roots that AdamW
    takes: of all weights at once on a GPU, of one weight at a time (twice) on a CPU."""
    summed = gradients if layout.num_gpus > 1 else 0
    largest = min(parameters.largest, parameters.trained) * layout.size
    roots = gradients if layout.backend == "cuda" else 2 * largest
    return StateBytes(weights, gradients, optimizer, 0, 0, max(summed, roots), 0)


def _sharded(
    parameters: Parameters, layout: Layout, precision: Precision, weights: int, gradients: int, optimizer: int
) -> StateBytes:
    """DeepSpeed."""
    stage, ranks = layout.zero_stage, layout.num_gpus

    def shared(number: int, from_stage: int) -> int:
        return -(-number // ranks) if stage >= from_stage else number

    bucket = min(REDUCE_BUCKET, parameters.trained) * precision.gradient
    in_use = min(parameters.total, MAX_LIVE) * precision.weight + PREFETCH_BUCKET * precision.weight
    optimizer = shared(optimizer, 1)
    update = shared(parameters.trained, 1) * precision.update
    return StateBytes(
        weights=shared(weights, 3),
        gradients=shared(gradients, 2),
        optimizer=0 if layout.optimizer_offload else optimizer,
        gathered=in_use if stage >= 3 else 0,
        buckets=bucket if stage else 0,
        update=0 if layout.optimizer_offload else update,
        host=optimizer + update if layout.optimizer_offload else 0,
    )
