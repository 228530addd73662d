"""The 7B's preset is the published model: its parameters by part, and every multiplier where the forward reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import FalconH1ForCausalLM
from transformers.models.falcon_h1.modeling_falcon_h1 import compute_mup_vector

from falcon_h1r.config import ModelConfig
from falcon_h1r.model.load import planned_config, weightless_model

ROOT = Path(__file__).resolve().parents[2]
PRESET: dict[str, Any] = yaml.safe_load((ROOT / "configs/model/falcon_h1_7b.yaml").read_text())

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 44, 3072, 12_288, 130_048
HEADS, KV_HEADS, HEAD_DIM = 12, 2, 128
SSM_HEADS, SSM_WIDTH, STATE, GROUPS, KERNEL = 24, 24 * 128, 256, 1, 4
CONV_CHANNELS = SSM_WIDTH + 2 * GROUPS * STATE  # x, B and C

# From the published figures alone, by the start of a parameter's name.
PARAMETERS = {
    "model.embed_tokens": VOCABULARY * HIDDEN,
    "lm_head": VOCABULARY * HIDDEN,
    "self_attn": LAYERS * (2 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * KV_HEADS * HEAD_DIM),  # q, o; k, v
    "mamba.in_proj": LAYERS * HIDDEN * (SSM_WIDTH + CONV_CHANNELS + SSM_HEADS),  # gate; x, B, C; dt
    "mamba.conv1d": LAYERS * CONV_CHANNELS * (KERNEL + 1),  # with bias
    "mamba.out_proj": LAYERS * SSM_WIDTH * HIDDEN,
    "mamba.norm": LAYERS * SSM_WIDTH,
    "mamba.A_log": LAYERS * SSM_HEADS,
    "mamba.D": LAYERS * SSM_HEADS,
    "mamba.dt_bias": LAYERS * SSM_HEADS,
    "feed_forward": LAYERS * 3 * HIDDEN * INTERMEDIATE,
    "layernorm": (2 * LAYERS + 1) * HIDDEN,
}


@pytest.fixture(scope="module")
def model() -> FalconH1ForCausalLM:
    """Without memory."""
    shape, read_from = planned_config(ModelConfig(path=PRESET["path"], architecture=PRESET["architecture"]))
    assert read_from == "as recorded in model.architecture"
    return weightless_model(shape)


@pytest.mark.parametrize("part", PARAMETERS)
def test_the_parameters_of_a_part_are_those_of_the_published_shape(model: FalconH1ForCausalLM, part: str) -> None:
    found = [parameter.numel() for name, parameter in model.named_parameters() if part in name]
    assert sum(found) == PARAMETERS[part]


def test_the_parts_are_7_59_billion_parameters_together(model: FalconH1ForCausalLM) -> None:
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == sum(PARAMETERS.values()) == 7_585_648_736
    assert f"{total / 1e9:.2f}" == "7.59"


def test_every_layer_is_hybrid_and_reads_its_multipliers(model: FalconH1ForCausalLM) -> None:
    written = PRESET["architecture"]
    assert model.model.embedding_multiplier == written["embedding_multiplier"]
    assert model.config.lm_head_multiplier == written["lm_head_multiplier"]
    assert len(model.model.layers) == LAYERS
    for layer in model.model.layers:
        assert layer.attention_in_multiplier == written["attention_in_multiplier"]
        assert layer.attn_out_multiplier == written["attention_out_multiplier"]
        assert layer.self_attn.key_multiplier == written["key_multiplier"]
        assert layer.mamba.ssm_in_multiplier == written["ssm_in_multiplier"]
        assert layer.ssm_out_multiplier == written["ssm_out_multiplier"]
        assert [layer.feed_forward.gate_multiplier, layer.feed_forward.down_multiplier] == written["mlp_multipliers"]


def test_the_ssms_multipliers_cover_gate_x_b_c_and_dt_in_this_order(model: FalconH1ForCausalLM) -> None:
    lengths = [SSM_WIDTH, SSM_WIDTH, GROUPS * STATE, GROUPS * STATE, SSM_HEADS]
    parts = compute_mup_vector(model.config).flatten().split(lengths)
    written = torch.tensor(PRESET["architecture"]["ssm_multipliers"])
    for part, multiplier in zip(parts, written, strict=True):
        assert (part == multiplier).all()
