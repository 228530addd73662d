"""Cold-start SFT: packed rows, difficulty weights, one denominator for the whole step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from falcon_h1r.checkpoint.stopping import rows_until_stopped
from falcon_h1r.config import SFTConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_for_rank, pack_row_evenly
from falcon_h1r.data.packing_plan import FALCON_H1_7B, DocumentCost
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.sft.corpus import Corpus
from falcon_h1r.sft.losses import weighted_cross_entropy
from falcon_h1r.sft.steps import StepPlan, plan_steps
from falcon_h1r.training_run import SKIPPED, TrainingRun


def train_sft(
    run: TrainingRun, documents: Sequence[Document], config: SFTConfig, seed: int, plan: StepPlan | None = None
) -> None:
    """Train on `documents` for the steps that are left of the run.

    Args:
        plan: which of them a step learns from; None: as the config says.
    """
    engine, world = run.engine, run.engine.world
    corpus = Corpus.whole(documents)
    plan = plan or plan_steps(config, corpus.lengths, seed)
    engine.model.train()
    for step in run.steps():
        started = time.perf_counter()
        dealt = plan.rows(step, world.data_size)
        rows = rows_of_rank(corpus, dealt, world.data_rank, world.data_size, world.sequence.size)
        metrics = learn(engine, rows, config.denominator) | count_documents(corpus, dealt)
        metrics["tokens_per_second"] = metrics["tokens"] / (time.perf_counter() - started)
        run.progress.advance(1, int(metrics["tokens"]), loss=metrics["loss"])
        shared = _places(dealt)
        run.finish_step(metrics, partial(_documents, corpus, dealt), (), shared)


def rows_of_rank(
    documents: Sequence[Document], dealt: Sequence[Sequence[int]], rank: int, num_ranks: int, multiple_of: int = 1
) -> list[PackedBatch]:
    """A rank's rows of a step, as its plan has dealt them; no other documents are read."""
    return [pack_row_evenly([documents[index] for index in row], multiple_of) for row in dealt[rank::num_ranks]]


def train_step(
    engine: Engine,
    batch: Sequence[Document],
    row_tokens: int,
    denominator: str = "weights",
    cost: DocumentCost = FALCON_H1_7B,
) -> dict[str, float]:
    """One optimizer step on given documents: pack -> denominators -> learn.

    Raises:
        StopRequested: on every rank, with gradients to discard.
    """
    world = engine.world
    rows = pack_for_rank(batch, row_tokens, world.data_rank, world.data_size, world.sequence.size, cost)
    return learn(engine, rows, denominator) | count_documents(Corpus.whole(batch), [range(len(batch))])


def learn(engine: Engine, rows: Sequence[PackedBatch], denominator: str) -> dict[str, float]:
    """One optimizer step on this rank's rows; every rank has equally many.

    Raises:
        StopRequested: on every rank, with gradients to discard.
    """
    world = engine.world
    weighted, unweighted = world.sum_over_data(  # before the first backward
        [
            sum(row.loss_weights.sum(dtype=torch.float64).item() for row in rows),
            sum((row.loss_weights != 0).sum().item() for row in rows),
        ]
    )
    divisor = weighted if denominator == "weights" else unweighted
    learning_rate = engine.learning_rate
    local_loss, local_nll = 0.0, 0.0
    for row in rows_until_stopped(engine, rows):
        logprobs, _ = engine.logprobs(row)
        loss = weighted_cross_entropy(logprobs, row, divisor)
        engine.backward(loss)
        local_loss += loss.item()
        local_nll -= logprobs.detach().sum().item()
    outcome = engine.step()
    global_loss, global_nll = world.sum_over_data([local_loss, local_nll])
    return {
        "loss": global_loss,
        "loss_unweighted": global_nll / unweighted,
        "learning_rate": learning_rate,
        "grad_norm": outcome.grad_norm,
        SKIPPED: float(not outcome.applied),
        "loss_tokens": unweighted,
        "loss_weight": weighted,
    }


def count_documents(corpus: Corpus, rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """What a step learnt from, over all ranks, by lengths alone."""
    taken = [index for row in rows for index in row]
    return {
        "tokens": float(corpus.lengths[taken].sum()),
        "sequences": float(len(taken)),
        "truncated_sequences": float(corpus.truncated[taken].sum()),
    }


def _documents(corpus: Corpus, rows: Sequence[Sequence[int]]) -> list[Document]:
    """Row after row."""
    return [corpus[index] for row in rows for index in row]


def _places(rows: Sequence[Sequence[int]]) -> list[range]:
    """Where each row's documents stand in `_documents`."""
    places, first = [], 0
    for row in rows:
        places.append(range(first, first + len(row)))
        first += len(row)
    return places
