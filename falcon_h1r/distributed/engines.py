"""The engine that the config asks for."""

from __future__ import annotations

from transformers import FalconH1ForCausalLM

from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.distributed.engine import Engine, TorchEngine
from falcon_h1r.distributed.world import World


def open_engine(
    model: FalconH1ForCausalLM, optimizer: OptimizerConfig, num_steps: int, world: World, engine: EngineConfig
) -> Engine:
    """An engine around the model, its gradient scale proven by a probe.

    Raises:
        InputError: where the model's heads cannot be shared by a sequence group's ranks, or deepspeed is missing.
        RuntimeError: where the probe finds gradients averaged or counted twice.
    """
    if engine.name == "deepspeed":
        from falcon_h1r.distributed.deepspeed_engine import DeepSpeedEngine

        opened: Engine = DeepSpeedEngine(model, optimizer, num_steps, world, engine)
    else:
        opened = TorchEngine(model, optimizer, num_steps, world, engine)
    opened.check_gradient_scale()
    return opened
