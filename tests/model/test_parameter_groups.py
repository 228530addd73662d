"""Parameter groups: every trained parameter is in one group, with the multipliers of its first matching entry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import FalconH1ForCausalLM

from falcon_h1r.checkpoint import check_training
from falcon_h1r.config import Config, ModelConfig
from falcon_h1r.config_stage import OptimizerConfig, ParameterGroupConfig
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.dry_run import describe
from falcon_h1r.model.load import planned_config, weightless_model
from falcon_h1r.model.parameter_groups import NOT_DECAYED, parameter_groups
from falcon_h1r.model.training_plan import describe_groups, plan_training
from falcon_h1r.sft.loop import train_step
from falcon_h1r.types import InputError

ALONE = World(0, 1, torch.device("cpu"))

ENTRIES = {
    "none": [],
    "head": [ParameterGroupConfig("lm_head", 0.5, 0.0)],
    "overlapping": [
        ParameterGroupConfig(r"layers\.0\.", 0.1),
        ParameterGroupConfig("mamba", 0.2, 3.0),
        ParameterGroupConfig(".", 2.0),
    ],
}


def settings_by_name(model: FalconH1ForCausalLM, settings: OptimizerConfig) -> dict[str, tuple[float, float]]:
    """(learning rate multiplier, weight decay) of each parameter that is in a group."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name_of[id(parameter)]: (group["learning_rate_multiplier"], group["weight_decay"])
        for group in parameter_groups(model.named_parameters(), settings)
        for parameter in group["params"]
    }


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("frozen", ["nothing", "self_attn"])
def test_every_trained_parameter_is_in_one_group(
    tiny_model: FalconH1ForCausalLM, entries: list[ParameterGroupConfig], frozen: str
) -> None:
    for name, parameter in tiny_model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    groups = parameter_groups(tiny_model.named_parameters(), OptimizerConfig(groups=entries))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in tiny_model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(trained) and set(grouped) == trained


def test_without_entries_vectors_do_not_decay_and_all_else_does(tiny_model: FalconH1ForCausalLM) -> None:
    settings = settings_by_name(tiny_model, OptimizerConfig(weight_decay=0.5))
    for name, parameter in tiny_model.named_parameters():
        assert settings[name] == (1.0, 0.0 if parameter.dim() == 1 else 0.5), name
    assert settings["model.layers.0.mamba.conv1d.weight"] == settings["model.embed_tokens.weight"] == (1.0, 0.5)


def test_the_first_matching_entry_wins(tiny_model: FalconH1ForCausalLM) -> None:
    settings = settings_by_name(tiny_model, OptimizerConfig(weight_decay=0.5, groups=ENTRIES["overlapping"]))
    assert settings["model.layers.0.mamba.in_proj.weight"] == (0.1, 0.5)
    assert settings["model.layers.1.mamba.in_proj.weight"] == (0.2, 1.5)
    assert settings["lm_head.weight"] == (2.0, 0.5)


def test_an_entry_changes_the_decay_only_where_it_says_so(tiny_model: FalconH1ForCausalLM) -> None:
    silent = settings_by_name(tiny_model, OptimizerConfig(groups=[ParameterGroupConfig("mamba", 0.1)]))
    assert silent["model.layers.0.mamba.A_log"] == (0.1, 0.0)
    explicit = settings_by_name(tiny_model, OptimizerConfig(groups=[ParameterGroupConfig("A_log", 1.0, 1.0)]))
    assert explicit["model.layers.0.mamba.A_log"] == (1.0, OptimizerConfig().weight_decay)


def test_tied_weights_count_once_by_the_embeddings_name(tiny_model: FalconH1ForCausalLM) -> None:
    shape = tiny_model.config
    shape.tie_word_embeddings = True
    tied = weightless_model(shape)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    groups = parameter_groups(
        tied.named_parameters(), OptimizerConfig(groups=[ParameterGroupConfig("embed_tokens", 0.5)])
    )
    (embedding,) = next(group["params"] for group in groups if group["learning_rate_multiplier"] == 0.5)
    assert embedding is tied.lm_head.weight
    assert sum(parameter is embedding for group in groups for parameter in group["params"]) == 1
    with pytest.raises(InputError, match="pattern=lm_head"):
        parameter_groups(tied.named_parameters(), OptimizerConfig(groups=[ParameterGroupConfig("lm_head")]))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["lm_haed"], "optimizer.groups[0].pattern=lm_haed: among trained parameters like "),
        (["mamba", "A_log"], "optimizer.groups[1].pattern=A_log: earlier entries have taken all that it matches"),
    ],
)
def test_an_entry_that_would_do_nothing_is_refused(
    tiny_model: FalconH1ForCausalLM, patterns: list[str], message: str
) -> None:
    entries = [ParameterGroupConfig(pattern) for pattern in patterns]
    with pytest.raises(InputError) as caught:
        parameter_groups(tiny_model.named_parameters(), OptimizerConfig(groups=entries))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_it_is_refused_on_the_shape_alone(stage: str) -> None:
    config = Config(
        model=ModelConfig(architecture={"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2})
    )
    getattr(config, stage).optimizer.groups = [ParameterGroupConfig("nothing")]
    with pytest.raises(InputError, match=rf"^{stage}\.optimizer\.groups\[0\]\.pattern=nothing"):
        check_training(config, stage)
    with pytest.raises(InputError, match=rf"^{stage}\.optimizer\.groups\[0\]\.pattern=nothing"):
        describe(config, stage)


def test_the_names_that_do_not_decay() -> None:
    layer = "model.layers.3."
    for name in ("mamba.A_log", "mamba.D", "mamba.dt_bias", "mamba.norm.weight", "mamba.conv1d.bias"):
        assert NOT_DECAYED.search(layer + name)
    for name in ("input_layernorm.weight", "pre_ff_layernorm.weight"):
        assert NOT_DECAYED.search(layer + name)
    for name in ("mamba.in_proj.weight", "mamba.conv1d.weight", "self_attn.q_proj.lora_A.default.weight"):
        assert not NOT_DECAYED.search(layer + name)


def test_the_7b_has_its_decays_by_kind() -> None:
    """44 layers of A_log, D, dt_bias, the convolution's bias and three norms, and the last norm: without decay."""
    config = Config(model=ModelConfig(architecture={"num_hidden_layers": 44, "hidden_size": 64, "vocab_size": 50}))
    shape, _ = planned_config(config.model)
    per_layer = 3 * shape.mamba_n_heads + (shape.mamba_d_ssm + 2 * shape.mamba_n_groups * shape.mamba_d_state)
    lines = describe_groups(plan_training(shape, config.model.lora, OptimizerConfig(), "sft.optimizer"))
    norms = 2 * shape.hidden_size + (shape.mamba_d_ssm if shape.mamba_rms_norm else 0)
    assert lines[1] == f"{44 * (per_layer + norms) + shape.hidden_size:,} at learning rate, no decay"


def test_the_schedule_is_multiplied_group_by_group(tiny_model: FalconH1ForCausalLM, random_documents: Any) -> None:
    entries = [ParameterGroupConfig("lm_head", 0.25), ParameterGroupConfig("embed_tokens", 0.0)]
    settings = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, groups=entries)
    engine = TorchEngine(tiny_model, settings, num_steps=4, world=ALONE)
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.named_parameters()}
    for rate in (1e-2, 7.5e-3):
        assert engine.learning_rate == pytest.approx(rate)
        train_step(engine, random_documents([20, 10]), 64)
        rates = {group["learning_rate_multiplier"]: group["lr"] for group in engine.optimizer.param_groups}
        assert rates == pytest.approx({1.0: rate, 0.25: 0.25 * rate, 0.0: 0.0})
    moved = {name: (parameter - before[name]).abs().max().item() for name, parameter in tiny_model.named_parameters()}
    assert moved["model.embed_tokens.weight"] == 0.0
    assert 0.0 < moved["lm_head.weight"] < 0.3 * moved["model.layers.0.self_attn.q_proj.weight"]
