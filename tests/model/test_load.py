"""Loading a checkpoint: what was published comes back, what is no checkpoint is refused in one line."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FalconH1ForCausalLM

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.config import ModelConfig
from falcon_h1r.data.tokenisation import CHAT_TEMPLATE, train_tokenizer
from falcon_h1r.model.load import load_policy, looks_local, planned_config, random_policy
from falcon_h1r.model.precision import FULL_PRECISION
from falcon_h1r.types import InputError

CPU = torch.device("cpu")
ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,  # unlike hidden_size / heads, as on the 7B
    "mamba_d_ssm": 32,
    "mamba_n_heads": 2,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["1 + 1 = 2"], 400)
    model = random_policy(ModelConfig(architecture=ARCHITECTURE), tokenizer, seed=0)
    return publish_model(model, tokenizer, tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def checkpoint(published: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def refusal(settings: ModelConfig) -> str:
    with pytest.raises(InputError) as caught:
        load_policy(settings, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.")
    return message


def test_a_published_model_comes_back_as_it_was(published: Path) -> None:
    model, tokenizer = load_policy(ModelConfig(path=str(published)), CPU)
    assert type(model) is FalconH1ForCausalLM
    weights = load_file(published / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert model.model.layers[0].self_attn.head_dim == 8
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_a_home_relative_path_is_found(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(published.parent))
    model, _ = load_policy(ModelConfig(path="~/model"), CPU)
    assert model.config.hidden_size == 32


def test_bfloat16_does_not_round_the_ssm_parameters(published: Path) -> None:
    """Loaded in bfloat16 and widened afterwards they would come back rounded, and small updates be lost."""
    model, _ = load_policy(ModelConfig(path=str(published), dtype="bfloat16"), CPU)
    weights = load_file(published / "model.safetensors")
    kept = {name: p for name, p in model.named_parameters() if name.endswith(FULL_PRECISION)}
    assert len(kept) == 3
    for name, parameter in kept.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, weights[name]), name
    assert any(not torch.equal(weights[n], weights[n].bfloat16().float()) for n in kept), "nothing to round"
    assert all(p.dtype == torch.bfloat16 for n, p in model.named_parameters() if n not in kept)


def test_full_precision_survives_publishing_and_loading_again(published: Path, tmp_path: Path) -> None:
    settings = ModelConfig(path=str(published), dtype="bfloat16")
    model, tokenizer = load_policy(settings, CPU)
    again, _ = load_policy(
        ModelConfig(path=str(publish_model(model, tokenizer, tmp_path / "next")), dtype="bfloat16"), CPU
    )
    for (name, first), second in zip(model.named_parameters(), again.parameters(), strict=True):
        assert first.dtype == second.dtype and torch.equal(first, second), name


def test_a_template_file_replaces_the_template(published: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].content }}")
    _, tokenizer = load_policy(ModelConfig(path=str(published), chat_template=str(template)), CPU)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).endswith("hi")


def test_a_missing_template_file_is_refused(published: Path) -> None:
    settings = ModelConfig(path=str(published), chat_template="nowhere.jinja")
    assert refusal(settings) == "model.chat_template=nowhere.jinja: no such file"


def test_a_missing_folder_is_refused() -> None:
    assert refusal(ModelConfig(path="./nowhere")) == "model.path=./nowhere: no such folder"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "no config.json" in refusal(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "kind"),
    [({"model_type": "llama", "hidden_size": 8}, "llama"), ({"model_type": "new"}, "new"), ({}, "None")],
)
def test_another_kind_of_model_is_refused(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert refusal(ModelConfig(path=str(tmp_path))).endswith(f": a {kind} model, not falcon_h1")


def test_an_impossible_config_is_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "mamba_d_head": 17}))
    assert "Mamba head" in refusal(ModelConfig(path=str(checkpoint)))


def test_a_broken_config_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": ')
    assert str(checkpoint) in refusal(ModelConfig(path=str(checkpoint)))


def test_missing_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(ModelConfig(path=str(checkpoint)))


def test_a_partial_checkpoint_is_refused_rather_than_filled_with_noise(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.0.mamba.D"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are missing from the checkpoint, model.layers.0.mamba.D" in refusal(
        ModelConfig(path=str(checkpoint))
    )


def test_cut_off_weights_are_refused(checkpoint: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert str(checkpoint) in refusal(ModelConfig(path=str(checkpoint)))


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    assert str(checkpoint) in refusal(ModelConfig(path=str(checkpoint)))


def test_missing_tokenizer_is_refused(checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    assert str(checkpoint) in refusal(ModelConfig(path=str(checkpoint)))


def test_a_hub_name_that_is_not_cached_fails_at_once_when_kept_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    started = time.perf_counter()
    message = refusal(ModelConfig(path="nobody/nothing-at-all", revision="abc", local_files_only=True))
    assert time.perf_counter() - started < 2.0
    assert message == (
        "model.path=nobody/nothing-at-all: no such folder, and not in the hub's cache at revision abc; "
        "local_files_only=true keeps from asking the hub"
    )


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("./x", True),
        ("/x/y", True),
        ("~/x", True),
        ("runs/a/model", True),
        ("x", True),
        ("owner/name", False),
    ],
)
def test_a_hub_name_is_owner_and_name(path: str, local: bool) -> None:
    assert looks_local(path) is local


# -----------------------------------------------------------------------------
# The shape without the weights


def test_the_planned_shape_is_the_checkpoints_where_there_is_one(published: Path) -> None:
    config, read_from = planned_config(ModelConfig(path=str(published), architecture={"hidden_size": 999}))
    assert config.hidden_size == 32
    assert read_from == "config.json of the checkpoint"


def test_the_planned_shape_of_a_checkpoint_not_at_hand_is_the_recorded_one() -> None:
    settings = ModelConfig(path="nobody/nothing-at-all", architecture=ARCHITECTURE)
    config, read_from = planned_config(settings)
    assert (config.hidden_size, read_from) == (32, "as recorded in model.architecture")


def test_the_planned_vocabulary_of_a_random_model_is_the_tokenizers() -> None:
    config, _ = planned_config(ModelConfig(architecture=ARCHITECTURE, tokenizer_vocab_size=400))
    assert config.vocab_size == 400


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_sise": 32}, "model.architecture.hidden_sise"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"mamba_d_head": 17}, "Mamba head"),
    ],
)
def test_an_impossible_architecture_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=r"^model\.architecture") as caught:
        planned_config(ModelConfig(architecture={**ARCHITECTURE, **change}))
    assert complaint in str(caught.value)
