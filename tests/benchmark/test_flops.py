"""Counted operations: by hand for the 7B, and against torch's own counter where it counts the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.benchmark import flops
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.hybrid import packed_hidden_states

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def seven_b() -> FalconH1Config:
    preset = yaml.safe_load((ROOT / "configs/model/falcon_h1_7b.yaml").read_text())
    return FalconH1Config(**preset["architecture"])


def test_the_7b_by_hand(seven_b: FalconH1Config) -> None:
    in_proj = 3072 * (3072 + 3072 + 256 + 256 + 24)
    attention = 2 * 3072 * 1536 + 2 * 3072 * 256
    layer = in_proj + 3072 * 3072 + attention + 3 * 3072 * 12_288
    assert flops.linear_flops(seven_b) == 2 * layer
    assert flops.head_flops(seven_b) == 2 * 3072 * 130_048
    assert flops.convolution_flops(seven_b) == 2 * 4 * (3072 + 512)
    assert flops.scan_flops(seven_b) == 4 * 24 * 128 * 256
    assert flops.attention_flops(seven_b, [3, 1]) == 4 * 1536 * (3 + 2 + 1 + 1)

    one_token = flops.forward_flops(seven_b, [1])
    assert one_token.linear == 44 * 2 * layer
    assert one_token.total == pytest.approx(2 * 7.2e9, rel=0.02), "two operations a weight that multiplies"
    assert one_token.training == 3 * one_token.total


def test_weights_that_multiply_count_twice_a_token(tiny_model: FalconH1ForCausalLM) -> None:
    matrices = [module.weight for module in tiny_model.modules() if isinstance(module, nn.Linear)]
    counted = flops.forward_flops(tiny_model.config, [1])
    assert counted.linear + counted.head == 2 * sum(matrix.numel() for matrix in matrices)


def test_linear_and_attention_are_what_torch_counts(
    tiny_model: FalconH1ForCausalLM, random_documents: Callable[..., list[Document]]
) -> None:
    """torch counts attention's whole square, and of equal documents no padding."""
    lengths = [16, 16]
    batch = pack_row(random_documents(lengths))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tiny_model.lm_head(packed_hidden_states(tiny_model, batch))
    ours = flops.forward_flops(tiny_model.config, lengths)
    plain_products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]  # those of scan and attention are batched
    assert ours.linear + ours.head == plain_products

    shape = (2, tiny_model.config.num_attention_heads, 16, flops.attention_head_dim(tiny_model.config))
    query = torch.randn(shape)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    square = tiny_model.config.num_hidden_layers * counter.get_total_flops()
    assert ours.attention == square * 17 // 32, "of 16 x 16 pairs, causality leaves 136"


def test_a_chunk_costs_its_four_products(tiny_model: FalconH1ForCausalLM) -> None:
    config, size = tiny_model.config, 8
    groups, heads, width, state = config.mamba_n_groups, config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state
    B = torch.randn(groups, size, state)
    x, decays = torch.randn(heads, size, width), torch.randn(heads, size, size)
    by_head = B.repeat_interleave(heads // groups, 0)
    with FlopCounterMode(display=False) as counter:
        B @ B.mT  # scores
        decays @ x  # values within the chunk
        states = x.mT @ by_head
        by_head @ states.mT  # outputs of the carried states
    assert size * flops.chunked_scan_flops(config, size) == counter.get_total_flops()


def test_documents_cost_what_they_cost_alone(tiny_model: FalconH1ForCausalLM) -> None:
    together, first, second = (flops.forward_flops(tiny_model.config, lengths) for lengths in ([7, 30], [7], [30]))
    assert together.total == first.total + second.total
    assert flops.forward_flops(tiny_model.config, [37]).attention > together.attention


def test_a_larger_chunk_is_no_better_use_of_the_hardware(seven_b: FalconH1Config) -> None:
    assert flops.chunked_scan_flops(seven_b, 256) > flops.chunked_scan_flops(seven_b, 128) > flops.scan_flops(seven_b)
    assert flops.mfu(3e9, seconds=2.0, peak_flops_per_second=1e10) == pytest.approx(0.15)
