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
    """Bytes of a trained parameter in each part."""

    weight: int
    gradient: int
    master: int  # a second copy that the optimizer updates; 0 where it updates the weights themselves
    moments: int  # both of AdamW


@dataclass(frozen=True, slots=True)
class Phase:
    """What stands beside weights and optimizer states in a part of a step."""

    gradients: int
    buffers: int = 0  # buckets in which gradients are reduced; ZeRO 3: whole weights too
    working: int = 0


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Of one rank. The phases: `loss`, with its backward; `layers`, the first of their backwards; `end` of the
    backward, where what is left is reduced; `update`."""

    weights: int
    optimizer: int  # master copy and moments
    phases: dict[str, Phase]
    host: int = 0  # in the CPU's memory


def precision_of(layout: Layout) -> Precision:
    """Weights that are trained are float32 at least, and so are their gradients and moments; projections cast weights
    as they use them (falcon_h1r.model.precision). ZeRO's optimizer works on a copy of its share of the weights."""
    kept = layout.wide
    sharded = layout.engine == "deepspeed" and layout.zero_stage >= 1
    return Precision(weight=kept, gradient=kept, master=kept if sharded else 0, moments=2 * kept)


def state_bytes(parameters: Parameters, layout: Layout) -> StateBytes:
    """Of one rank."""
    precision = precision_of(layout)
    frozen = 0
    if parameters.adapters:  # beside weights in the dtype of the forward, but for A_log, D and dt_bias
        frozen = parameters.total * layout.size + parameters.full_precision * (layout.wide - layout.size)
    trained = _Trained(
        parameters.trained * precision.weight,
        parameters.trained * precision.gradient,
        parameters.trained * precision.master,
        parameters.trained * precision.moments,
    )
    if layout.engine == "torch" or layout.zero_stage == 0:
        return _replicated(parameters, layout, trained, frozen)
    return _sharded(parameters, layout, trained, frozen)


@dataclass(frozen=True, slots=True)
class _Trained:
    """Bytes of all that is trained, before it is shared out."""

    weights: int
    gradients: int
    master: int
    moments: int


def _replicated(parameters: Parameters, layout: Layout, trained: _Trained, frozen: int) -> StateBytes:
    """TorchEngine, and ZeRO 0.

    The update: gradients are laid end to end for the reduction, by TorchEngine all of them. After that AdamW takes
    square roots, of all weights at once on a GPU, of one weight at a time (twice) on a CPU.
    """
    bucket = trained.gradients if layout.engine == "torch" else min(trained.gradients, REDUCE_BUCKET * layout.wide)
    largest = min(parameters.largest * layout.wide, trained.weights)
    roots = trained.weights if layout.backend == "cuda" else 2 * largest
    standing = Phase(trained.gradients)
    update = Phase(trained.gradients, working=max(0 if layout.num_gpus == 1 else bucket, roots))
    phases = {"loss": standing, "layers": standing, "end": standing, "update": update}
    return StateBytes(frozen + trained.weights, trained.moments, phases)


def _sharded(parameters: Parameters, layout: Layout, trained: _Trained, frozen: int) -> StateBytes:
    """ZeRO 1 to 3."""
    stage, ranks = layout.zero_stage, layout.num_gpus
    offloaded = layout.optimizer_offload and layout.backend == "cuda"

    def share(number: int) -> int:
        return -(-number // ranks)

    optimizer, flat = share(trained.master + trained.moments), share(trained.gradients)
    phases = {1: _zero_1, 2: _zero_2, 3: _zero_3}[stage](parameters, layout, trained, flat)
    if offloaded:
        # Gradients pass through a buffer for the largest of them; the CPU adds them up, and updates.
        passing = parameters.largest * layout.wide
        phases = {
            name: Phase(phase.gradients if stage == 1 else passing, phase.buffers)
            for name, phase in phases.items()
            if name != "update"
        }
    return StateBytes(
        weights=share(frozen + trained.weights) if stage == 3 else frozen + trained.weights,
        optimizer=0 if offloaded else optimizer,
        phases=phases,
        # Gradients as they add up and as they are updated from, the weights on their way back, two square roots.
        host=optimizer + 2 * flat + 3 * share(trained.weights) if offloaded else 0,
    )


def _zero_1(parameters: Parameters, layout: Layout, trained: _Trained, flat: int) -> dict[str, Phase]:
    """All gradients until the update, which reduces them through a bucket and then works on the rank's share."""
    standing = Phase(trained.gradients)
    reduced = Phase(trained.gradients, _bucket(parameters, layout))
    updated = Phase(flat, working=max(flat, _roots(layout, flat)))
    update = max(reduced, updated, key=lambda phase: phase.gradients + phase.buffers + phase.working)
    return {"loss": standing, "layers": standing, "end": standing, "update": update}


def _zero_2(parameters: Parameters, layout: Layout, trained: _Trained, flat: int) -> dict[str, Phase]:
    """The share of the rows so far, and beside it that of the row whose gradients are being reduced.

    A GPU has two buckets from the backward's start on, of which one fills while the other is reduced. A CPU has one, of
    which what has been written is resident: the head's gradient when the layers' turn comes.
    """
    bucket = _bucket(parameters, layout)
    updated = Phase(flat, working=max(flat, _roots(layout, flat)))
    if layout.backend == "cuda":
        reducing = Phase(2 * flat, 2 * bucket)
        return {"loss": Phase(flat, 2 * bucket), "layers": reducing, "end": reducing, "update": updated}
    filled = min(parameters.head * layout.wide, bucket) if not parameters.adapters else 0
    return {"loss": Phase(flat), "layers": Phase(flat, filled), "end": Phase(2 * flat, bucket), "update": updated}


def _zero_3(parameters: Parameters, layout: Layout, trained: _Trained, flat: int) -> dict[str, Phase]:
    """The share; a bucket that stays, with a copy of it while it is reduced; weights made whole and kept for their next
    use, as many as DeepSpeed lets live, and those fetched ahead."""
    bucket = _bucket(parameters, layout)
    gathered = min(parameters.total, MAX_LIVE + PREFETCH_BUCKET) * layout.weight_size
    standing = Phase(flat, bucket + gathered)
    reducing = Phase(flat, 2 * bucket + gathered)
    updated = Phase(flat, bucket, flat + _roots(layout, flat))
    in_layers = reducing if layout.backend == "cuda" else standing  # a CPU's miniature fills its bucket at the end only
    return {"loss": standing, "layers": in_layers, "end": reducing, "update": updated}


def _bucket(parameters: Parameters, layout: Layout) -> int:
    """A GPU's is made whole; on a CPU only what is written to it becomes resident."""
    elements = REDUCE_BUCKET if layout.backend == "cuda" else min(REDUCE_BUCKET, parameters.trained)
    return elements * layout.wide


def _roots(layout: Layout, flat: int) -> int:
    """The square roots that AdamW takes of a rank's share: twice at a time on a CPU."""
    return flat if layout.backend == "cuda" else 2 * flat
