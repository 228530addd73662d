"""Which documents share a row, and which rows a rank learns from: plans made of lengths alone.

A document is never divided, so that filling rows is bin packing. *Best fit decreasing* takes the longest document
first and puts it into the row that it leaves the least room in.

Full rows do not take equally long: attention grows with the square of a document's length, all else of the model
linearly. `DocumentCost` says how much of either, and rows are dealt to ranks by cost.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

WINDOW_DOCUMENTS = 65_536  # packed together: enough for rows without gaps
FULL_SHARE = 0.99  # a row that holds less is packed anew with the next window's documents
CARRIED_SHARE = 0.25  # of a window, at most: where long documents never fill a row, windows would grow
EVEN_SHARE = 0.001  # ranks whose costliest is so little above the mean are not evened out further
MOST_PAIRED = 8  # rows of a rank up to which two are exchanged at once; more can be evened out one by one
WORD_BITS = 256  # of the map of rows with room; the fastest of 64 to 1024


@dataclass(frozen=True, slots=True)
class DocumentCost:
    """What a document of L tokens costs: linear * L + quadratic * L^2, in any unit."""

    linear: float = 1.0
    quadratic: float = 0.0

    def of(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        return lengths * (self.linear + self.quadratic * lengths)


# Falcon-H1-7B, in units of what is linear in a token: 330 MFLOP a layer, and 2 * 12 heads * 128 * L of attention.
# falcon_h1r.benchmark.flops.document_cost counts it for any shape.
FALCON_H1_7B = DocumentCost(1.0, 9.3e-6)


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Row r holds `documents[starts[r]:starts[r + 1]]`, in this order; no row is empty."""

    documents: Indices
    starts: Indices  # (num_rows + 1)

    @classmethod
    def of(cls, documents: Indices, row_of: Indices) -> RowPlan:
        """From the row of each document; documents keep their order within a row."""
        order = np.argsort(row_of, kind="stable")
        counts = np.bincount(row_of) if len(row_of) else np.zeros(0, np.int64)
        return cls(documents[order], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> list[int]:
        """The documents of a row."""
        taken: list[int] = self.documents[self.starts[number] : self.starts[number + 1]].tolist()
        return taken

    def sums(self, values: NDArray[np.float64] | Indices) -> NDArray[np.float64]:
        """Of each row, the sum over its documents of a value that every document has: (num_rows)."""
        if not len(self):
            return np.zeros(0)
        return np.add.reduceat(values[self.documents].astype(np.float64), self.starts[:-1])

    def take(self, rows: Indices) -> RowPlan:
        """Some of the rows, in a new order."""
        counts = np.diff(self.starts)[rows]
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[rows] - ends + counts, counts)
        return RowPlan(self.documents[places], np.concatenate([[0], ends]).astype(np.int64))

    @classmethod
    def joined(cls, plans: Sequence[RowPlan]) -> RowPlan:
        """All rows of several plans."""
        counts = np.concatenate([np.diff(plan.starts) for plan in plans])
        return cls(np.concatenate([plan.documents for plan in plans]), np.concatenate([[0], np.cumsum(counts)]))


# -----------------------------------------------------------------------------
# Filling rows


def check_lengths(lengths: Indices, row_tokens: int) -> None:
    """
    Raises:
        ValueError: where a document does not fit a row: cut, a trace would lose its answer.
    """
    if len(lengths) and lengths.max() > row_tokens:
        raise ValueError(f"a document of {lengths.max()} tokens does not fit a row of {row_tokens}")


def best_fit(lengths: Indices, row_tokens: int) -> Indices:
    """The row of each document by best fit decreasing; of rows with equal room, the one that was filled last.

    Rows are kept by their room, 0 to `row_tokens`, and a bit says of every room whether there is such a row: the
    smallest room that suffices is the next bit that is set. Linear in the documents, where the textbook's is quadratic.

    Raises:
        ValueError: where a document does not fit a row.
    """
    check_lengths(lengths, row_tokens)
    order = np.argsort(-lengths, kind="stable")
    rows_with: dict[int, list[int]] = {}  # by room
    words, summary = [0] * (row_tokens // WORD_BITS + 1), 0  # bits by room; which words are not zero
    row_of, num_rows = [0] * len(lengths), 0
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        word, bit = divmod(length, WORD_BITS)
        if bits := words[word] >> bit:
            room = length + (bits & -bits).bit_length() - 1
        elif later := summary >> (word + 1):
            word += (later & -later).bit_length()
            bits = words[word]
            room = word * WORD_BITS + (bits & -bits).bit_length() - 1
        else:
            room = row_tokens
            rows_with.setdefault(room, []).append(num_rows)
            num_rows += 1
        row_of[index] = row = rows_with[room].pop()
        if not rows_with[room]:
            word = room // WORD_BITS
            words[word] &= ~(1 << room % WORD_BITS)
            if not words[word]:
                summary &= ~(1 << word)
        room -= length
        rows_with.setdefault(room, []).append(row)
        word = room // WORD_BITS
        words[word] |= 1 << room % WORD_BITS
        summary |= 1 << word
    return np.array(row_of, np.int64)


def shuffled(num_documents: int, seed: int, epoch: int) -> Indices:
    """A permutation from seed and epoch alone: random bits, sorted. PCG64's are the same in every version of numpy."""
    key = random.Random(f"{seed}/{epoch}").getrandbits(128)
    return np.argsort(np.random.PCG64(key).random_raw(num_documents), kind="stable")


def epoch_rows(
    lengths: Indices, row_tokens: int, seed: int, epoch: int, window_documents: int = WINDOW_DOCUMENTS
) -> RowPlan:
    """An epoch's documents, each once, in full rows: a function of lengths, seed and epoch.

    Shuffled documents are packed window after window. A window's rows that are not full are taken apart, the emptiest
    first, and their documents packed with the next window's; the last window's rows stay as they are.

    Raises:
        ValueError: where a document does not fit a row.
    """
    order = shuffled(len(lengths), seed, epoch)
    carried, full = order[:0], []
    for start in range(0, len(order), window_documents):
        pool = np.concatenate([carried, order[start : start + window_documents]])
        rows = RowPlan.of(pool, best_fit(lengths[pool], row_tokens))
        if start + window_documents < len(order):
            tokens = rows.sums(lengths)
            emptiest_first = np.argsort(tokens, kind="stable")
            num_carried = np.cumsum(np.diff(rows.starts)[emptiest_first])
            is_carried = (tokens[emptiest_first] < FULL_SHARE * row_tokens) & (
                num_carried <= CARRIED_SHARE * window_documents
            )
            carried = rows.take(emptiest_first[is_carried]).documents
            rows = rows.take(np.sort(emptiest_first[~is_carried]))
        full.append(rows)
    return RowPlan.joined(full)


def stratified_order(costs: NDArray[np.float64], batch_rows: int, num_before: int, seed: int, epoch: int) -> Indices:
    """A shuffle of an epoch's rows in which every step has one row of each of `batch_rows` strata of cost.

    A step's rows then cost what those of any other do, and no step has so many cheap or dear ones that ranks cannot be
    even. Within its stratum a row goes to a step by chance. The first `num_before` rows, which end a step of the epoch
    before, and what is left for the next epoch are drawn by chance from all.

    Args:
        costs: (num_rows).
    """
    order = shuffled(len(costs), seed, -1 - epoch)
    num_steps, num_after = divmod(len(costs) - num_before, batch_rows)
    if num_steps < 1:
        return order
    before, within, after = np.split(order, [num_before, len(costs) - num_after])
    by_cost = within[np.argsort(costs[within], kind="stable")].reshape(batch_rows, num_steps)
    bits = shuffled(by_cost.size, seed, -1 - epoch).reshape(by_cost.shape)
    strata = np.take_along_axis(by_cost, np.argsort(bits, axis=1), axis=1)
    return np.concatenate([before, strata.T.reshape(-1), after])


# -----------------------------------------------------------------------------
# Dealing rows to ranks


def deal_rows(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Which rows each rank has: equally many, so that the costliest rank is near the mean.

    The costliest row first, each to the rank with the least so far that may still have one; then rows of the costliest
    rank are exchanged for others' as long as that helps. A rank's rows are in order of cost, so that ranks that meet in
    every micro-batch wait little for each other.

    Args:
        costs: of each row; a multiple of `num_ranks` rows.
    """
    assert len(costs) % num_ranks == 0, "ranks have equally many rows"
    rows_per_rank = len(costs) // num_ranks
    dealt: list[list[int]] = [[] for _ in range(num_ranks)]
    lightest = [(0.0, rank) for rank in range(num_ranks)]  # a heap of (cost, rank), of ranks that may have more
    for row in sorted(range(len(costs)), key=lambda row: -costs[row]):
        cost, rank = heapq.heappop(lightest)
        dealt[rank].append(row)
        if len(dealt[rank]) < rows_per_rank:
            heapq.heappush(lightest, (cost + costs[row], rank))
    if num_ranks > 1 and rows_per_rank > 1:
        dealt = _exchanged(np.array(costs), np.array(dealt)).tolist()
    return [sorted(rows, key=lambda row: (-costs[row], row)) for rows in dealt]


def _exchanged(costs: NDArray[np.float64], dealt: Indices) -> Indices:
    """Exchange rows between the costliest rank and another, one for one or two for two, as long as the peak sinks.

    Args:
        costs: of each row.
        dealt: (R, k), the rows of each rank.
    """
    k = dealt.shape[1]
    singles = np.arange(k)[:, None]
    pairs = np.array(list(combinations(range(k), 2))) if 4 <= k <= MOST_PAIRED else None
    totals = costs[dealt].sum(1)
    for _ in range(2 * dealt.size):
        high = int(totals.argmax())
        if totals[high] <= (1 + EVEN_SHARE) * totals.mean():
            break
        for places in (singles, pairs):
            if places is not None and (exchange := _best_exchange(costs[dealt], totals, high, places)) is not None:
                ours, rank, theirs = exchange
                dealt[high, ours], dealt[rank, theirs] = dealt[rank, theirs], dealt[high, ours]
                totals[[high, rank]] = costs[dealt[[high, rank]]].sum(1)
                break
        else:
            break
    return dealt


def _best_exchange(
    held: NDArray[np.float64], totals: NDArray[np.float64], high: int, places: Indices
) -> tuple[Indices, int, Indices] | None:
    """Rank `high`'s places, the other rank and its places, whose exchange lowers the costlier of the two most.

    Args:
        held: (R, k), the cost of each rank's rows.
        places: (c, m), the choices of m places of a rank that may be exchanged together.
    """
    sums = held[:, places].sum(2)  # (R, c)
    gain = sums[high][:, None, None] - sums  # (c, R, c)
    peak = np.maximum(totals[high] - gain, totals[:, None] + gain)
    peak[:, high] = np.inf
    ours, rank, theirs = np.unravel_index(int(peak.argmin()), peak.shape)
    if peak[ours, rank, theirs] >= totals[high] * (1 - 1e-12):
        return None
    return places[ours], int(rank), places[theirs]


def dealt_in_turn(rows: Sequence[list[int]], costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """A step's rows in the order in which rank r takes every `num_ranks`-th from its r-th on.

    Empty rows are added, so that every rank has equally many.
    """
    num_empty = -len(rows) % num_ranks
    dealt = deal_rows([*costs, *[0.0] * num_empty], num_ranks)
    padded = [*rows, *[[] for _ in range(num_empty)]]
    return [padded[row] for turn in zip(*dealt, strict=True) for row in turn]


def plan_rows(
    lengths: Sequence[int], row_tokens: int, num_ranks: int = 1, cost: DocumentCost = FALCON_H1_7B
) -> list[list[int]]:
    """Rows for a step whose documents are given: as few as ranks can share evenly, each rank's of nearly the same cost.

    Costliest first, each document goes to the rank with the least so far, whose documents then fill its rows evenly, or
    where that is too much for one, by best fit. If a rank's do not fit, rows of nearly the same tokens are filled
    instead and dealt by cost; then one more row a rank is tried. Documents stay whole. Deterministic: ties keep the
    order given.

    Raises:
        ValueError: where a document does not fit a row.

    Returns:
        Document indices by row, a multiple of `num_ranks` rows, empty ones where there are too few documents: rank r
        has rows r, r + num_ranks and so on.
    """
    tokens = np.array(lengths, np.int64)
    check_lengths(tokens, row_tokens)
    costs: list[float] = cost.of(tokens).tolist()
    rows_per_rank = max(1, -(-sum(lengths) // (row_tokens * num_ranks)))
    by_rank = _spread_evenly(range(len(lengths)), costs, num_ranks)
    while True:
        shared = [_rows_within(documents, tokens, row_tokens, rows_per_rank) for documents in by_rank]
        whole = [sorted(rows, key=lambda row: -sum(costs[i] for i in row)) for rows in shared if rows is not None]
        if len(whole) == num_ranks:
            return [row for turn in zip(*whole, strict=True) for row in turn]
        rows = _spread_evenly(range(len(lengths)), lengths, rows_per_rank * num_ranks)
        if all(tokens[row].sum() <= row_tokens for row in rows):
            return dealt_in_turn(rows, [sum(costs[index] for index in row) for row in rows], num_ranks)
        rows_per_rank += 1


def _rows_within(documents: list[int], tokens: Indices, row_tokens: int, num_rows: int) -> list[list[int]] | None:
    """A rank's documents in so many rows, evenly or else by best fit; None where they do not fit."""
    rows = _spread_evenly(documents, tokens.tolist(), num_rows)
    if all(tokens[row].sum() <= row_tokens for row in rows):
        return rows
    row_of = best_fit(tokens[documents], row_tokens).tolist()
    if max(row_of) >= num_rows:
        return None
    return [
        [index for index, row in zip(documents, row_of, strict=True) if row == number] for number in range(num_rows)
    ]


def _spread_evenly(documents: Iterable[int], weights: Sequence[float], num_groups: int) -> list[list[int]]:
    """Heaviest first, each to the group that weighs least so far."""
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    lightest = [(0.0, group) for group in range(num_groups)]  # a heap of (weight, group)
    for index in sorted(documents, key=lambda index: -weights[index]):
        weight, group = lightest[0]
        groups[group].append(index)
        heapq.heapreplace(lightest, (weight + weights[index], group))
    return groups
