"""What operations need beside their inputs and results while they run: the kernels' working memory.

The two backends differ here and nowhere else. The CPU's terms are checked against measured peaks; **the GPU's are read
off the code of the kernels and have not been measured**: `suite=plan` on a GPU checks them (docs/plan.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.shape import Widths

MIB = 1 << 20

# CPU: everything runs in blocks that fit a core's cache (blocks.py, conv.py, ssd.py), a handful of which are alive.
CPU_BLOCK_COPIES = 4  # of blockwise functions and the convolution, 1 MiB each
CPU_SCAN_COPIES = 14  # matrices of a block of the scan in its backward, 1 MiB each in float32
CPU_SCAN_CHUNK, CPU_SCAN_ENTRIES = 64, 1 << 18  # falcon_h1r.model.ssd
CPU_NARROW = 13 * MIB  # what products in bfloat16 leave in the libraries' caches, measured; float32 leaves none
CPU_TILE = (512, 512)  # of logits, for a thread: falcon_h1r.model.linear_logprobs

# GPU: a blockwise function takes the row at once, so that its backward makes every intermediate value of the row anew.
GPU_SWIGLU_COPIES = 6  # (t, I) beside inputs and gradients: scaled, silu, result; the gradients of the last two, scaled
GPU_NORM_COPIES = 5  # (t, E) in float32: wide, normed, and the gradients of three products
GPU_GATED_NORM_COPIES = 9  # (t, D) in float32: wide gate and output, opened, product, normed, result, three gradients
# Tensors of states (T / Q, M / s, P, N) in float32 in the backward of mamba-ssm's scan: made anew, passed on, their
# gradients, those passed back.
GPU_SCAN_STATES = 4
GPU_TILE = (4096, 8192)


@dataclass(frozen=True, slots=True)
class Working:
    """Bytes beside inputs, results and gradients, by operation, in the backward."""

    swiglu: int
    norm: int
    gated_norm: int
    scan: int
    convolution: int
    attention: int
    logits: int  # tiles, with their operands


def working_memory(widths: Widths, layout: Layout) -> Working:
    """Of the layout's backend."""
    return _cpu(widths, layout) if layout.backend == "cpu" else _gpu(widths, layout)


def scan_starts_bytes(widths: Widths, layout: Layout) -> int:
    """What the scan keeps of states: the one at each block's start on a CPU, running sums of decays on a GPU."""
    if layout.backend != "cpu":
        return 4 * layout.rank_tokens * widths.num_ssm_heads
    own_heads = widths.num_ssm_heads // layout.sequence_parallel
    chunks = max(1, CPU_SCAN_ENTRIES // (own_heads * CPU_SCAN_CHUNK**2))
    num_blocks = -(-layout.row_tokens // (CPU_SCAN_CHUNK * chunks))
    return num_blocks * widths.ssm_state // layout.sequence_parallel * layout.wide


def standing_bytes(layout: Layout) -> int:
    """What libraries keep throughout."""
    return CPU_NARROW if layout.backend == "cpu" and layout.size < layout.wide else 0


def _cpu(widths: Widths, layout: Layout) -> Working:
    block = CPU_BLOCK_COPIES * MIB
    rows, columns = CPU_TILE
    tile = rows * columns * layout.wide
    # Logits and one intermediate; the gradient of the head's block; where they are narrow, the operands made wide.
    operands = columns * widths.hidden * layout.wide
    if layout.size < layout.wide:
        operands += (rows + columns) * widths.hidden * layout.wide
    return Working(
        swiglu=block,
        norm=block,
        gated_norm=block,
        scan=CPU_SCAN_COPIES * CPU_SCAN_ENTRIES * layout.wide,
        convolution=2 * block,
        attention=MIB,
        logits=2 * tile + operands,
    )


def _gpu(widths: Widths, layout: Layout) -> Working:
    tokens, size, wide = layout.rank_tokens, layout.size, layout.wide
    rows, columns = GPU_TILE
    states = -(-layout.row_tokens // widths.chunk) * widths.ssm_state // layout.sequence_parallel
    return Working(
        swiglu=GPU_SWIGLU_COPIES * tokens * widths.mlp * size,
        norm=GPU_NORM_COPIES * tokens * widths.hidden * wide,
        gated_norm=GPU_GATED_NORM_COPIES * tokens * widths.inner * wide,
        # States, and the gradients of B and C, float32 for every token of the row.
        scan=GPU_SCAN_STATES * states * 4 + layout.row_tokens * widths.states * 4,
        convolution=tokens * widths.conv * size,
        attention=tokens * widths.query * 4,  # the gradient of the queries is summed in float32
        logits=rows * columns * (wide + size) + columns * widths.hidden * wide,
    )
