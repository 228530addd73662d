"""Weights, gradients and optimizer state sharded over all ranks, by DeepSpeed's ZeRO (arXiv 1910.02054).

    stage 0   nothing: replicas                stage 2   and gradients
    stage 1   optimizer state                  stage 3   and weights, made whole unit by unit as the forward goes

DeepSpeed's engine is driven directly, without its own idea of gradient accumulation: any number of `backward`, then one
`step`. Its data-parallel group is the whole world, sequence groups included and not registered with it: a rank's
gradient is that of its rows, or of its tokens and heads, and the sum over all ranks is the whole either way. DeepSpeed
averages over that group; `_accumulate` undoes it, here and nowhere else.

Weights are float32 (falcon_h1r.model.precision says why), so that DeepSpeed's own mixed precision is never on.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from transformers import FalconH1ForCausalLM

from falcon_h1r.config_run import EngineConfig
from falcon_h1r.data.packing import PackedBatch, pack_row, weightless_document
from falcon_h1r.distributed.deepspeed_settings import deepspeed_config
from falcon_h1r.distributed.engine import Engine, StepOutcome, adamw, set_learning_rate
from falcon_h1r.distributed.fragments import MOMENTS, WEIGHT, Fragment, ReadState, load_replica, replica_fragments
from falcon_h1r.distributed.world import World
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.logprobs import packed_logprobs

WEIGHTS_SHARDED = 3  # the ZeRO stage


class Unit(nn.Module):
    """A part of the model whose weights are made whole together while a function of them runs.

    The packed forward reads weights past their modules' own forwards, where ZeRO-3 has its hooks. So a unit is what
    DeepSpeed hooks, and what is called in it is ours. It has the part's parameters and no modules below: with modules,
    it would have to be a "leaf" to DeepSpeed, and those reduce the gradient of an embedding before it is there.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        for name, parameter in part.named_parameters():
            self.register_parameter(name.replace(".", "/"), parameter)

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Units(nn.Module):
    """The model as DeepSpeed sees it: embedding, layers, last norm and head, each a unit."""

    def __init__(self, model: FalconH1ForCausalLM) -> None:
        super().__init__()
        self.units = nn.ModuleList(Unit(part) for part in parts_of(model))
        assert {id(p) for p in self.parameters()} == {id(p) for p in model.parameters()}

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def parts_of(model: FalconH1ForCausalLM) -> list[nn.Module]:
    """What is made whole together."""
    return [model.model.embed_tokens, *model.model.layers, model.model.final_layernorm, model.lm_head]


class Place(NamedTuple):
    """A stretch of a parameter in an optimizer's line."""

    group: int  # which line
    offset: int  # in the line
    start: int  # in the parameter
    length: int


class CheckedAdamW(torch.optim.AdamW):
    """AdamW that is asked before each update whether the gradient is fit for one.

    DeepSpeed looks for infinities only in its own mixed precision.
    """

    is_fit: Callable[[], bool]

    def step(self, closure: Any = None) -> Any:
        return super().step(closure) if self.is_fit() else None


class DeepSpeedEngine(Engine):
    """Sharded training at any ZeRO stage."""

    def _start(self, engine: EngineConfig) -> None:
        self.stage = engine.zero_stage
        self.lockstep = self.stage >= 2 or self.world.sequence.size > 1
        self.shares_gradient = self.stage > 0
        self._num_backwards = 0
        self._may_update, self._grad_norm = True, math.nan
        deepspeed = import_deepspeed(self.world.device)
        self._gathered = deepspeed.zero.GatheredParameters
        units, self._parts = Units(self.model), parts_of(self.model)
        self._unit_of = {id(part): unit for part, unit in zip(self._parts, units.units, strict=True)}
        if self.stage == WEIGHTS_SHARDED:
            self.plan = replace(self.plan, around=self._in_unit)
        self._adamw = adamw(self.model, self.settings, CheckedAdamW)
        self._adamw.is_fit = self._is_fit
        _join_alone(self.world)
        self._engine, *_ = deepspeed.initialize(
            model=units,
            optimizer=self._adamw,
            config=deepspeed_config(engine, self.settings, on_gpu=self.world.device.type == "cuda"),
            dist_init_required=False,
        )

    # -------------------------------------------------------------------------
    # A step

    def logprobs(self, batch: PackedBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self._engine(self._row_logprobs, batch, temperature)
        return found

    def _row_logprobs(self, batch: PackedBatch, temperature: float) -> tuple[Tensor, Tensor]:
        hidden = packed_hidden_states(self.model, batch, self.plan)
        return packed_logprobs(self.model, hidden, batch, temperature, self.plan)

    def _in_unit(self, part: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called in the unit of this part, so that ZeRO-3 makes its weights whole."""
        return partial(self._unit_of[id(part)], function)

    def _accumulate(self, loss: Tensor) -> None:
        self._num_backwards += 1
        self._engine.backward(loss * self.world.size, scale_wrt_gas=False)  # it averages over the world

    def _update(self) -> StepOutcome:
        set_learning_rate(self._adamw, self.learning_rate)
        self._engine.step()
        self._num_backwards = 0
        if self.stage > 0:
            self._grad_norm = float(self._engine.get_global_grad_norm())
        applied = math.isfinite(self._grad_norm) and self._engine.was_step_applied()
        return StepOutcome(self._grad_norm, applied)

    def _is_fit(self) -> bool:
        """Asked by the optimizer, at stage 0 once and else once for each of its flat partitions."""
        self._measure_gradient()
        if self.stage == 0:
            bound = self.settings.clip_grad_norm or math.inf
            self._grad_norm = float(nn.utils.clip_grad_norm_(self.trained.values(), bound))
            return self._may_update and math.isfinite(self._grad_norm)
        return self._may_update and math.isfinite(float(self._engine.optimizer._global_grad_norm))

    def _measure_gradient(self) -> None:
        """This rank's part of what the optimizer is about to use, where norms by layer were asked for."""
        if self._layer_squares is None:
            return
        about_to_step = {id(flat) for group in self._adamw.param_groups for flat in group["params"]}
        for name, parameter in self.trained.items():
            if self.stage == 0:
                self._measure(name, parameter.grad)
            elif (place := self._own_place(parameter)) is not None:
                flat = self._flat_partitions()[place.group]
                if id(flat) in about_to_step and flat.grad is not None:
                    self._measure(name, flat.grad[place.offset : place.offset + place.length])

    def discard_step(self) -> None:
        if self.stage < 2:
            self._engine.optimizer.zero_grad()  # nothing has left this rank yet
        elif self._num_backwards:
            self._step_in_vain()
        self._num_backwards = 0

    def _step_in_vain(self) -> float:
        """DeepSpeed's step without the update: what ranks have reduced is thrown away. Returns the gradient's norm."""
        self._may_update = False
        try:
            return self._update().grad_norm
        finally:
            self._may_update = True

    def check_gradient_scale(self) -> None:
        """As the interface says, by the probe's norm: entries are spread over ranks by then.

        A short row goes through the whole model beside the probe, for every parameter has to have a gradient.
        """
        size = 2 * self.world.sequence.size
        row = pack_row([weightless_document(size)]).to(self.world.device)
        probe, part = self._first_parameter()
        logprobs, _ = self.logprobs(row)
        probed = self.plan.around(part, lambda: (self.world.rank + 1) * probe.sum())
        self._accumulate(self._engine(probed) + 0.0 * logprobs.sum())
        norm = self._step_in_vain()
        self._check_probe(torch.tensor(norm / math.sqrt(self._numel(probe))))

    def _first_parameter(self) -> tuple[nn.Parameter, nn.Module]:
        """The first parameter that is trained, and the part of the model that holds it."""
        probe = next(iter(self.trained.values()))
        return probe, next(part for part in self._parts if any(p is probe for p in part.parameters()))

    # -------------------------------------------------------------------------
    # State. ZeRO-1 and ZeRO-2 lay the parameters of a group end to end and give each rank a stretch of that line;
    # ZeRO-3 cuts each parameter into equal stretches, the last one padded.

    def fragments(self) -> list[Fragment]:
        if self.stage == 0:
            return replica_fragments(self.trained, self._adamw, self.world)
        return [
            Fragment(name, start, {kind: line for kind, line in lines.items() if line is not None})
            for name, parameter in self.trained.items()
            for start, lines in self._own_stretch(parameter)
        ]

    @torch.no_grad()
    def load_state(self, read: ReadState, steps_done: int, updates_done: int) -> None:
        if self.stage == 0:
            load_replica(self.trained, self._adamw, read, updates_done)
        else:
            if updates_done:
                self._make_moments(updates_done)
            for name, parameter in self.trained.items():
                for start, lines in self._own_stretch(parameter):
                    for kind, line in lines.items():
                        if line is not None:
                            line.copy_(read(name, kind, start, len(line)))
            self._spread_weights()
        self.steps_done, self.updates_done = steps_done, updates_done

    def _flat_partitions(self) -> list[Tensor]:
        """The optimizer's own parameters, by group or sub-group."""
        zero = self._engine.optimizer
        sharded = self.stage == WEIGHTS_SHARDED
        flat: list[Tensor] = zero.fp32_partitioned_groups_flat if sharded else zero.single_partition_of_fp32_groups
        return flat

    def _own_place(self, parameter: nn.Parameter) -> Place | None:
        """Where this rank's stretch of a parameter lies in the optimizer's lines; None where it has none."""
        if self.stage == WEIGHTS_SHARDED:
            group, offset, padded = self._engine.optimizer.grad_position[self._engine.optimizer.get_param_id(parameter)]
            start = padded * self.world.rank
            length = min(padded, self._numel(parameter) - start)
        else:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's
            if mapping is None:
                return None
            group, offset = mapping.param_group_index, mapping.get_hp_fragment_address().start
            start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
        return Place(group, offset, start, length) if length > 0 else None

    def _own_stretch(self, parameter: nn.Parameter) -> Iterator[tuple[int, dict[str, Tensor | None]]]:
        """What this rank holds of a parameter: where it starts, and views of its lines by kind; nothing, or one."""
        place = self._own_place(parameter)
        if place is None:
            return
        group, offset, start, length = place
        flat = self._flat_partitions()[group]
        state = self._adamw.state.get(flat, {})
        lines = {WEIGHT: flat, **{kind: state.get(kind) for kind in MOMENTS}}
        yield (
            start,
            {kind: None if line is None else line.detach()[offset : offset + length] for kind, line in lines.items()},
        )

    def _make_moments(self, updates_done: int) -> None:
        """The optimizer's state as its first step would make it."""
        for flat in self._flat_partitions():
            state = self._adamw.state[flat]
            state["step"] = torch.tensor(float(updates_done))
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(flat)

    def _spread_weights(self) -> None:
        """After this rank's partitions were written: every rank gets the weights that its forward reads."""
        zero = self._engine.optimizer
        if self.stage < WEIGHTS_SHARDED:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:  # small ones, kept whole on every rank
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def whole(self) -> AbstractContextManager[None]:
        if self.stage < WEIGHTS_SHARDED:
            return nullcontext()
        self.world.barrier()  # meet before a collective of the GPUs
        gathered: AbstractContextManager[None] = self._gathered(list(self.model.parameters()))
        return gathered

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        self.world.barrier()  # likewise
        for name, parameter in self.model.named_parameters():
            with self._gathered([parameter], enabled=self.stage == WEIGHTS_SHARDED):
                yield name, parameter.detach()

    @staticmethod
    def _numel(parameter: nn.Parameter) -> int:
        """Of the whole parameter, also where ZeRO-3 has put it away."""
        return getattr(parameter, "ds_numel", parameter.numel())


def import_deepspeed(device: torch.device) -> Any:
    """The library, quiet, on this device."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # else it asks for what is installed
    os.environ.setdefault("LOCAL_RANK", "0")  # which it demands of a world of one, too
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if device.type == "cpu":  # a reduction in shared memory, which it would compile for a minute on first use
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _join_alone(world: World) -> None:
    """DeepSpeed wants a process group, also in a world of one."""
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
