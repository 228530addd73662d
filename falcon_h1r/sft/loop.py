"""Cold-start SFT: packed rows, difficulty weights, one denominator for the whole step."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from falcon_h1r.checkpoint.stopping import rows_until_stopped
from falcon_h1r.config import LimitsConfig, SFTConfig
from falcon_h1r.data.packing import Document, pack_for_rank
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.sft.losses import weighted_cross_entropy
from falcon_h1r.training_run import SKIPPED, TrainingRun
from falcon_h1r.types import InputError, content_hash


def train_sft(run: TrainingRun, documents: Sequence[Document], config: SFTConfig, seed: int) -> None:
    """Train on `documents` for the steps that are left of the run."""
    engine = run.engine
    engine.model.train()
    for step in run.steps():
        started = time.perf_counter()
        take = partial(step_documents, documents, step, config.batch_sequences, seed)
        metrics = train_step(engine, take(), config.limits.row_tokens)
        metrics["tokens_per_second"] = metrics["tokens"] / (time.perf_counter() - started)
        run.progress.advance(1, int(metrics["tokens"]), loss=metrics["loss"])
        run.finish_step(metrics, take)


def train_step(engine: Engine, batch: Sequence[Document], row_tokens: int) -> dict[str, float]:
    """One optimizer step on the documents of the global batch: pack -> denominators -> learn.

    Raises:
        StopRequested: on every rank, with gradients to discard.
    """
    world = engine.world
    rows = pack_for_rank(batch, row_tokens, world.data_rank, world.data_size, world.sequence.size)
    weighted, unweighted = world.sum_over_data(  # before the first backward
        [
            sum(row.loss_weights.sum(dtype=torch.float64).item() for row in rows),
            sum((row.loss_weights != 0).sum().item() for row in rows),
        ]
    )
    learning_rate = engine.learning_rate
    local_loss, local_nll = 0.0, 0.0
    for row in rows_until_stopped(engine, rows):
        logprobs, _ = engine.logprobs(row)
        loss = weighted_cross_entropy(logprobs, row, weighted)
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
        "tokens": float(sum(len(document) for document in batch)),
        "loss_tokens": unweighted,
        "loss_weight": weighted,
        "sequences": float(len(batch)),
    }


def step_documents(documents: Sequence[Document], step: int, batch_sequences: int, seed: int) -> list[Document]:
    """The documents of a step: epochs shuffled by (seed, epoch), laid end to end and cut into batches.

    A function of the step alone, so that nothing but the step has to be remembered to resume.
    """
    first = step * batch_sequences
    places = (divmod(position, len(documents)) for position in range(first, first + batch_sequences))
    return [documents[epoch_order(len(documents), epoch, seed)[index]] for epoch, index in places]


@lru_cache(maxsize=2)  # a step asks for its own epoch's, and at a border for the next one's
def epoch_order(num_documents: int, epoch: int, seed: int) -> tuple[int, ...]:
    """A permutation of the documents, from seed and epoch alone."""
    order = list(range(num_documents))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


class TrainingData:
    """What a resumed run has to find again: the same documents in the same order, told by uids and lengths."""

    def __init__(self, documents: Sequence[Document], path: str) -> None:
        self._path = path
        told = "\n".join(f"{document.uid} {len(document)}" for document in documents)
        self._state = {"num_documents": len(documents), "hash": content_hash(told)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            InputError: where the data is not that of the checkpoint.
        """
        if state != self._state:
            raise InputError(
                f"sft.data.path={self._path}: {self._state['num_documents']} documents that are not the "
                f"{state['num_documents']} the run was begun with"
            )


def total_steps(config: SFTConfig, num_documents: int) -> int:
    """Optimizer steps of the run: as configured, or as many as the epochs need."""
    if config.num_steps is not None:
        return config.num_steps
    return max(1, round(config.num_epochs * num_documents / config.batch_sequences))


@dataclass(frozen=True, slots=True)
class FittedDocuments:
    """What is left within the limits, and what was not."""

    documents: list[Document]
    num_dropped: int
    num_trimmed: int
    num_weightless: int  # of weight 0: nothing to learn from


def fit_documents(documents: Sequence[Document], limits: LimitsConfig, overlong: str) -> FittedDocuments:
    """Drop, or where `overlong` is "trim" cut on the right, traces beyond the limits. Nothing goes uncounted.

    Raises:
        InputError: where nothing is left to train on.
    """
    kept: list[Document] = []
    dropped = trimmed = weightless = 0
    for document in documents:
        if not any(document.loss_weights):
            weightless += 1
            continue
        prompt = prompt_length(document)
        if prompt <= limits.prompt_tokens and len(document) - prompt <= limits.response_tokens:
            kept.append(document)
        elif overlong == "trim" and prompt <= limits.prompt_tokens:
            end = prompt + limits.response_tokens
            kept.append(replace(document, input_ids=document.input_ids[:end], loss_weights=document.loss_weights[:end]))
            trimmed += 1
        else:
            dropped += 1
    if not kept:
        raise InputError(
            f"sft.limits: none of {len(documents)} traces fits prompt_tokens={limits.prompt_tokens} and "
            f"response_tokens={limits.response_tokens}"
        )
    return FittedDocuments(kept, dropped, trimmed, weightless)


def prompt_length(document: Document) -> int:
    """Tokens before the first that carries loss."""
    return next(index for index, weight in enumerate(document.loss_weights) if weight != 0)
