"""A policy from a checkpoint, or a small random one to start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconH1Config,
    FalconH1ForCausalLM,
    GenerationConfig,
)
from transformers.models.falcon_h1.modeling_falcon_h1 import compute_mup_vector

from falcon_h1r.config import ModelConfig
from falcon_h1r.config_checks import check_model_path, looks_local
from falcon_h1r.model.multipliers import check_against_preset, check_written_multipliers
from falcon_h1r.model.precision import compute_in, handed_over_dtype, trained_dtype
from falcon_h1r.model.stored_weights import INDEX, StoredTensor, find_tensors, read_tensors
from falcon_h1r.model.supported import check_supported
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

DT_RANGE = (1e-3, 1e-1)  # initial step sizes, log-uniform (Mamba2's reference initialisation)


def load_policy(settings: ModelConfig, device: torch.device) -> tuple[FalconH1ForCausalLM, PreTrainedTokenizerBase]:
    """Model and tokenizer of a checkpoint: a local folder, or a hub name at its pinned revision.

    Raises:
        InputError: where the path holds no Falcon-H1, not all of one, or one whose multipliers are wrong.
    """
    check_model_path(settings)
    load_config(settings)
    tokenizer = load_tokenizer(settings)
    return load_model(settings, device), tokenizer


def load_tokenizer(settings: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with `model.chat_template` where that is given."""
    check_model_path(settings)
    source, where = _source(settings)
    tokenizer = _loaded(settings, lambda: AutoTokenizer.from_pretrained(source, **where))
    if settings.chat_template is not None:
        tokenizer.chat_template = Path(settings.chat_template).read_text(encoding="utf-8")
    return tokenizer


def load_model(settings: ModelConfig, device: torch.device, to_train: bool = False) -> FalconH1ForCausalLM:
    """The checkpoint's model on the device, computing in the dtype that is asked for.

    Its weights are kept in that dtype too (A_log, D and dt_bias in float32 at least), or, where all of them are
    to be trained, in float32 at least (falcon_h1r.model.precision).

    Memory holds the model once, whatever dtype it is stored in: weights go piece by piece from their files to where
    they stay (falcon_h1r.model.stored_weights). What is stored is held against the model before any of it is read.
    """
    config, dtype = load_config(settings), DTYPES[settings.dtype]

    def kept(name: str) -> torch.dtype:
        return trained_dtype(dtype) if to_train else handed_over_dtype(name, dtype)

    folder = _loaded(settings, lambda: _weights_folder(settings))
    stored = _loaded(settings, lambda: find_tensors(folder))
    model = weightless_model(config, dtype)
    _check_stored(model, stored, f"model.path={settings.path}")
    weights = {
        name: torch.empty(parameter.shape, dtype=kept(name), device=device)
        for name, parameter in model.named_parameters()
    }
    _loaded(settings, lambda: read_tensors(stored, weights))
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    compute_in(model, dtype)
    _compute_buffers(model, dtype)
    if (folder / "generation_config.json").is_file():
        model.generation_config = _loaded(settings, lambda: GenerationConfig.from_pretrained(str(folder)))
    return model.to(device).eval()


def weightless_model(config: FalconH1Config, dtype: torch.dtype = torch.float32) -> FalconH1ForCausalLM:
    """A model of this shape without memory, tied where it ties."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def _weights_folder(settings: ModelConfig) -> Path:
    """The checkpoint's folder, downloaded where it is a hub name."""
    source, where = _source(settings)
    if looks_local(source):
        return Path(source)
    patterns = ["model*.safetensors", INDEX, "generation_config.json"]
    return Path(snapshot_download(source, allow_patterns=patterns, **where))


def _check_stored(model: FalconH1ForCausalLM, stored: Mapping[str, StoredTensor], key: str) -> None:
    """Refuse a checkpoint that is not, weight by weight, one of this model."""
    needed = dict(model.named_parameters())
    if missing := sorted(set(needed) - set(stored)):
        raise InputError(
            f"{key}: {len(missing)} weights are missing from the checkpoint, {missing[0]} among them; "
            "they would be random"
        )
    known = {*model.state_dict(), *(name for name, _ in model.named_buffers())}  # tied weights by both names
    if unknown := sorted(set(stored) - known):
        raise InputError(f"{key}: {len(unknown)} weights belong to no part of the model, {unknown[0]} among them")
    for name, parameter in needed.items():
        if stored[name].shape != tuple(parameter.shape):
            raise InputError(
                f"{key}: {name} is stored as {stored[name].shape}, where config.json asks for {tuple(parameter.shape)}"
            )


def _compute_buffers(model: FalconH1ForCausalLM, dtype: torch.dtype) -> None:
    """What no checkpoint holds because the config says it: rotation frequencies and every mixer's muP vector."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    vector = compute_mup_vector(model.config).to(dtype)
    for layer in model.model.layers:
        layer.mamba.mup_vector = vector.clone()
    assert not any(buffer.is_meta for buffer in model.buffers())


def load_config(settings: ModelConfig) -> FalconH1Config:
    """The shape of the checkpoint at `model.path`.

    Raises:
        InputError: where there is none, it is another kind of model, or its multipliers are incomplete or not those
            of the preset.
    """
    source, where = _source(settings)
    written, _ = _loaded(settings, lambda: FalconH1Config.get_config_dict(source, **where))
    if (model_type := written.get("model_type")) != FalconH1Config.model_type:
        raise InputError(f"model.path={settings.path}: a {model_type} model, not {FalconH1Config.model_type}")
    check_written_multipliers(written, f"model.path={settings.path}")
    config: FalconH1Config = _loaded(settings, lambda: FalconH1Config.from_pretrained(source, **where))
    check_supported(config, f"model.path={settings.path}, config.json: ")
    check_against_preset(config, settings.architecture, f"model.path={settings.path}")
    return config


def planned_config(settings: ModelConfig) -> tuple[FalconH1Config, str]:
    """The shape a run would have, without asking the hub, and where it was read."""
    if settings.path is not None and looks_local(settings.path):
        check_model_path(settings)
        return load_config(settings), "config.json of the checkpoint"
    if settings.path is not None:
        try:
            return load_config(replace(settings, local_files_only=True)), "config.json in the hub's cache"
        except InputError:
            pass  # not downloaded yet: the recorded shape has to do
    if settings.path is not None:
        return _config_of(settings.architecture), "as recorded in model.architecture"
    vocabulary = {"vocab_size": settings.tokenizer_vocab_size}  # at most: it is trained first
    return _config_of({**settings.architecture, **vocabulary}), "model.architecture"


def _source(settings: ModelConfig) -> tuple[str, dict[str, Any]]:
    """What transformers loads from: a folder, or a hub name with its revision."""
    assert settings.path is not None
    where = {"local_files_only": settings.local_files_only}
    if looks_local(settings.path):
        return str(Path(settings.path).expanduser()), where
    return settings.path, {**where, "revision": settings.revision}


def _loaded(settings: ModelConfig, load: Callable[[], Any]) -> Any:
    """What `load` returns; what the checkpoint or the hub lacks, in one line."""
    try:
        return load()
    except InputError as error:
        raise InputError(f"model.path={settings.path}: {error}") from None
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        assert settings.path is not None
        reason = " ".join(str(error).split())
        if not looks_local(settings.path) and isinstance(error, OSError):
            at = f" at revision {settings.revision}" if settings.revision else ""
            because = "local_files_only=true keeps from asking the hub" if settings.local_files_only else reason
            reason = f"no such folder, and not in the hub's cache{at}; {because}"
        raise InputError(f"model.path={settings.path}: {shortened(reason)}") from None


def shortened(text: str, limit: int = 300) -> str:
    """A library's message, cut where it becomes an essay."""
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


def keep_full_precision(model: nn.Module) -> None:
    """A_log, D and dt_bias in float32 at least, whatever the rest is in."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(handed_over_dtype(name, parameter.dtype))


def random_policy(settings: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> FalconH1ForCausalLM:
    """A FalconH1ForCausalLM of `settings.architecture` with random weights for this tokenizer."""
    torch.manual_seed(seed)
    return random_weights(_config_of(architecture_for(settings, tokenizer)), DTYPES[settings.dtype])


def random_weights(config: FalconH1Config, dtype: torch.dtype) -> FalconH1ForCausalLM:
    """A model of this shape, on torch's default device.

    Step sizes start log-uniform in `DT_RANGE` as in Mamba2's reference; transformers would start all of them
    at softplus(1) = 1.3, which forgets within a few tokens.
    """
    model = FalconH1ForCausalLM(config)
    low, high = (math.log(bound) for bound in DT_RANGE)
    with torch.no_grad():
        for layer in model.model.layers:
            step = torch.exp(torch.rand(config.mamba_n_heads) * (high - low) + low)
            layer.mamba.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
    model = model.to(dtype)
    keep_full_precision(model)
    return model


def architecture_for(settings: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """The configured architecture with the tokenizer's vocabulary and ids."""
    return {
        **settings.architecture,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _config_of(architecture: Mapping[str, Any]) -> FalconH1Config:
    """FalconH1Config of these fields; one that it does not have, or a size that does not fit, is refused."""
    known = {*FalconH1Config().to_dict(), "head_dim"}  # read by the attention, though no field of the config
    if unknown := sorted(set(architecture) - known):
        raise InputError(f"model.architecture.{unknown[0]}: FalconH1Config has no such field")
    try:
        config = FalconH1Config(**architecture)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"model.architecture: {' '.join(str(error).split())}") from None
    check_supported(config, "model.architecture.")
    return config
