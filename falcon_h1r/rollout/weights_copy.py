"""A copy of the policy to sample from, in a dtype of its own, that follows the trainer's weights.

It is filled from `Engine.full_weights`, one whole parameter after the other: under ZeRO-3 that gathers every weight
once for each sync, none for a token, and what the trainer holds need not be whole while rollouts are drawn. Adapters
are merged on the way: W + alpha / rank * B A is summed in the adapters' dtype and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import FalconH1ForCausalLM

from falcon_h1r.model.load import weightless_model
from falcon_h1r.model.lora import ADAPTER, BASE, DOWN, UP, is_adapter
from falcon_h1r.model.precision import compute_in, handed_over_dtype


def empty_copy(model: FalconH1ForCausalLM, dtype: torch.dtype) -> FalconH1ForCausalLM:
    """A model of the same shape on the same device that computes in `dtype`, its weights not yet filled.

    A_log, D and dt_bias are kept in float32 at least.
    """
    copy = weightless_model(model.config, dtype)
    device = model.device
    weights = {
        name: torch.zeros(parameter.shape, dtype=handed_over_dtype(name, dtype), device=device)
        for name, parameter in copy.named_parameters()
    }
    copy.load_state_dict(weights, strict=False, assign=True)
    copy.tie_weights()
    compute_in(copy, dtype)
    copy.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    for own, layer in zip(copy.model.layers, model.model.layers, strict=True):
        own.mamba.mup_vector = layer.mamba.mup_vector.to(device, dtype)
    return copy.requires_grad_(False).eval()


def are_whole(model: FalconH1ForCausalLM) -> bool:
    """Whether this rank holds all of the model's weights now: not where ZeRO-3 has put them away."""
    return all(parameter.numel() > 0 for parameter in model.parameters())


@torch.no_grad()
def fill(copy: FalconH1ForCausalLM, weights: Iterable[tuple[str, Tensor]], policy: FalconH1ForCausalLM) -> None:
    """Take over all of the policy's weights, by name, as they come.

    Raises:
        RuntimeError: where a weight is missing, unknown or of another shape.
    """
    own = dict(copy.named_parameters())
    missing = set(own)
    merging = _Merging(policy)
    for name, tensor in weights:
        for plain_name, whole in merging.plain(name, tensor):
            if plain_name not in own or own[plain_name].shape != whole.shape:
                raise RuntimeError(f"a weight that the sampler has no place for: {plain_name} {tuple(whole.shape)}")
            own[plain_name].copy_(whole)
            missing.discard(plain_name)
    if missing:
        raise RuntimeError(f"the policy gave {len(missing)} weights too few, {sorted(missing)[0]} among them")


class _Merging:
    """Adapted weights come in three parts, one after the other, and only the last makes them whole."""

    def __init__(self, policy: FalconH1ForCausalLM) -> None:
        self.policy = policy
        self.parts: dict[str, dict[str, Tensor]] = {}  # module: part: weight; of one module at a time

    def plain(self, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """The plain model's weights that this one completes."""
        module, is_base, kind = name.rpartition(f".{BASE}.")
        if is_base and kind != "weight":
            return [(f"{module}.{kind}", tensor)]
        part = BASE if is_base else DOWN if f".{DOWN}." in name else UP
        if not is_base and not is_adapter(name):
            return [(name, tensor)]
        module = module if is_base else name.partition(f".{part}.")[0]
        parts = self.parts.setdefault(module, {})
        parts[part] = tensor.clone()  # it may be put away before the others come
        if len(parts) < 3:
            return []
        del self.parts[module]
        scaling = self.policy.get_submodule(module).scaling[ADAPTER]
        base, down, up = parts[BASE], parts[DOWN], parts[UP]
        return [(f"{module}.weight", base.to(up.dtype) + scaling * (up @ down))]
