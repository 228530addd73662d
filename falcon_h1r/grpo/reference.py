"""The reference policy of the KL term: the policy that the stage began with, frozen.

A stage that asks for no KL makes none. With adapters it is the model without them, and costs no memory: they begin at
zero. Otherwise it is a second copy of the weights on every rank, in the dtype that the forward computes in (the 7B in
bfloat16: 15.2 GB), and never sharded, so that ZeRO-3 is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import FalconH1ForCausalLM

from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.model.hybrid import ForwardPlan, packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.model.lora import has_adapters
from falcon_h1r.model.precision import compute_dtype, handed_over_dtype


class Reference:
    """Made before an engine takes the model, and before a checkpoint's weights are read into it."""

    def __init__(self, model: FalconH1ForCausalLM) -> None:
        self._frozen = None if has_adapters(model) else frozen_copy(model)

    @torch.no_grad()
    def logprobs(self, engine: Engine, row: PackedBatch, temperature: float) -> Tensor:
        """Logprobs of the row's weighted tokens: (T). Every rank of a sequence group gets the whole row's."""
        if self._frozen is None:
            with without_adapters(engine.model):
                return engine.logprobs(row, temperature)[0]
        plan = ForwardPlan(engine.plan.sequence)
        hidden = packed_hidden_states(self._frozen, row, plan)
        return packed_logprobs(self._frozen, hidden, row, temperature, plan)[0]


def frozen_copy(model: FalconH1ForCausalLM) -> FalconH1ForCausalLM:
    """The model with weights of its own, in the dtype that it computes in; A_log, D and dt_bias in float32 at least."""
    dtype = compute_dtype(model)
    weights: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach().to(handed_over_dtype(name, dtype), copy=True), False)
        for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, weights)


@contextmanager
def without_adapters(model: FalconH1ForCausalLM) -> Iterator[None]:
    """The plain model while it lasts.

    peft's own switch also makes adapters untrainable, which an engine that holds them would not survive; so this one
    sets only what their forward reads.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
