"""How a run is carried out, whatever it computes: processes, engine, checkpoints, supervision, tracking. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

# ruff: noqa: UP045  (OmegaConf reads these annotations at run time)


@dataclass
class LaunchConfig:
    """Processes on this machine. Under torchrun or `accelerate launch` the launcher's number holds."""

    num_processes: int = 1
    num_nodes: int = 1  # machines of num_processes each; above 1, a launcher has to start every one


@dataclass
class EngineConfig:
    """How the model is spread over ranks."""

    name: str = "torch"  # torch: a replica on every rank; deepspeed: weights and optimizer sharded
    zero_stage: int = 0
    optimizer_offload: bool = False  # with zero_stage 1 to 3: optimizer state and its update in the CPU's memory
    zero_json: Optional[str] = None  # a file of DeepSpeed's own settings, bucket sizes and such (launch/zero*.json)
    sequence_parallel: int = 1  # consecutive ranks that share each row
    activation_checkpointing: str = "none"  # none, layer (keep its input) or selective (and attention's output)
    activation_offload: bool = False  # with layer: the inputs wait in the CPU's memory


@dataclass
class CheckpointConfig:
    """The whole state of training, to resume from: run_dir=... resume=true. Being told to stop always writes one."""

    every_steps: int = 0  # 0: by the clock alone
    every_minutes: float = 30.0  # 0: by steps alone
    keep: int = 2  # the newest so many whole ones
    keep_best: Optional[str] = None  # and the one nearest to the highest value of this metric: dev_... or watch_...
    asynchronous: bool = True  # training goes on while files are written


@dataclass
class SupervisionConfig:
    """When a run gives up on a rank, or on itself."""

    silent_seconds: float = 900.0  # a rank that makes no progress for so long is hung, and ends the job
    lost_seconds: float = 30.0  # a rank that gives no sign of life at all for so long is lost, and ends the job
    wait_seconds: float = 21_600.0  # for other ranks that sample, verify, tokenise or save (on the CPU's group)
    collective_seconds: float = 600.0  # for a collective of the GPUs
    max_skipped_steps: int = 10  # steps in a row whose loss or gradient is not finite; then the run stops
    requeue: bool = True  # under slurm, on SIGUSR1 (its warning before the time limit): save, then scontrol requeue


@dataclass
class TrackingConfig:
    """metrics.jsonl is always written; W&B on request."""

    wandb: str = "disabled"  # disabled, offline or online
    wandb_project: str = "falcon_h1r"
    wandb_entity: Optional[str] = None
    log_every_steps: int = 1
