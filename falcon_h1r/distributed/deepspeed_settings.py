"""What DeepSpeed is told: from our config's keys, and from a file of its own settings that ours leave open.

Imports no torch: `engine.zero_json` is read before anything is loaded.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.types import InputError

DECIDED_BY_US = (  # of DeepSpeed's settings: batches are packed by us, weights float32, the optimizer and its rate ours
    "train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "torch_autocast",
    "data_types",
    "optimizer",
    "scheduler",
    "sequence_parallel_size",
    "activation_checkpointing",
)


DECIDED_OF_ZERO = ("offload_optimizer", "offload_param", "cpu_offload", "mics_shard_size", "zero_hpz_partition_size")


def check_deepspeed(engine: EngineConfig) -> None:
    """What an engine would refuse, before there is a model.

    Raises:
        InputError: where deepspeed is not installed, or as `deepspeed_config` does.
    """
    if engine.name == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError("engine.name=deepspeed: needs deepspeed: pip install --editable '.[gpu]'")
        deepspeed_config(engine, OptimizerConfig(), on_gpu=False)


def deepspeed_config(engine: EngineConfig, optimizer: OptimizerConfig, on_gpu: bool) -> dict[str, Any]:
    """What DeepSpeed is told.

    Raises:
        InputError: where the file of its own settings cannot be read, or sets what the config's own keys decide.
    """
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "overlap_comm": engine.zero_stage == 2 and on_gpu,  # at other stages not allowed without its accumulation
    }
    if engine.optimizer_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    ours = {
        "train_micro_batch_size_per_gpu": 1,  # only counted by DeepSpeed: rows are packed by us
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.clip_grad_norm if engine.zero_stage else 0.0,  # at stage 0 we clip
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # CheckedAdamW is torch's
        "zero_force_ds_cpu_optimizer": False,  # which would have to be compiled
    }
    return ours if engine.zero_json is None else _with_settings_of(Path(engine.zero_json), ours)


def _with_settings_of(path: Path, ours: dict[str, Any]) -> dict[str, Any]:
    """Our settings and those of a user's file, which may add to ours but not change them.

    Raises:
        InputError: where the file is none of JSON, or sets what the config's own keys decide.
    """
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        theirs_of_zero = dict(theirs.pop("zero_optimization", {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"engine.zero_json={path}: not a file of JSON settings ({error})") from None
    zero = ours["zero_optimization"]
    decided = [name for name in theirs if name in {*ours, *DECIDED_BY_US}]
    decided += [f"zero_optimization.{name}" for name in theirs_of_zero if name in {*zero, *DECIDED_OF_ZERO}]
    if decided:
        raise InputError(f"engine.zero_json={path}: {decided[0]} is decided by this config's own keys")
    return {**ours, **theirs, "zero_optimization": {**zero, **theirs_of_zero}}
