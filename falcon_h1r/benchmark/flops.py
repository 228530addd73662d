"""Floating-point operations of a Falcon-H1, counted from its shape: what MFU divides by time.

A multiplication and its addition are two operations. Per token of the forward pass, and layer (E hidden, I MLP,
H_a heads and K KV heads of width d; D inner channels in H heads of width P, G groups, state N, kernel k):

    linear        2 * [ E (2 D + 2 G N + H)  in_proj   + D E  out_proj
                        + 2 E H_a d  q_proj, o_proj    + 2 E K d  k_proj, v_proj   + 3 E I  gate, up, down ]
    convolution   2 * k * (D + 2 G N)
    attention     2 * 2 * H_a d * (tokens it sees, itself included)      scores, and their product with the values
    scan          2 * 2 * H P N                                          a state's update, and its product with C

and once for each token, 2 * E V of the head. The embedding is a look-up; norms, gates, softmax, decays and rotations
are element-wise and count nothing.

**The scan counts as the recurrence**: dt x B^T into the state, the state times C out of it. Every implementation with
an exact state does this much. The chunked dual form (Dao & Gu 2024, arXiv 2405.21060) adds what is quadratic in its
chunk, `chunked_scan_flops`; that is a price of the implementation, and a larger chunk must not look like better use
of the hardware. Attention counts the pairs that causality and document borders leave, L (L + 1) / 2 of a document of L
tokens, whatever a kernel computes beyond them. Padding counts nothing.

The backward pass is twice the forward. Recomputation counts nothing: this is model FLOPs utilisation (Chowdhery et
al. 2022, arXiv 2204.02311, appendix B), not hardware utilisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from falcon_h1r.data.packing_plan import DocumentCost

if TYPE_CHECKING:
    from transformers import FalconH1Config

BACKWARD_TO_FORWARD = 2


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """Of one forward pass over whole documents, all layers together."""

    linear: int
    convolution: int
    attention: int
    scan: int
    head: int

    @property
    def total(self) -> int:
        return self.linear + self.convolution + self.attention + self.scan + self.head

    @property
    def training(self) -> int:
        """Forward and backward."""
        return (1 + BACKWARD_TO_FORWARD) * self.total


def forward_flops(config: FalconH1Config, lengths: Sequence[int]) -> ForwardFlops:
    """The forward pass over documents of these lengths, logits of every token included."""
    num_tokens, num_layers = sum(lengths), config.num_hidden_layers
    return ForwardFlops(
        linear=num_layers * num_tokens * linear_flops(config),
        convolution=num_layers * num_tokens * convolution_flops(config),
        attention=num_layers * attention_flops(config, lengths),
        scan=num_layers * num_tokens * scan_flops(config),
        head=num_tokens * head_flops(config),
    )


def part_flops(part: str, config: FalconH1Config, lengths: Sequence[int]) -> ForwardFlops:
    """What a part of the benchmark computes: a mixer, its scan, the head, or all of the model."""
    num_tokens = sum(lengths)
    scan = num_tokens * scan_flops(config)
    if part == "scan":
        linear, convolution = mixer_linear_flops(config), convolution_flops(config)
        return ForwardFlops(num_tokens * linear, num_tokens * convolution, 0, scan, 0)
    if part == "scan_alone":
        return ForwardFlops(0, 0, 0, scan, 0)
    if part == "loss":
        return ForwardFlops(0, 0, 0, 0, num_tokens * head_flops(config))
    return forward_flops(config, lengths)


def document_cost(config: FalconH1Config) -> DocumentCost:
    """Operations of one forward pass over a document of L tokens, as a polynomial in L."""
    shorter, longer = (forward_flops(config, [length]).total for length in (1, 2))
    quadratic = (longer - 2 * shorter) / 2
    return DocumentCost(shorter - quadratic, quadratic)


def mfu(flops: float, seconds: float, peak_flops_per_second: float) -> float:
    """The share of the hardware's arithmetic that went into the model."""
    return flops / (seconds * peak_flops_per_second)


# -----------------------------------------------------------------------------
# One layer


def linear_flops(config: FalconH1Config) -> int:
    """All linear layers of one layer, for one token: two operations a weight."""
    hidden, head_dim = config.hidden_size, attention_head_dim(config)
    in_proj = hidden * (inner_channels(config) + conv_channels(config) + config.mamba_n_heads)
    out_proj = inner_channels(config) * hidden
    attention = 2 * hidden * head_dim * (config.num_attention_heads + config.num_key_value_heads)
    mlp = 3 * hidden * config.intermediate_size
    return 2 * (in_proj + out_proj + attention + mlp)


def mixer_linear_flops(config: FalconH1Config) -> int:
    """in_proj and out_proj alone, for one token."""
    in_proj = config.hidden_size * (inner_channels(config) + conv_channels(config) + config.mamba_n_heads)
    return 2 * (in_proj + inner_channels(config) * config.hidden_size)


def convolution_flops(config: FalconH1Config) -> int:
    """The depthwise convolution over x, B and C, for one token."""
    return 2 * config.mamba_d_conv * conv_channels(config)


def attention_flops(config: FalconH1Config, lengths: Sequence[int]) -> int:
    """Scores and weighted values of one layer, over causal pairs within documents."""
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    return 2 * 2 * config.num_attention_heads * attention_head_dim(config) * pairs


def scan_flops(config: FalconH1Config) -> int:
    """The recurrence of one layer, for one token: a state's update and its output."""
    return 2 * 2 * inner_channels(config) * config.mamba_d_state


def chunked_scan_flops(config: FalconH1Config, chunk_size: int) -> int:
    """The dual form of one layer in chunks of Q, for one token; what the matrices of a chunk cost in full.

    scores C B^T (2 Q G N), scores times values (2 Q H P), the chunk's states (2 H P N), their outputs (2 H P N).
    """
    scores = 2 * chunk_size * config.mamba_n_groups * config.mamba_d_state
    within = 2 * chunk_size * inner_channels(config)
    return scores + within + scan_flops(config)


def head_flops(config: FalconH1Config) -> int:
    """The logits of one token."""
    return 2 * config.hidden_size * config.vocab_size


# -----------------------------------------------------------------------------
# Widths


def inner_channels(config: FalconH1Config) -> int:
    """Of the mixer: H P."""
    return config.mamba_n_heads * config.mamba_d_head


def conv_channels(config: FalconH1Config) -> int:
    """x, B and C side by side."""
    return inner_channels(config) + 2 * config.mamba_n_groups * config.mamba_d_state


def attention_head_dim(config: FalconH1Config) -> int:
    """Of the queries; a config without it shares the hidden size out evenly."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
