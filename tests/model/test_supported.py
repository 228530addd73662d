"""Configurations that the forward would not compute are refused; those that it does equal transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.config import ModelConfig
from falcon_h1r.data.packing import pack_row
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.load import load_config, random_policy
from falcon_h1r.types import InputError
from tests.conftest import TINY_ARCHITECTURE

REFUSED: dict[str, dict[str, Any]] = {
    "hidden_act=gelu": {"hidden_act": "gelu"},
    "attention_dropout=0.5": {"attention_dropout": 0.5},
    "rope_parameters.rope_type=dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    },
    "num_key_value_heads=3": {"num_key_value_heads": 3},
    "mamba_n_groups=4": {"mamba_n_groups": 4},
    "mamba_n_groups=0": {"mamba_n_groups": 0},
    "mamba_d_conv=0": {"mamba_d_conv": 0},
    "time_step_limit=null": {"time_step_limit": None},
    "head_dim=null": {"head_dim": None},
}


@pytest.mark.parametrize("complaint", REFUSED)
def test_a_random_model_that_could_not_be_computed_is_refused(tokenizer, complaint: str) -> None:
    settings = ModelConfig(architecture={**TINY_ARCHITECTURE, **REFUSED[complaint]})
    with pytest.raises(InputError) as refusal:
        random_policy(settings, tokenizer, seed=0)
    assert str(refusal.value).startswith(f"model.architecture.{complaint}: ")


@pytest.mark.parametrize("complaint", ["hidden_act=gelu", "attention_dropout=0.5"])
def test_a_checkpoint_that_would_be_another_model_is_refused(
    tiny_model, tokenizer, tmp_path: Path, complaint: str
) -> None:
    folder = publish_model(tiny_model, tokenizer, tmp_path / "model")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, **REFUSED[complaint]}))
    with pytest.raises(InputError) as refusal:
        load_config(ModelConfig(path=str(folder)))
    assert str(refusal.value).startswith(f"model.path={folder}, config.json: {complaint}: ")


COMPUTED: dict[str, dict[str, Any]] = {
    "biases": {"attention_bias": True, "mlp_bias": True, "projectors_bias": True, "mamba_proj_bias": True},
    "no convolution bias": {"mamba_conv_bias": False},
    "limits on the step": {"time_step_limit": (0.01, 0.2)},
    "head width": {"head_dim": 16},
    "KV heads for all": {"num_key_value_heads": 4},
    "one group": {"mamba_n_groups": 1},
    "two taps": {"mamba_d_conv": 2},
    "stretched rotation": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_configuration_that_is_accepted_equals_transformers(tokenizer, random_documents, name: str) -> None:
    settings = ModelConfig(architecture={**TINY_ARCHITECTURE, **COMPUTED[name]})
    model = random_policy(settings, tokenizer, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero, where a forgotten one does not show
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert isinstance(model, FalconH1ForCausalLM) and isinstance(model.config, FalconH1Config)
    documents = random_documents([9, 21])
    ours = packed_hidden_states(model, pack_row(documents))
    theirs = torch.cat([model.model(input_ids=torch.tensor([d.input_ids])).last_hidden_state[0] for d in documents])
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
