"""Which documents a step of the cold start learns from, and which of them share a row.

Two ways of making a step, both functions of lengths, seed and step alone, so that nothing but the step has to be
remembered to resume, on however many ranks:

    sft.batch_sequences   so many documents of the shuffled epochs; rows are planned for the step
    sft.batch_rows        so many rows; an epoch's documents are packed at once, so that its rows are full
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from falcon_h1r.config import SFTConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.data.packing_plan import (
    FALCON_H1_7B,
    DocumentCost,
    Indices,
    RowPlan,
    dealt_in_turn,
    epoch_rows,
    plan_rows,
    stratified_order,
)

KEPT_EPOCHS = 2  # a step asks for its own epoch's rows, and at a border for the next one's


class StepPlan(Protocol):
    """The steps of a run."""

    @property
    def steps_per_epoch(self) -> float: ...

    @property
    def tokens_per_step(self) -> float:
        """On average."""
        ...

    def rows(self, step: int, num_ranks: int) -> list[list[int]]:
        """Documents by row; rank r has rows r, r + num_ranks and so on, equally many as every other."""
        ...

    def describe(self, num_ranks: int) -> str:
        """What a step is made of, in a line."""
        ...


class SequenceSteps:
    """`batch_sequences` documents a step: epochs shuffled, laid end to end and cut."""

    def __init__(
        self, lengths: Indices, batch_sequences: int, row_tokens: int, seed: int, cost: DocumentCost = FALCON_H1_7B
    ) -> None:
        self._lengths, self._batch, self._row_tokens = lengths, batch_sequences, row_tokens
        self._seed, self._cost = seed, cost

    @property
    def steps_per_epoch(self) -> float:
        return len(self._lengths) / self._batch

    @property
    def tokens_per_step(self) -> float:
        return self._batch * float(self._lengths.mean())

    def rows(self, step: int, num_ranks: int) -> list[list[int]]:
        taken = step_indices(len(self._lengths), step, self._batch, self._seed)
        lengths = self._lengths[taken].tolist()
        plan = plan_rows(lengths, self._row_tokens, num_ranks, self._cost)
        return [[taken[place] for place in sorted(row)] for row in plan]

    def describe(self, num_ranks: int) -> str:
        return f"{self._batch} sequences a step, {self.tokens_per_step:,.0f} tokens on average"


class RowSteps:
    """`batch_rows` rows a step: the rows of every epoch, laid end to end and cut."""

    def __init__(
        self, lengths: Indices, batch_rows: int, row_tokens: int, seed: int, cost: DocumentCost = FALCON_H1_7B
    ) -> None:
        self._lengths, self._batch, self._row_tokens = lengths, batch_rows, row_tokens
        self._seed, self._costs = seed, cost.of(lengths)
        self._first_rows = [0]  # of each epoch that has been packed so far, and of the next
        self._epochs: dict[int, tuple[RowPlan, Indices]] = {}

    @property
    def steps_per_epoch(self) -> float:
        return len(self._epoch(0)[0]) / self._batch

    @property
    def tokens_per_step(self) -> float:
        return float(self._lengths.sum()) / self.steps_per_epoch

    @property
    def fill(self) -> float:
        """The share of the first epoch's rows that holds tokens."""
        return float(self._lengths.sum()) / (len(self._epoch(0)[0]) * self._row_tokens)

    def rows(self, step: int, num_ranks: int) -> list[list[int]]:
        rows, epoch = [], 0
        for number in range(step * self._batch, (step + 1) * self._batch):
            while number >= self._end_of(epoch):
                epoch += 1
            plan, order = self._epoch(epoch)
            rows.append(plan.row(int(order[number - self._first_rows[epoch]])))
        return dealt_in_turn(rows, [float(self._costs[row].sum()) for row in rows], num_ranks)

    def describe(self, num_ranks: int) -> str:
        line = f"{self._batch} rows a step, {self.fill:.2%} full, {self.tokens_per_step:,.0f} tokens on average"
        num_empty = -self._batch % num_ranks
        return f"{line}; {num_empty} more that are empty, for {num_ranks} data ranks" if num_empty else line

    def _end_of(self, epoch: int) -> int:
        """The number of the first row after an epoch's."""
        while len(self._first_rows) <= epoch + 1:
            self._epoch(len(self._first_rows) - 1)
        return self._first_rows[epoch + 1]

    def _epoch(self, epoch: int) -> tuple[RowPlan, Indices]:
        """An epoch's rows, and the order in which they are learnt from. The first row of `epoch` has to be known."""
        if epoch not in self._epochs:
            plan = epoch_rows(self._lengths, self._row_tokens, self._seed, epoch)
            first = self._first_rows[epoch]
            order = stratified_order(plan.sums(self._costs), self._batch, -first % self._batch, self._seed, epoch)
            if len(self._first_rows) == epoch + 1:
                self._first_rows.append(first + len(plan))
            self._epochs[epoch] = plan, order
            if len(self._epochs) > KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
        return self._epochs[epoch]


def plan_steps(config: SFTConfig, lengths: Indices, seed: int, cost: DocumentCost = FALCON_H1_7B) -> StepPlan:
    """The steps as the config makes them."""
    row_tokens = config.limits.row_tokens
    if config.batch_rows is not None:
        return RowSteps(lengths, config.batch_rows, row_tokens, seed, cost)
    assert config.batch_sequences is not None, "config_checks asks for one of the two"
    return SequenceSteps(lengths, config.batch_sequences, row_tokens, seed, cost)


def total_steps(config: SFTConfig, steps_per_epoch: float) -> int:
    """Optimizer steps of the run: as configured, or as many as the epochs need."""
    if config.num_steps is not None:
        return config.num_steps
    return max(1, round(config.num_epochs * steps_per_epoch))


def step_documents(documents: Sequence[Document], step: int, batch_sequences: int, seed: int) -> list[Document]:
    """The documents of a step of so many sequences."""
    return [documents[index] for index in step_indices(len(documents), step, batch_sequences, seed)]


def step_indices(num_documents: int, step: int, batch_sequences: int, seed: int) -> list[int]:
    """Which documents they are: epochs shuffled by (seed, epoch), laid end to end and cut into batches."""
    first = step * batch_sequences
    places = (divmod(position, num_documents) for position in range(first, first + batch_sequences))
    return [epoch_order(num_documents, epoch, seed)[index] for epoch, index in places]


@lru_cache(maxsize=KEPT_EPOCHS)
def epoch_order(num_documents: int, epoch: int, seed: int) -> tuple[int, ...]:
    """A permutation of the documents, from seed and epoch alone."""
    order = list(range(num_documents))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)
