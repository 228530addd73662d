"""suite=packing: how full rows become, how even ranks are, and how long planning takes; over every step of an epoch.

Lengths are drawn as the recipe's data has them: log-normal, with the published mean and maximum. Costs are the model's
own, from its shape. Beside ours stand two plans that are common: documents as they come, each into the last row if it
fits there, or into the first row that it fits; rows go to ranks in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.flops import document_cost
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.packing_page import render
from falcon_h1r.config import Config
from falcon_h1r.data.packing_plan import (
    DocumentCost,
    Indices,
    RowPlan,
    deal_rows,
    epoch_rows,
    plan_rows,
    shuffled,
    stratified_order,
)
from falcon_h1r.tracking import Tracker

NUM_DOCUMENTS, MEAN_TOKENS, ROW_TOKENS = 3_110_000, 9_700, 49_152
SIGMA = 0.9  # of the logarithm; ours: the sources give mean and maximum
ROWS_PER_RANK = 4
RANKS = (8, 64, 256)
BATCH_SEQUENCES, BATCH_RANKS = 512, (8, 64)  # of the published recipe's steps


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the costliest rank is above the mean, over steps."""

    num_ranks: int
    num_steps: int
    mean: float
    median: float
    p99: float
    worst: float

    @classmethod
    def of(cls, num_ranks: int, excess: Sequence[float]) -> Spread:
        found = np.array(excess)
        return cls(
            num_ranks,
            len(found),
            float(found.mean()),
            float(np.median(found)),
            float(np.quantile(found, 0.99)),
            float(found.max()),
        )


@dataclass(frozen=True, slots=True)
class PackingResult:
    """One way of packing an epoch."""

    name: str
    fill: float
    seconds: float  # of CPU time, to plan the epoch's rows
    deal_seconds: dict[int, float]  # of a step, by ranks; added to that
    spreads: list[Spread]


def run_packing_suite(config: Config, folder: Path) -> None:
    """Plan an epoch in every way and write the page."""
    from transformers import FalconH1Config

    cost = document_cost(FalconH1Config(**config.model.architecture))
    lengths = recipe_lengths(NUM_DOCUMENTS, config.seed)
    with (
        Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker,
        tracker.progress(len(WAYS) + 2 * len(BATCH_RANKS), "benchmark", "plans") as progress,
    ):
        results = []
        for name, way in WAYS.items():
            results.append(measure(name, way, lengths, cost, config.seed))
            progress.advance(1, fill=results[-1].fill)
        steps = []
        for name, weighing in (("tokens", DocumentCost()), ("cost", cost)):
            for num_ranks in BATCH_RANKS:
                steps.append((name, sequence_steps(lengths, weighing, cost, num_ranks, config.seed)))
                progress.advance()
    page = render(lengths, cost, results, steps, environment(torch.device("cpu")), command_line())
    Path(config.benchmark.page).write_text(page)


def recipe_lengths(num_documents: int, seed: int) -> Indices:
    """Log-normal lengths with the recipe's mean, none beyond a row: those are drawn again."""
    rng = np.random.default_rng(seed)
    low, high = 1.0, float(ROW_TOKENS)  # of the median, which is sought by halving
    draws = np.exp(SIGMA * rng.standard_normal((4, num_documents)))
    for _ in range(40):
        median = (low + high) / 2
        lengths = _first_within(draws * median)
        low, high = (median, high) if lengths.mean() < MEAN_TOKENS else (low, median)
    return np.maximum(1, lengths).astype(np.int64)


def _first_within(tries: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the tries for each document, (tries, documents), the first that fits a row; else a whole row."""
    lengths = np.full(tries.shape[1], float(ROW_TOKENS))
    for one in tries[::-1]:
        lengths = np.where(one <= ROW_TOKENS, one, lengths)
    return lengths


# -----------------------------------------------------------------------------
# Ways of packing


def next_fit(lengths: Indices, row_tokens: int) -> Indices:
    """The row of each document: the last one, or a new one where it does not fit."""
    row_of, row, room = [], -1, 0
    for length in lengths.tolist():
        if length > room:
            row, room = row + 1, row_tokens
        room -= length
        row_of.append(row)
    return np.array(row_of, np.int64)


def first_fit(lengths: Indices, row_tokens: int) -> Indices:
    """The row of each document: the first that has room, found in a tree of the most room below each node."""
    size = 1 << int(2 * lengths.sum() // row_tokens + 1).bit_length()  # at most one row is less than half full
    room, row_of = [row_tokens] * (2 * size), []
    for length in lengths.tolist():
        node = 1
        while node < size:
            node *= 2
            if room[node] < length:
                node += 1
        row_of.append(node - size)
        room[node] -= length
        while node := node // 2:
            room[node] = max(room[2 * node], room[2 * node + 1])
    return np.array(row_of, np.int64)


def in_order(fit: Callable[[Indices, int], Indices]) -> Callable[[Indices, int], RowPlan]:
    """Rows of shuffled documents as they come."""

    def way(lengths: Indices, seed: int) -> RowPlan:
        order = shuffled(len(lengths), seed, 0)
        return RowPlan.of(order, fit(lengths[order], ROW_TOKENS))

    return way


WAYS: dict[str, Callable[[Indices, int], RowPlan]] = {
    "in order, ranks in turn": in_order(next_fit),
    "first fit, ranks in turn": in_order(first_fit),
    "ours": lambda lengths, seed: epoch_rows(lengths, ROW_TOKENS, seed, 0),
}


def measure(
    name: str, way: Callable[[Indices, int], RowPlan], lengths: Indices, cost: DocumentCost, seed: int
) -> PackingResult:
    """Plan one epoch, then deal every whole step of it, for each number of ranks."""
    started = time.process_time()  # a neighbour on the machine does not count
    plan = way(lengths, seed)
    seconds = time.process_time() - started
    costs = plan.sums(cost.of(lengths))
    deal_seconds, spreads = {}, []
    for num_ranks in RANKS:
        started = time.process_time()
        excess = [peak(dealt) for dealt in dealt_costs(costs, num_ranks, seed, balanced=name == "ours")]
        deal_seconds[num_ranks] = (time.process_time() - started) / len(excess)
        spreads.append(Spread.of(num_ranks, excess))
    fill = float(lengths.sum()) / (len(plan) * ROW_TOKENS)
    return PackingResult(name, fill, seconds, deal_seconds, spreads)


def dealt_costs(costs: NDArray[np.float64], num_ranks: int, seed: int, balanced: bool) -> Iterator[list[float]]:
    """The cost of every rank, step after step."""
    batch_rows = ROWS_PER_RANK * num_ranks
    if balanced:
        costs = costs[stratified_order(costs, batch_rows, 0, seed, 0)]
    else:  # rows of first fit grow emptier to the end
        costs = costs[shuffled(len(costs), seed, -1)]
    for start in range(0, len(costs) - batch_rows + 1, batch_rows):
        step = costs[start : start + batch_rows]
        if balanced:
            yield [float(step[rows].sum()) for rows in deal_rows(step.tolist(), num_ranks)]
        else:
            yield step.reshape(ROWS_PER_RANK, num_ranks).sum(0).tolist()


def peak(costs: Sequence[float]) -> float:
    """How far the costliest rank is above the mean."""
    return max(costs) / (sum(costs) / len(costs)) - 1


def sequence_steps(lengths: Indices, weighing: DocumentCost, cost: DocumentCost, num_ranks: int, seed: int) -> Spread:
    """Steps of a given number of documents instead, their rows planned by `weighing`; every whole step of an epoch."""
    order, costs = shuffled(len(lengths), seed, 0), cost.of(lengths)
    excess = []
    for start in range(0, len(order) - BATCH_SEQUENCES + 1, BATCH_SEQUENCES):
        taken = order[start : start + BATCH_SEQUENCES]
        rows = plan_rows(lengths[taken].tolist(), ROW_TOKENS, num_ranks, weighing)
        of_row = [float(costs[taken[row]].sum()) for row in rows]
        excess.append(peak([sum(of_row[rank::num_ranks]) for rank in range(num_ranks)]))
    return Spread.of(num_ranks, excess)
