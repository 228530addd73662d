"""The most memory that a rank of a layout holds, by part: the largest of a step's moments.

While a step runs, memory rises to the head's backward, with all that the layers keep; in the backward of each layer,
which lets go of what the layer kept while gradients of its widest tensors stand; and in the update. Each moment is a
sum over parts, the peak is the largest of them.

The reckoning takes the gradients of all weights as there throughout, as they are from a step's second micro-batch on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from falcon_h1r.planning.activations import LayerKept, kept_between, layer_kept
from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.shape import Parameters, Widths
from falcon_h1r.planning.state_bytes import StateBytes, state_bytes
from falcon_h1r.planning.working_memory import Working, standing_bytes, working_memory

ROW_NUMBERS = 8  # int64 of every token: ids, positions, documents, slots, targets, indices


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Bytes of one rank at one moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # kept for the backward
    working: int  # gradients of activations and what is recomputed or made on the way
    logits: int
    buffers: int  # gathered weights, buckets of gradients, the row itself

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The peak, at which moment it is, and the other moments' totals."""

    moment: str
    parts: MemoryParts
    moments: dict[str, int]
    host_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.parts.total


def estimate_memory(widths: Widths, parameters: Parameters, layout: Layout) -> MemoryEstimate:
    """Of a training step on a whole row."""
    state = state_bytes(parameters, layout)
    made = _moments(widths, parameters, layout)
    moments = {
        name: _parts(state, layout, widths, moment) for name, moment in made.items() if moment.phase in state.phases
    }
    moment = max(moments, key=lambda name: moments[name].total)
    host = state.host
    if layout.activation_offload and layout.backend == "cuda":
        host += widths.num_layers * layer_kept(widths, layout).input
    return MemoryEstimate(moment, moments[moment], {name: parts.total for name, parts in moments.items()}, host)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a moment adds to the state of its phase."""

    phase: str
    activations: int = 0
    working: int = 0
    logits: int = 0


def _parts(state: StateBytes, layout: Layout, widths: Widths, moment: Moment) -> MemoryParts:
    phase = state.phases[moment.phase]
    rotation = layout.rank_tokens * widths.head_dim * layout.wide  # cos and sin of half the width each
    row = ROW_NUMBERS * 8 * layout.row_tokens + rotation if moment.phase != "update" else 0
    return MemoryParts(
        weights=state.weights,
        gradients=phase.gradients,
        optimizer=state.optimizer,
        activations=moment.activations,
        working=moment.working + phase.working,
        logits=moment.logits,
        buffers=phase.buffers + row + standing_bytes(layout),
    )


def _moments(widths: Widths, parameters: Parameters, layout: Layout) -> dict[str, Moment]:
    """Of the head's backward, and of the backward of the layer that comes first in it, the last one."""
    kept, working = layer_kept(widths, layout), working_memory(widths, layout)
    between = kept_between(widths, layout, kept)
    before = (widths.num_layers - 1) * between  # of the layers whose backward is still to come
    hidden = kept.input  # (t, E)
    whole = before + kept.total  # this layer's, kept or just recomputed
    recomputed = kept.total - between if layout.checkpointing != "none" else 0
    moments = {"update": Moment("update")}
    moments |= _head_moments(widths, parameters, layout, working, widths.num_layers * between)
    for name, (released, made) in _layer_moments(widths, layout, kept, working, parameters).items():
        # What has been recomputed is working memory; what has been let go of was this layer's.
        moments[name] = Moment("layers", whole - recomputed, recomputed - released + hidden + made)
    return moments


def _head_moments(
    widths: Widths, parameters: Parameters, layout: Layout, working: Working, activations: int
) -> dict[str, Moment]:
    """Of the two ends: the loss with the head, and the embedding.

    In the loss's backward stand hidden states before and after the last norm and their gradient, the head's gradient,
    tiles of logits, and where the head is cast its narrow copy; then the head's gradient is made wide. The embedding's
    backward comes last, when no layer keeps anything: a gradient of all of the vocabulary, beside those of the tokens.
    """
    size, wide = layout.size, layout.wide
    hidden = layout.rank_tokens * widths.hidden
    vocabulary = widths.vocabulary * widths.hidden
    trained = 0 if parameters.adapters else vocabulary
    cast = vocabulary * size if layout.casts_weights else 0
    narrowed = hidden * size if size < wide else 0
    logits = trained * size + cast + working.logits
    moments = {"loss": Moment("loss", activations + 2 * hidden * size, hidden * wide + narrowed, logits)}
    if cast:
        moments["head"] = Moment("loss", activations + hidden * size, narrowed, trained * (size + wide))
    moments["embedding"] = Moment("end", 0, 2 * hidden * wide, trained * wide)
    return moments


def _layer_moments(
    widths: Widths, layout: Layout, kept: LayerKept, working: Working, parameters: Parameters
) -> dict[str, tuple[int, int]]:
    """Of each operation's backward: what the layer has let go of by then, and what stands beside the rest.

    The gradient of the layer's output, (t, E), stands throughout and is counted by the caller.
    """
    tokens, size, wide = layout.rank_tokens, layout.size, layout.wide

    def bytes_of(width: int) -> int:
        return tokens * width * size

    hidden = bytes_of(widths.hidden)
    scaled = hidden if widths.scaled_mlp_output else 0
    # The gradient of the widest weight, and where it is cast the wide one made of it, once its input has been let go.
    widest = 0 if parameters.adapters else widths.mlp * widths.hidden
    weight = max(widest * size, widest * (size + wide) - kept.activated) if layout.casts_weights else widest * size
    adapted = bytes_of(widths.mlp) if "down_proj" in layout.lora_targets and size < wide else 0
    adapted *= wide // size  # the gradient of an adapter's float32 input, before it is narrowed
    mlp = kept.gates + kept.activated
    after_mlp = mlp + kept.mlp_input + kept.middle
    after_scan = after_mlp + kept.gated + kept.mixer_output + kept.mixer_scan
    mixer_gradients = bytes_of(widths.inner + widths.conv)
    return {
        "MLP, down": (0, scaled + bytes_of(widths.mlp) + weight + adapted),
        "MLP, gate": (kept.activated, 3 * bytes_of(widths.mlp) + working.swiglu),
        "MLP, up": (mlp, 2 * bytes_of(widths.mlp) + 2 * hidden + weight),
        "MLP, norm": (mlp, 2 * hidden + working.norm),
        "mixer, gate": (after_mlp + kept.gated, hidden + 3 * bytes_of(widths.inner) + working.gated_norm),
        "mixer, scan": (
            after_mlp + kept.gated + kept.mixer_output,
            hidden + bytes_of(2 * widths.inner + widths.conv) + working.scan,
        ),
        "mixer, convolution": (
            after_scan,
            hidden + mixer_gradients + bytes_of(widths.conv) + tokens * widths.conv * wide + working.convolution,
        ),
        "mixer, in": (after_scan, hidden + 2 * bytes_of(widths.projection)),
        "attention": (
            after_scan + kept.mixer_projection,
            2 * hidden + bytes_of(2 * widths.query + 2 * widths.key) + working.attention,
        ),
    }
