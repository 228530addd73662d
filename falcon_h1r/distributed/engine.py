"""The engine: a model that trains. Stages call `logprobs`, `backward`, `step` and do not know how it is spread.

Losses arrive divided by the global denominators of the step, so its gradient is the plain sum of all ranks' and
micro-batches' gradients. An engine that averages undoes that in its own `backward` and nowhere else; a probe at start
proves it (`check_gradient_scale`).

`TorchEngine` keeps a replica on every rank; `falcon_h1r.distributed.deepspeed_engine` shards what a rank holds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import FalconH1ForCausalLM

from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.distributed.fragments import Fragment, ReadState, load_replica, replica_fragments
from falcon_h1r.distributed.layer_norms import LayerSquares
from falcon_h1r.distributed.world import World
from falcon_h1r.model.hybrid import ForwardPlan, packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.model.parameter_groups import parameter_groups
from falcon_h1r.model.sequence import check_degree


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What became of a step."""

    grad_norm: float  # of the whole gradient, before clipping
    applied: bool  # False where a loss or the gradient was not finite: the weights stayed as they were
    layer_grad_norms: Mapping[str, float] = field(default_factory=dict)  # before clipping; where they were asked for


class Engine(ABC):
    """What the stages see of an engine, and what all engines have in common."""

    # Whether every backward meets the other ranks: then all of them have to go through the same micro-batches.
    lockstep: bool
    # Whether each rank holds a part of the gradient when it updates, rather than all of it.
    shares_gradient = False

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
            engine: what a layer keeps for its backward and how ranks share; the grid of ranks is the world's.

        Raises:
            InputError: where the model's heads cannot be shared by the ranks of a sequence group.
        """
        engine = engine or EngineConfig()
        check_degree(world.sequence.size, model.config.mamba_n_heads, model.config.mamba_n_groups)
        self.plan = ForwardPlan(world.sequence, engine.activation_checkpointing, engine.activation_offload)
        self.model, self.world = model, world
        self.num_steps, self.steps_done, self.updates_done = num_steps, 0, 0
        self.settings = optimizer
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._is_healthy = torch.ones((), dtype=torch.bool, device=world.device)  # this rank's losses of this step
        self._layer_squares: LayerSquares | None = None  # of the step under way, where they were asked for
        self._assert_replicas_agree()
        self._start(engine)

    @abstractmethod
    def _start(self, engine: EngineConfig) -> None:
        """What is an engine's own of the set-up."""

    # -------------------------------------------------------------------------
    # A step

    @abstractmethod
    def logprobs(self, batch: PackedBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logprobs (T) and entropies (T) of a packed row's weighted tokens, each given its prefix.

        Every rank of a sequence group gets the whole row's, and computes and backpropagates the same loss.
        """

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's part of the loss."""
        self._is_healthy = self._is_healthy & torch.isfinite(loss.detach())
        self._accumulate(loss)

    def step(self, by_layer: bool = False) -> StepOutcome:
        """Sum gradients over ranks, clip, update, zero.

        Ranks first meet on the CPU's group, so that none waits for another in a collective of the GPUs. A loss that
        is not finite, on any rank, or a gradient that is not, leaves the weights alone; the schedule goes on.

        Args:
            by_layer: also measure the norm of each layer's gradient, for which it is read once more.
        """
        self._layer_squares = LayerSquares(self.trained) if by_layer else None
        if self.world.any(not self._is_healthy.item()):
            self.discard_step()
            outcome = StepOutcome(math.nan, applied=False)
        else:
            outcome = self._update()
        if self._layer_squares is not None and outcome.applied:
            norms = self._layer_squares.norms(outcome.grad_norm, self.world if self.shares_gradient else None)
            outcome = replace(outcome, layer_grad_norms=norms)
        self._layer_squares = None
        self._is_healthy.fill_(True)
        self.steps_done += 1
        self.updates_done += outcome.applied
        return outcome

    def skip_step(self) -> None:
        """A step without anything to learn from: the schedule goes on, the weights stay."""
        self.steps_done += 1

    @abstractmethod
    def discard_step(self) -> None:
        """Forget the gradients of a step that will not be finished; every rank has to."""

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next."""
        return scheduled_learning_rate(self.settings, self.steps_done, self.num_steps)

    @abstractmethod
    def _accumulate(self, loss: Tensor) -> None:
        """Add the gradient of a finite or infinite loss to this rank's."""

    @abstractmethod
    def _update(self) -> StepOutcome:
        """Reduce, clip, update unless the norm is not finite, zero."""

    def _measure(self, name: str, gradient: Tensor | None) -> None:
        """Note a piece of a parameter's gradient, where norms by layer were asked for."""
        if self._layer_squares is not None and gradient is not None:
            self._layer_squares.add(name, gradient)

    # -------------------------------------------------------------------------
    # Proof at start

    @abstractmethod
    def check_gradient_scale(self) -> None:
        """Prove on a probe that ranks' gradients are summed, neither averaged nor counted twice.

        Rank r backpropagates (r + 1) * sum(p) of the first parameter: each entry has to come out as the sum of
        1..size.

        Raises:
            RuntimeError: where it does not.
        """

    def _check_probe(self, gradient: Tensor) -> None:
        expected = self.world.size * (self.world.size + 1) / 2
        if not torch.allclose(gradient, torch.full_like(gradient, expected)):
            raise RuntimeError(f"gradient probe: {gradient.flatten()[0].item()} instead of {expected}")

    def _assert_replicas_agree(self) -> None:
        """All ranks start from the same weights."""
        total = sum(parameter.detach().double().sum().item() for parameter in self.trained.values())
        if len(set(self.world.gather(total))) > 1:
            raise RuntimeError("ranks started from different weights")

    # -------------------------------------------------------------------------
    # State

    @abstractmethod
    def fragments(self) -> list[Fragment]:
        """What this rank has to write of the training state; all ranks' together are the whole of it."""

    @abstractmethod
    def load_state(self, read: ReadState, steps_done: int, updates_done: int) -> None:
        """Take on the state of a checkpoint, every rank its own part of it."""

    @abstractmethod
    def whole(self) -> AbstractContextManager[None]:
        """While it lasts, every rank holds all of the model's weights: for sampling. Every rank has to enter it."""

    @abstractmethod
    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, whole, one after the other; every rank has to go through all of them."""


class TorchEngine(Engine):
    """Data and sequence parallelism by summing gradients once a step.

    A rank's gradient is that of its rows, or under sequence parallelism of its tokens and heads in them: the sum over
    all ranks is the whole either way.
    """

    def _start(self, engine: EngineConfig) -> None:
        self.lockstep = self.world.sequence.size > 1
        self.parameters = list(self.trained.values())
        self.optimizer = adamw(self.model, self.settings, torch.optim.AdamW)

    def logprobs(self, batch: PackedBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        hidden = packed_hidden_states(self.model, batch, self.plan)
        return packed_logprobs(self.model, hidden, batch, temperature, self.plan)

    def _accumulate(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> StepOutcome:
        self._sum_gradients()
        for name, parameter in self.trained.items():
            self._measure(name, parameter.grad)
        grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_grad_norm or math.inf))
        applied = math.isfinite(grad_norm)
        if applied:
            set_learning_rate(self.optimizer, self.learning_rate)
            self.optimizer.step()
        self.discard_step()
        return StepOutcome(grad_norm, applied)

    def discard_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def check_gradient_scale(self) -> None:
        probe = self.parameters[0]
        ((self.world.rank + 1) * probe.sum()).backward()
        self._sum_gradients()
        assert probe.grad is not None
        self._check_probe(probe.grad)
        self.discard_step()

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

    def fragments(self) -> list[Fragment]:
        return replica_fragments(self.trained, self.optimizer, self.world)

    def load_state(self, read: ReadState, steps_done: int, updates_done: int) -> None:
        load_replica(self.trained, self.optimizer, read, updates_done)
        self.steps_done, self.updates_done = steps_done, updates_done

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, parameter.detach()) for name, parameter in self.model.named_parameters())


AdamW = TypeVar("AdamW", bound=torch.optim.AdamW)


def adamw(model: nn.Module, settings: OptimizerConfig, kind: type[AdamW]) -> AdamW:
    """AdamW over the model's parameter groups."""
    return kind(
        parameter_groups(model.named_parameters(), settings),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Every group's, by its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["learning_rate_multiplier"]


def scheduled_learning_rate(settings: OptimizerConfig, step: int, num_steps: int) -> float:
    """Learning rate of step `step`, from 0: linear warm-up, then linear to zero after the last step, or constant."""
    warmup = settings.warmup_steps or math.ceil(settings.warmup_share * num_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (num_steps - step) / max(1, num_steps - warmup)
