"""The model of a training state, without the run: what the run would hand over, had it ended there."""

from __future__ import annotations

from pathlib import Path

import torch

from falcon_h1r.checkpoint.models import publish_model
from falcon_h1r.checkpoint.stored import StoredState
from falcon_h1r.config import ModelConfig
from falcon_h1r.distributed.fragments import WEIGHT
from falcon_h1r.model.load import load_model, load_tokenizer
from falcon_h1r.model.lora import add_adapters
from falcon_h1r.types import InputError


@torch.no_grad()
def publish_stored(checkpoint: Path, settings: ModelConfig, folder: Path, seed: int = 0) -> Path:
    """Write the model of a whole checkpoint as a folder that `recipes/evaluate.py` takes as `model.path`.

    Whatever engine, ranks and ZeRO stage wrote the checkpoint: weights are read stretch by stretch, and moments not at
    all. What the run does not train (all but its adapters) comes from the model that it started from. On the CPU.

    Args:
        settings: of the model that the run started from, with its path.

    Raises:
        InputError: where the checkpoint is of another model.
        OSError: where its files are gone meanwhile.
    """
    model, tokenizer = load_model(settings, torch.device("cpu")), load_tokenizer(settings)
    if settings.lora.rank:
        add_adapters(model, settings.lora, seed)
    parameters = dict(model.named_parameters())
    with StoredState(checkpoint) as stored:
        if unknown := sorted(stored.names - parameters.keys()):
            raise InputError(f"{checkpoint}: {unknown[0]} is not in {settings.path}; it holds another model's state")
        for name in sorted(stored.names):
            parameter = parameters[name]
            parameter.view(-1).copy_(stored.read(name, WEIGHT, 0, parameter.numel()))
    return publish_model(model, tokenizer, folder)
