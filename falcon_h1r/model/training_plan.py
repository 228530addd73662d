"""What a stage will train, worked out on the model's shape alone: what cannot be is refused before weights are read."""

from __future__ import annotations

from typing import Any

import torch
from transformers import FalconH1Config

from falcon_h1r.config import LoRAConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.model.load import weightless_model
from falcon_h1r.model.lora import add_adapters
from falcon_h1r.model.multipliers import check_learning_rate
from falcon_h1r.model.parameter_groups import parameter_groups


def plan_training(
    shape: FalconH1Config, lora: LoRAConfig, optimizer: OptimizerConfig, key: str
) -> list[dict[str, Any]]:
    """The parameter groups that training would have, of parameters without memory.

    Args:
        key: of the optimizer's section, for messages.

    Raises:
        InputError: where the multipliers do not allow the learning rate, or a group would be left empty.
    """
    check_learning_rate(shape, optimizer.learning_rate, f"{key}.learning_rate")
    model = weightless_model(shape)
    if lora.rank:
        with torch.device("meta"):
            add_adapters(model, lora, seed=0)
    return parameter_groups(model.named_parameters(), optimizer, key)


def describe_groups(groups: list[dict[str, Any]]) -> list[str]:
    """One line a group: how many parameters, and how they are trained."""
    lines = []
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        multiplier, decay = group["learning_rate_multiplier"], group["weight_decay"]
        rate = "learning rate" if multiplier == 1.0 else f"{multiplier:g} x learning rate"
        lines.append(f"{count:,} at {rate}, " + (f"decay {decay:g}" if decay else "no decay"))
    return lines
