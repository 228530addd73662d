"""Peaks of real training steps, each configuration in fresh processes: what the plan's memory is checked against.

A process imports everything and trains a miniature, so that libraries, threads and their workspaces are there. Then
it builds the model and trains two steps:

    step 1    one short row                       makes the optimizer's states
    step 2    one short row, then the whole row   gradients and states stand when the whole row comes

On a CPU the peak is that of the resident set beyond what was held before the model; the C library is told to give
freed blocks of 64 KiB and more back at once, so that resident memory follows the tensors. On a GPU it is torch's own
count of bytes in tensors. A measured configuration of several ranks counts its fullest one.

    python -m falcon_h1r.planning.measure < measured_run.json
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from falcon_h1r.benchmark.cases import equal_lengths, mixed_lengths
from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.memory import MemoryEstimate, estimate_memory
from falcon_h1r.planning.shape import Widths, count_parameters

SHORT_ROW_TOKENS = 64
MINIATURE = {"num_hidden_layers": 1, "vocab_size": 512}
# glibc: blocks from here on come from the system and go back to it; one arena, so that threads share what is free.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One configuration to train."""

    name: str
    architecture: dict[str, Any]
    row_tokens: int
    num_documents: int = 1
    mixed: bool = False  # documents of log-normal lengths, else of equal ones
    dtype: str = "float32"
    lora_rank: int = 0
    checkpointing: str = "none"
    sequence_parallel: int = 1
    num_ranks: int = 1
    engine: str = "torch"
    zero_stage: int = 0
    optimizer_offload: bool = False

    @property
    def document_lengths(self) -> tuple[int, ...]:
        make = mixed_lengths if self.mixed else equal_lengths
        return make(self.row_tokens, self.num_documents)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of the fullest rank."""

    peak_bytes: int  # beyond what was held before the model
    state_bytes: int  # the same after the last step: weights and optimizer states
    device: str  # cpu or cuda


class MeasurementFailed(RuntimeError):
    """A measured process ended with an error; its last line."""


def measure(run: MeasuredRun, max_seconds: float = 600.0) -> Measured:
    """Train the configuration in processes of its own.

    Raises:
        MeasurementFailed: where one of them ends with an error, or none has come to its end in time.
    """
    port = _free_port()
    processes = [_start(run, rank, port) for rank in range(run.num_ranks)]
    results = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=max_seconds)
            if process.returncode != 0:
                raise MeasurementFailed(errors.strip().splitlines()[-1] if errors.strip() else "killed")
            results.append(json.loads(output.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        raise MeasurementFailed(f"stopped after {max_seconds:g} s") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()
    fullest = max(results, key=lambda result: result["peak_bytes"])
    return Measured(**fullest)


def _start(run: MeasuredRun, rank: int, port: int) -> subprocess.Popen[str]:
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    if run.num_ranks > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(run.num_ranks),
            "LOCAL_WORLD_SIZE": str(run.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "DS_ACCELERATOR": "cpu",
        }
    process = subprocess.Popen(
        [sys.executable, "-m", "falcon_h1r.planning.measure"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(run)))
    process.stdin.close()
    process.stdin = None
    return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -----------------------------------------------------------------------------
# In the measured process


def train_and_measure(run: MeasuredRun) -> Measured:
    """What this rank held at most."""
    import torch

    from falcon_h1r.benchmark.meter import PeakMemory, resident_bytes
    from falcon_h1r.distributed.world import World

    torch.set_num_threads(1)
    world = World.start(run.sequence_parallel)
    miniature = {**run.architecture, **MINIATURE}
    _train(replace(run, architecture=miniature, row_tokens=2 * SHORT_ROW_TOKENS, num_documents=1, mixed=False), world)
    before = PeakMemory(world.device)
    engine, rows = _prepare(run, world)
    peak = PeakMemory(world.device)
    _train_steps(engine, rows)
    held = peak.peak_bytes - before.start_bytes
    state = resident_bytes(world.device) - before.start_bytes
    world.stop()
    return Measured(held, state, world.device.type)


def _train(run: MeasuredRun, world: Any) -> None:
    engine, rows = _prepare(run, world)
    _train_steps(engine, rows)


def _prepare(run: MeasuredRun, world: Any) -> tuple[Any, list[Any]]:
    """The engine, and a short row beside the whole one."""
    import torch

    from falcon_h1r.benchmark.workloads import Setup, random_model, random_row
    from falcon_h1r.config import LoRAConfig
    from falcon_h1r.config_run import EngineConfig
    from falcon_h1r.config_stage import OptimizerConfig
    from falcon_h1r.distributed.engines import open_engine
    from falcon_h1r.model.load import DTYPES
    from falcon_h1r.model.lora import add_adapters
    from falcon_h1r.model.precision import compute_in

    kept = run.dtype if run.lora_rank or run.dtype == "float64" else "float32"  # trained weights are float32
    setup = Setup(run.architecture, kept, world.device.type, None, 1, seed=0)
    torch.manual_seed(0)
    model = random_model(setup.shape(), setup)
    compute_in(model, DTYPES[run.dtype])
    if run.lora_rank:
        add_adapters(model, LoRAConfig(rank=run.lora_rank), seed=0)
    settings = EngineConfig(
        name=run.engine,
        zero_stage=run.zero_stage,
        optimizer_offload=run.optimizer_offload,
        sequence_parallel=run.sequence_parallel,
        activation_checkpointing=run.checkpointing,
    )
    engine = open_engine(model, OptimizerConfig(), num_steps=10, world=world, engine=settings)
    vocabulary = run.architecture["vocab_size"]
    rows = [random_row(sizes, vocabulary, setup) for sizes in ((SHORT_ROW_TOKENS,), run.document_lengths)]
    return engine, rows


def _train_steps(engine: Any, rows: list[Any]) -> None:
    from falcon_h1r.benchmark.paths import engine_loss

    short = rows[0]
    for step in ([short], rows):
        for row in step:
            engine.backward(engine_loss(engine, row))
        engine.step()


# -----------------------------------------------------------------------------
# What the plan says of it


def predicted(run: MeasuredRun, backend: str) -> MemoryEstimate:
    """The plan's peak for a measured run."""
    from falcon_h1r.benchmark.workloads import Setup
    from falcon_h1r.config import LoRAConfig

    config = Setup(run.architecture, run.dtype, backend, None, 1, seed=0).shape()
    lora = LoRAConfig(rank=run.lora_rank)
    layout = Layout(
        num_gpus=run.num_ranks,
        row_tokens=run.row_tokens,
        dtype=run.dtype,
        engine=run.engine,
        zero_stage=run.zero_stage,
        optimizer_offload=run.optimizer_offload,
        sequence_parallel=run.sequence_parallel,
        checkpointing=run.checkpointing,
        lora_rank=run.lora_rank,
        lora_targets=tuple(lora.target_modules) if run.lora_rank else (),
        backend=backend,
        padded_share=padded_share(run.document_lengths) if backend == "cpu" else None,
    )
    return estimate_memory(Widths.of(config), count_parameters(config, lora), layout)


def padded_share(lengths: tuple[int, ...]) -> float | None:
    """Of a row, what the buckets of attention on a CPU hold (`Row.from_batch`); None where documents lie in place."""
    if len(set(lengths)) == 1:
        return None
    buckets: dict[int, list[int]] = {}
    for length in lengths:
        buckets.setdefault((length - 1).bit_length(), []).append(length)
    return sum(len(bucket) * max(bucket) for bucket in buckets.values()) / sum(lengths)


if __name__ == "__main__":
    from transformers import logging

    logging.set_verbosity_error()
    print(json.dumps(asdict(train_and_measure(MeasuredRun(**json.loads(sys.stdin.read()))))), flush=True)
