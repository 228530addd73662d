"""One step of the cold start, laid out over ranks, micro-batches, sequence groups and ZeRO stages: its gradient has to
be the same.

The step's documents are very unequal, with difficulty weights between 0.5 and 1.75, and fill four rows. The gradient is
read where every engine has it: Adam's first moment after one unclipped step is (1 - beta1) times the gradient.

Beside them stands what is usually done: normalise over a rank's own tokens, or a micro-batch's, and average.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_for_rank
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.world import World, join_sequence_group
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.load import DTYPES, random_weights
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.sft.loop import train_step
from falcon_h1r.sft.losses import weighted_cross_entropy

NUM_ROWS = 4
LENGTHS = (200, 3, 150, 2, 90, 5, 60, 11, 128, 40, 70, 17, 230, 8)  # tokens of a step's documents
ROW_TOKENS = 264
BETA1 = 0.9
ADAMW = OptimizerConfig(learning_rate=1e-3, beta1=BETA1, weight_decay=0.0, clip_grad_norm=0.0, schedule="constant")
Gradients = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a step is spread. Data ranks times micro-batches is always NUM_ROWS."""

    name: str
    num_ranks: int
    sequence_parallel: int = 1
    zero_stage: int | None = None  # null: the torch engine
    dtype: str = "float32"

    @property
    def engine(self) -> EngineConfig:
        name, stage = ("torch", 0) if self.zero_stage is None else ("deepspeed", self.zero_stage)
        return EngineConfig(name=name, zero_stage=stage, sequence_parallel=self.sequence_parallel)


@dataclass(frozen=True, slots=True)
class LayoutResult:
    """What a layout gave."""

    gradients: Gradients  # of the first step, by parameter
    losses: list[float]  # of every step


REFERENCE = Layout("1 rank x 4 micro-batches", 1)
LAYOUTS = (
    REFERENCE,
    Layout("2 ranks x 2", 2),
    Layout("4 ranks x 1", 4),
    Layout("2 sequence groups of 2 ranks x 2", 4, sequence_parallel=2),
    *(Layout(f"2 ranks x 2, ZeRO-{stage}", 2, zero_stage=stage) for stage in range(4)),
    Layout("2 sequence groups of 2 ranks x 2, ZeRO-3", 4, sequence_parallel=2, zero_stage=3),
)


def step_documents(vocab_size: int, seed: int = 0) -> list[Document]:
    """Unequal documents of random tokens and weights; the first third of each is a prompt, without loss."""
    rng = random.Random(seed)
    documents = []
    for index, length in enumerate(LENGTHS):
        prompt, weight = max(1, length // 3), rng.choice([0.5, 1.0, 1.25, 1.75])
        documents.append(
            Document(
                input_ids=[rng.randrange(vocab_size) for _ in range(length)],
                loss_weights=[0.0] * prompt + [weight] * (length - prompt),
                uid=str(index),
            )
        )
    return documents


def make_model(architecture: dict[str, Any], dtype: str) -> Any:
    """The same random weights in every process."""
    from transformers import FalconH1Config

    torch.manual_seed(0)
    return random_weights(FalconH1Config(**architecture), torch.float64).to(DTYPES[dtype])


def work_in_layout(world: World, layout: Layout, architecture: dict[str, Any], num_steps: int) -> LayoutResult:
    """Train on this rank; every rank returns the whole result."""
    model = make_model(architecture, layout.dtype)
    documents = step_documents(architecture["vocab_size"])
    engine = open_engine(model, ADAMW, num_steps, world, layout.engine)
    losses = [train_step(engine, documents, ROW_TOKENS)["loss"]]
    own = [(f.name, f.start, f.tensors["exp_avg"].clone()) for f in engine.fragments()]
    gradients: Gradients = {}
    for name, start, part in (fragment for rank in world.gather(own) for fragment in rank):
        parameter = engine.trained[name]
        line = gradients.setdefault(
            name, torch.zeros(getattr(parameter, "ds_numel", parameter.numel()), dtype=part.dtype)
        )
        line[start : start + len(part)] = part / (1 - BETA1)
    losses += [train_step(engine, documents, ROW_TOKENS)["loss"] for _ in range(num_steps - 1)]
    return LayoutResult(gradients, losses)


def run_layout(layout: Layout, architecture: dict[str, Any], num_steps: int) -> LayoutResult:
    """Train in processes of one thread, joined by gloo."""
    result: LayoutResult = on_ranks(
        layout.num_ranks, partial(_in_grid, layout=layout, architecture=architecture, num_steps=num_steps)
    )
    return result


def _in_grid(world: World, layout: Layout, architecture: dict[str, Any], num_steps: int) -> LayoutResult:
    sequence = join_sequence_group(world.rank, world.size, layout.sequence_parallel)
    return work_in_layout(
        World(world.rank, world.size, world.device, world.group, sequence), layout, architecture, num_steps
    )


# -----------------------------------------------------------------------------
# What is usually done


def naive_gradients(architecture: dict[str, Any], num_ranks: int, by_micro_batch: bool = False) -> Gradients:
    """The gradient of the mean over ranks of each rank's own weighted mean, or over all micro-batches of each one's.

    In float64, rank after rank in one process.
    """
    model = make_model(architecture, "float64")
    documents = step_documents(architecture["vocab_size"])
    for rank in range(num_ranks):
        rows = pack_for_rank(documents, ROW_TOKENS, rank, num_ranks)
        groups = [[row] for row in rows] if by_micro_batch else [rows]
        for group in groups:
            denominator = sum(row.loss_weights.sum(dtype=torch.float64).item() for row in group)
            for row in group:
                _row_loss(model, row, denominator * num_ranks * len(groups)).backward()
    return {name: parameter.grad.flatten() for name, parameter in model.named_parameters()}


def _row_loss(model: Any, row: PackedBatch, denominator: float) -> Tensor:
    logprobs, _ = packed_logprobs(model, packed_hidden_states(model, row), row)
    return weighted_cross_entropy(logprobs, row, denominator)


def gradient_error(ours: Gradients, reference: Gradients) -> float:
    """The largest relative error of a parameter's gradient: |g - reference| / |reference|, Euclidean norms."""
    return max(
        ((ours[name].double() - expected.double()).norm() / expected.double().norm()).item()
        for name, expected in reference.items()
    )


def loss_error(ours: list[float], reference: list[float]) -> float:
    """The largest relative error of a step's loss."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))


# -----------------------------------------------------------------------------
# Processes


def on_ranks(num_ranks: int, work: Callable[[World], Any]) -> Any:
    """What `work`, which can be pickled, returns on rank 0 of so many new processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    processes = [
        context.Process(target=_rank_main, args=(rank, num_ranks, port, work, sender if rank == 0 else None))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    sender.close()
    try:
        return pickle.loads(receiver.recv_bytes())  # EOFError where rank 0 died; it has said why
    finally:
        for process in processes:
            process.join(timeout=60)
            process.kill()


def _rank_main(rank: int, num_ranks: int, port: int, work: Callable[[World], Any], sender: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(num_ranks))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks)
    world = World(rank, num_ranks, torch.device("cpu"), dist.group.WORLD if num_ranks > 1 else None)
    result = work(world)
    if sender is not None:
        sender.send_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
