"""What a layer keeps for its backward, tensor by tensor, and what else stands while the backward runs.

Read off the code: each line below is a tensor that some operation of `falcon_h1r.model.hybrid` saves. Norms, gates,
rotations and the scan keep their inputs alone (`blocks.py`, `ssd.py`); attention keeps its outputs and one sum a head.

Shapes: t tokens of a rank, T of the row, s ranks that share it; the widths' letters are those of `Widths`.
"""

from __future__ import annotations

from dataclasses import dataclass

from falcon_h1r.model.sequence import query_heads
from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.shape import Widths
from falcon_h1r.planning.working_memory import scan_starts_bytes

INPUTS_OF = {  # LoRA's targets: the width that a module reads
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "in_proj", "gate_proj", "up_proj"), "hidden"),
    "o_proj": "query",
    "down_proj": "mlp",
}


@dataclass(frozen=True, slots=True)
class LayerKept:
    """Bytes that one layer keeps where nothing is recomputed, by the part whose backward lets go of them."""

    input: int  # the residual that comes in
    attention: int
    attention_output: int  # of it, what selective checkpointing keeps
    mixer_projection: int  # in_proj's input and output
    mixer_scan: int  # the convolution's output, dt, the states at the blocks' starts
    mixer_output: int  # the scan's output
    gated: int  # out_proj's input
    middle: int  # the residual between mixer and MLP
    mlp_input: int
    gates: int  # gate and up
    activated: int  # down_proj's input

    @property
    def total(self) -> int:
        return self.input + self.inside

    @property
    def inside(self) -> int:
        """All but the layer's input."""
        return self.mixer_and_attention + self.middle + self.mlp_input + self.gates + self.activated

    @property
    def mixer_and_attention(self) -> int:
        mixer = self.mixer_projection + self.mixer_scan + self.mixer_output + self.gated
        return self.attention + mixer


def layer_kept(widths: Widths, layout: Layout) -> LayerKept:
    """Of one layer, nothing recomputed."""
    tokens, size, wide, degree = layout.rank_tokens, layout.size, layout.wide, layout.sequence_parallel
    frozen = layout.lora_rank > 0
    adapters = _adapter_inputs(widths, layout)

    def bytes_of(width: float) -> int:
        return int(tokens * width * size)

    def read_by_frozen(width: float) -> int:
        """A projection's input, which a weight without a gradient does not need."""
        return 0 if frozen else bytes_of(width)

    attention, output = _attention_kept(widths, layout)

    def cast(*shapes: tuple[int, int]) -> int:
        """Narrow copies of float32 weights."""
        return sum(rows * columns for rows, columns in shapes) * size if layout.casts_weights else 0

    hidden, mlp = widths.hidden, widths.mlp
    gathered = (degree - 1) * widths.states  # B and C of the whole row stand on every rank
    steps = 3 * tokens * widths.num_ssm_heads * wide  # dt through its bias, softplus and limits
    conv_input = widths.inner + widths.states + gathered if degree > 1 else 0  # exchanged: beside the projection
    return LayerKept(
        input=bytes_of(widths.hidden),
        attention=attention + adapters["attention"] + cast((2 * widths.query + 2 * widths.key, hidden)),
        attention_output=output,
        mixer_projection=read_by_frozen((widths.scaled_inputs - 1) * widths.hidden)
        + bytes_of(widths.projection + conv_input)
        + adapters["mixer"]
        + cast((widths.projection, hidden)),
        mixer_scan=bytes_of(widths.conv + gathered) + steps + scan_starts_bytes(widths, layout),
        mixer_output=bytes_of(widths.inner),
        gated=read_by_frozen(widths.inner) + cast((widths.inner, hidden)),
        middle=bytes_of(widths.hidden),
        mlp_input=read_by_frozen(widths.hidden) + adapters["mlp"] + cast((2 * mlp, hidden)),
        gates=bytes_of(2 * widths.mlp),
        activated=read_by_frozen(widths.mlp) + adapters["down"] + cast((mlp, hidden)),
    )


def _attention_kept(widths: Widths, layout: Layout) -> tuple[int, int]:
    """The branch with the normed input that it reads, and of it the outputs of attention itself."""
    tokens, size, degree = layout.rank_tokens, layout.size, layout.sequence_parallel
    heads, reads = query_heads(widths.num_heads, widths.num_kv_heads, degree)
    attended = int(tokens * (layout.padded_share or 1.0))  # tokens in the buckets
    sums = attended * heads * 4  # log-sum-exp, float32
    output = attended * heads * widths.head_dim * size
    raw = widths.query + widths.key  # q and k before their rotation
    rotated = heads * widths.head_dim + 2 * len(reads) * widths.head_dim  # q, k and v as attention takes them
    kept = tokens * raw * size + attended * rotated * size + sums + output
    if layout.padded_share is not None:  # copying into buckets keeps what it copied
        kept += tokens * (widths.query + 2 * widths.key) * size
    is_moved = degree > 1 or layout.padded_share is not None  # o_proj reads outputs that came back
    if is_moved and not layout.lora_rank:
        kept += tokens * widths.query * size
    if not layout.lora_rank:
        kept += tokens * widths.hidden * size  # the normed input
    return kept, output + sums


def _adapter_inputs(widths: Widths, layout: Layout) -> dict[str, int]:
    """What LoRA keeps: each adapter its own float32 copy of its input, and the rank-wide product.

    In a float32 model the input itself serves, one for all that read it.
    """
    kept = dict.fromkeys(("attention", "mixer", "mlp", "down"), 0)
    if not layout.lora_rank:
        return kept
    tokens, wide = layout.rank_tokens, layout.wide
    part_of = {"in_proj": "mixer", "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "down"}
    shared: set[tuple[str, str]] = set()
    for target in layout.lora_targets:
        part = part_of.get(target, "attention")
        width = INPUTS_OF[target]
        kept[part] += tokens * layout.lora_rank * wide
        if layout.size == wide:
            # q, k, v and in_proj read one tensor, or two where multipliers differ; o_proj reads attention's output.
            reader = "mixer" if target == "in_proj" and widths.scaled_inputs == 2 else part
            place = ("attention" if reader == "mixer" and widths.scaled_inputs == 1 else reader, width)
            if place in shared or target == "o_proj":
                continue
            shared.add(place)
        kept[part] += tokens * getattr(widths, width) * wide
    return kept


def kept_between(widths: Widths, layout: Layout, kept: LayerKept) -> int:
    """What a layer keeps from its forward until its backward begins, under the layout's checkpointing."""
    if layout.checkpointing == "none":
        return kept.total
    if layout.checkpointing == "selective":
        return kept.input + kept.attention_output
    return 0 if layout.activation_offload and layout.backend == "cuda" else kept.input
