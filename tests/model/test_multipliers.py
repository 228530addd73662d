"""The muP multipliers of a checkpoint: none may be missing, none may differ from its preset's, before it is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import FalconH1Config

from falcon_h1r.checkpoint import models as checkpoint_module
from falcon_h1r.checkpoint import open_policy, publish_model
from falcon_h1r.config import Config, ModelConfig
from falcon_h1r.data.tokenisation import train_tokenizer
from falcon_h1r.distributed.world import World
from falcon_h1r.dry_run import describe
from falcon_h1r.model.load import load_config, random_policy
from falcon_h1r.model.multipliers import (
    MULTIPLIERS,
    all_multipliers_are_one,
    check_against_preset,
    check_written_multipliers,
    multiplier_values,
)
from falcon_h1r.types import InputError
from recipes import pipeline
from tests.conftest import ONE_LAYER

ROOT = Path(__file__).resolve().parents[2]
PRESET_7B: dict[str, Any] = yaml.safe_load((ROOT / "configs/model/falcon_h1_7b.yaml").read_text())["architecture"]
# As a config.json would hold them: to the last digit of a float, where the preset has six.
FULL_PRECISION_7B = {
    "embedding_multiplier": math.sqrt(32),
    "lm_head_multiplier": 0.013020833333333334,
    "attention_out_multiplier": 0.10416666666666667,
    "ssm_in_multiplier": 0.4166666666666667,
    "ssm_out_multiplier": 0.11785113019775792,
    "ssm_multipliers": [math.sqrt(1 / 8), 0.25, math.sqrt(1 / 32), 0.5, math.sqrt(1 / 8)],
    "mlp_multipliers": [0.294627825494395, 0.032552083333333336],
}
SMALL: dict[str, Any] = {
    **ONE_LAYER,
    "mamba_chunk_size": 32,
    "key_multiplier": 0.5,
    "ssm_multipliers": [0.35, 0.25, 0.18, 0.5, 0.35],
}
WITHOUT_MUP = {name: value for name, value in SMALL.items() if name not in MULTIPLIERS}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["1 + 1 = 2"], 400)
    model = random_policy(ModelConfig(architecture=SMALL), tokenizer, seed=0)
    return publish_model(model, tokenizer, tmp_path / "model")


def rewrite_config(checkpoint: Path, **changes: Any) -> None:
    """Change fields of config.json; None removes one."""
    fields = {**json.loads((checkpoint / "config.json").read_text()), **changes}
    kept = {name: value for name, value in fields.items() if value is not None}
    (checkpoint / "config.json").write_text(json.dumps(kept))


def refusal(settings: ModelConfig) -> str:
    with pytest.raises(InputError) as caught:
        load_config(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -----------------------------------------------------------------------------
# What config.json has to say


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_a_missing_multiplier_is_refused_rather_than_read_as_1(checkpoint: Path, name: str) -> None:
    rewrite_config(checkpoint, **{name: None})
    message = refusal(ModelConfig(path=str(checkpoint)))
    assert message == f"model.path={checkpoint}: config.json has no {name}; it would count as 1"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("ssm_multipliers", [0.5, 0.5, 0.5, 0.5], "has to be a list of 5"),
        ("ssm_multipliers", 0.5, "has to be a list of 5"),
        ("mlp_multipliers", [0.5, 0.5, 0.5], "has to be a list of 2"),
        ("key_multiplier", [0.5], "has to be one number"),
        ("key_multiplier", math.nan, "has to be finite and above 0"),
        ("key_multiplier", math.inf, "has to be finite and above 0"),
        ("key_multiplier", 0, "has to be finite and above 0"),
        ("key_multiplier", -0.5, "has to be finite and above 0"),
        ("key_multiplier", "0.5", "has to be finite and above 0"),
        ("mlp_multipliers", [0.5, math.nan], "has to be finite and above 0"),
    ],
)
def test_a_multiplier_that_is_none_is_refused(checkpoint: Path, name: str, value: Any, complaint: str) -> None:
    rewrite_config(checkpoint, **{name: value})
    message = refusal(ModelConfig(path=str(checkpoint)))
    assert message.startswith(f"model.path={checkpoint}: {name}=") and message.endswith(complaint)


def test_what_transformers_writes_names_every_multiplier() -> None:
    """Also those that equal its defaults, or checkpoints of ours would be refused."""
    check_written_multipliers(FalconH1Config().to_diff_dict(), "a config")


# -----------------------------------------------------------------------------
# What the preset of the same shape says


def test_the_six_digits_of_the_preset_agree_with_full_precision() -> None:
    published = FalconH1Config(**{**PRESET_7B, **FULL_PRECISION_7B})
    assert any(published.to_dict()[name] != PRESET_7B[name] for name in FULL_PRECISION_7B)
    check_against_preset(published, PRESET_7B, "the checkpoint")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lm_head_multiplier", 1.0),
        ("ssm_multipliers", [0.353553, 0.25, 0.176777, 0.353553, 0.5]),  # C and dt swapped
        ("mlp_multipliers", [0.0325521, 0.294628]),
        ("key_multiplier", 0.03070),  # off in the fourth digit
    ],
)
def test_other_multipliers_than_the_presets_are_refused_with_both_values(name: str, value: Any) -> None:
    tampered = FalconH1Config(**{**PRESET_7B, name: value})
    with pytest.raises(InputError) as caught:
        check_against_preset(tampered, PRESET_7B, "model.path=x")
    assert str(caught.value).startswith(f"model.architecture.{name}=")
    assert "model.path=x has " in str(caught.value)


def test_a_checkpoint_is_held_against_its_preset_before_its_weights_are_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    load_config(ModelConfig(path=str(checkpoint), architecture=SMALL))
    rewrite_config(checkpoint, key_multiplier=0.25)
    message = refusal(ModelConfig(path=str(checkpoint), architecture=SMALL))
    assert message.startswith(f"model.architecture.key_multiplier=0.5: model.path={checkpoint} has 0.25;")


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "num_hidden_layers", "mamba_d_ssm"])
def test_a_preset_of_another_shape_is_not_compared(checkpoint: Path, name: str) -> None:
    other = {**SMALL, "key_multiplier": 0.25, name: 2 * SMALL[name]}
    assert load_config(ModelConfig(path=str(checkpoint), architecture=other)).key_multiplier == 0.5


def test_a_path_without_a_preset_is_not_compared(checkpoint: Path) -> None:
    assert load_config(ModelConfig(path=str(checkpoint))).key_multiplier == 0.5


def test_another_chunk_size_than_the_presets_loads(checkpoint: Path) -> None:
    """Falcon-H1 has 256, Falcon-H1R 128: the same weights, and the same results."""
    rewrite_config(checkpoint, mamba_chunk_size=128)
    assert load_config(ModelConfig(path=str(checkpoint), architecture=SMALL)).mamba_chunk_size == 128


def test_scalars_and_vectors_are_all_read() -> None:
    values = multiplier_values(FalconH1Config(**SMALL))
    assert [len(value) for value in values.values()] == [1] * 7 + [5, 2]
    assert not all_multipliers_are_one(FalconH1Config(**SMALL))
    assert all_multipliers_are_one(FalconH1Config(**WITHOUT_MUP))


# -----------------------------------------------------------------------------
# A learning rate that counts on them


def config_without_mup(**stages: float) -> Config:
    """A random model whose multipliers are all 1, with these learning rates."""
    config = Config(model=ModelConfig(architecture=WITHOUT_MUP, tokenizer_vocab_size=400))
    for stage, learning_rate in stages.items():
        getattr(config, stage).optimizer.learning_rate = learning_rate
    return config


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_recipes_rate_is_refused_by_its_key_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    for name in ("publish_random_base", "load_model"):
        monkeypatch.setattr(checkpoint_module, name, lambda *_: pytest.fail("too late"))
    config = config_without_mup(**{stage: 1024e-6})
    with pytest.raises(InputError, match=rf"^{stage}\.optimizer\.learning_rate=0\.001024: .*multipliers"):
        open_policy(config, list, tmp_path, World(0, 1, torch.device("cpu")), stage)


def test_a_checkpoint_is_inspected_before_its_weights_are_read(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    config = Config(model=ModelConfig(path=str(checkpoint)))
    config.sft.limits.prompt_tokens = 10**6
    with pytest.raises(InputError, match="beyond the model's context"):
        open_policy(config, list, tmp_path, World(0, 1, torch.device("cpu")), "sft")


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_dry_run_refuses_it_too(stage: str) -> None:
    with pytest.raises(InputError, match=rf"^{stage}\.optimizer\.learning_rate=0\.001024"):
        describe(config_without_mup(**{stage: 1024e-6}), "pipeline")
    describe(Config(model=ModelConfig(architecture=SMALL)), "pipeline")


def test_the_pipeline_refuses_the_last_stages_rate_before_the_first() -> None:
    with pytest.raises(InputError, match=r"^grpo\.optimizer\.learning_rate=0\.001024"):
        pipeline.check(config_without_mup(grpo=1024e-6))
