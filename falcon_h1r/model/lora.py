"""LoRA: low-rank adapters beside frozen projections (arXiv 2106.09685), by peft.

    y = W x + alpha / rank * B A x,    A random, B zero: at first the model is unchanged

Adapters stand beside the projections that the forward calls as modules. conv1d, the mixer's out_proj and lm_head are
no targets: fused kernels and the fused loss read their weights and would pass an adapter by without a word.
Adapters are kept in float32 at least, so that a bfloat16 model can be trained without a master copy of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from falcon_h1r.config import LoRAConfig
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import FalconH1ForCausalLM

ADAPTER = "default"
BASE, DOWN, UP = "base_layer", f"lora_A.{ADAPTER}", f"lora_B.{ADAPTER}"  # parts of names that peft gives


def add_adapters(model: FalconH1ForCausalLM, settings: LoRAConfig, seed: int) -> FalconH1ForCausalLM:
    """Put adapters into the model and freeze all else. The same seed gives the same adapters on every rank.

    Raises:
        InputError: where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError(f"model.lora.rank={settings.rank}: needs peft: pip install --editable '.[lora]'") from None

    peft_config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if is_adapter(name):
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return model


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return f".{DOWN}." in name or f".{UP}." in name


def has_adapters(model: FalconH1ForCausalLM) -> bool:
    return any(is_adapter(name) for name, _ in model.named_parameters())


@torch.no_grad()
def merged_state(model: FalconH1ForCausalLM, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state of the plain model that computes the same: W + alpha / rank * B A under W's own name.

    The model keeps its adapters and its weights. Sums are taken in the adapters' dtype and rounded once to W's; what
    was summed is on the CPU, the rest shared with what was given.

    Args:
        weights: the model's parameters by name, where it does not hold them whole itself.
    """
    weights = model.state_dict() if weights is None else weights
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if is_adapter(name):
            continue
        module_name, is_base, kind = name.rpartition(f".{BASE}.")
        if is_base and kind == "weight":
            down, up = (weights[f"{module_name}.{part}.weight"] for part in (DOWN, UP))  # (rank, in), (out, rank)
            scaling = model.get_submodule(module_name).scaling[ADAPTER]
            tensor = (tensor.to(up.dtype) + scaling * (up @ down)).to(tensor.dtype).cpu()
        state[f"{module_name}.{kind}" if is_base else name] = tensor
    return state
