"""`model.lora.rank=4` through the recipes: each stage hands over a plain model, and the next one reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import FalconH1ForCausalLM

from falcon_h1r.config_checks import not_built_yet
from falcon_h1r.distributed.world import World
from falcon_h1r.dry_run import describe
from recipes.grpo import grpo
from recipes.sft import sft
from tests.integration.conftest import configured

ALONE = World(0, 1, torch.device("cpu"))
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "gate_proj", "up_proj", "down_proj")


def changed_weights(before: Path, after: Path) -> set[str]:
    """By the module's own name; both folders hold the same weights in the same dtypes."""
    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert first.keys() == second.keys()
    assert all(first[name].dtype == second[name].dtype for name in first)
    return {name.split(".")[-2] for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stages_hand_over_plain_models(sums: Path, tmp_path: Path, dtype: str) -> None:
    config = configured(sums, "model.lora.rank=4", f"model.dtype={dtype}")
    assert not_built_yet(config, "sft") == not_built_yet(config, "grpo") == []
    trained = sft(config, tmp_path / "sft", ALONE)
    assert changed_weights(tmp_path / "sft" / "base", trained) == set(ADAPTED)
    plain = FalconH1ForCausalLM.from_pretrained(trained)
    assert not any("lora" in name for name, _ in plain.named_parameters())

    config = configured(sums, "model.lora.rank=4", f"model.dtype={dtype}", f"model.path={trained}")
    rewarded = grpo(config, tmp_path / "grpo", ALONE)
    assert changed_weights(trained, rewarded) <= set(ADAPTED)
    FalconH1ForCausalLM.from_pretrained(rewarded)


def test_a_dry_run_counts_what_is_trained(sums: Path) -> None:
    text = describe(configured(sums, "model.lora.rank=4", "dry_run_steps=1"), "sft")
    (adapters,) = [line for line in text.splitlines() if "adapters" in line]
    assert "rank 4, alpha 16, on q_proj, k_proj" in adapters
    (trained,) = [line for line in text.splitlines() if line.strip().startswith("trained")]
    assert trained.split()[1] == adapters.split()[1]
    assert "step 1" in text
