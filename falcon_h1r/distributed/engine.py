"""The engine: a model that trains. Stages call `logprobs`, `backward`, `step` and do not know how it is spread.

`TorchEngine` keeps a replica on every rank. Losses arrive divided by global denominators, so the gradient of the
whole batch is the plain sum of the ranks' gradients: there is no averaging to undo.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import FalconH1ForCausalLM

from falcon_h1r.config import EngineConfig, OptimizerConfig
from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.distributed.world import World
from falcon_h1r.model.hybrid import ForwardPlan, packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.model.parameter_groups import parameter_groups
from falcon_h1r.model.sequence import check_degree


class TorchEngine:
    """Data and sequence parallelism by summing gradients once a step.

    A rank's gradient is that of its rows, or under sequence parallelism of its tokens and heads in them: the sum over
    all ranks is the whole either way.
    """

    def __init__(
        self,
        model: FalconH1ForCausalLM,
        optimizer: OptimizerConfig,
        num_steps: int,
        world: World,
        engine: EngineConfig | None = None,
    ) -> None:
        """
        Args:
            num_steps: optimizer steps of the whole run, which the schedule decays over.
            engine: what a layer keeps for its backward; the grid of ranks is the world's.

        Raises:
            InputError: where the model's heads cannot be shared by the ranks of a sequence group.
        """
        engine = engine or EngineConfig()
        check_degree(world.sequence.size, model.config.mamba_n_heads, model.config.mamba_n_groups)
        self.plan = ForwardPlan(world.sequence, engine.activation_checkpointing, engine.activation_offload)
        self.model = model
        self.world = world
        self.num_steps = num_steps
        self.steps_done = 0
        self.settings = optimizer
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model.named_parameters(), optimizer),
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
        )
        self._assert_replicas_agree()

    def logprobs(self, batch: PackedBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logprobs (T) and entropies (T) of a packed row's weighted tokens, each given its prefix.

        Every rank of a sequence group gets the whole row's, and computes and backpropagates the same loss.
        """
        hidden = packed_hidden_states(self.model, batch, self.plan)
        return packed_logprobs(self.model, hidden, batch, temperature, self.plan.sequence)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's part of the loss."""
        loss.backward()

    def step(self) -> float:
        """Sum gradients over ranks, clip, update, zero. Returns the gradient's norm before clipping."""
        self._sum_gradients()
        grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_grad_norm or math.inf))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["learning_rate_multiplier"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return grad_norm

    def skip_step(self) -> None:
        """A step without anything to learn from: the schedule goes on, the weights stay."""
        self.steps_done += 1

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return scheduled_learning_rate(self.settings, self.steps_done, self.num_steps)

    def check_gradient_scale(self) -> None:
        """Prove on a probe that ranks' gradients are summed, neither averaged nor counted twice.

        Rank r backpropagates (r + 1) * sum(p) of the first parameter: each entry has to come out as the sum of
        1..size.
        """
        probe = self.parameters[0]
        ((self.world.rank + 1) * probe.sum()).backward()
        self._sum_gradients()
        assert probe.grad is not None
        expected = self.world.size * (self.world.size + 1) / 2
        if not torch.allclose(probe.grad, torch.full_like(probe.grad, expected)):
            raise RuntimeError(f"gradient probe: {probe.grad.flatten()[0].item()} instead of {expected}")
        self.optimizer.zero_grad(set_to_none=True)

    def _sum_gradients(self) -> None:
        """One all-reduce over all gradients laid end to end. A parameter without one counts as zero."""
        if self.world.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def _assert_replicas_agree(self) -> None:
        """All ranks start from the same weights."""
        total = sum(parameter.detach().double().sum().item() for parameter in self.parameters)
        if len(set(self.world.gather(total))) > 1:
            raise RuntimeError("ranks started from different weights")


def scheduled_learning_rate(settings: OptimizerConfig, step: int, num_steps: int) -> float:
    """Learning rate of step `step`, from 0: linear warm-up, then linear to zero after the last step, or constant."""
    warmup = settings.warmup_steps or math.ceil(settings.warmup_share * num_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (num_steps - step) / max(1, num_steps - warmup)
