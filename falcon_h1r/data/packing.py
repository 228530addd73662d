"""Packed rows: whole documents, end to end, in one row of T tokens without padding between them.

Entry t of every field is about token t *given its prefix*: `loss_weights[t]` weighs the loss of predicting
token t, so a document's first token, which nothing predicts, has weight 0. Targets are thereby aligned before
any sharding over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

RL_FIELDS = ("advantages", "sampler_logprobs", "old_policy_logprobs")


@dataclass(frozen=True, slots=True)
class Document:
    """One tokenised sample. The optional fields, one entry a token, are what RL knows of its rollouts."""

    input_ids: list[int]
    loss_weights: list[float]  # 0 on the prompt; the first is always 0
    advantages: list[float] | None = None
    sampler_logprobs: list[float] | None = None
    uid: str = ""

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.loss_weights) > 0
        assert self.loss_weights[0] == 0.0, "nothing predicts a document's first token"

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One row of T tokens. `seq_idx` numbers its documents from 0; `lengths` are theirs, in order.

    >>> row = pack_row([Document([5, 6, 7], [0, 1, 1]), Document([8, 9], [0, 2])])
    >>> row.seq_idx.tolist(), row.position_ids.tolist(), row.loss_weights.tolist()
    ([0, 0, 0, 1, 1], [0, 1, 2, 0, 1], [0.0, 1.0, 1.0, 0.0, 2.0])
    """

    input_ids: Tensor  # (T) int64
    position_ids: Tensor  # (T) int64, from 0 in each document
    seq_idx: Tensor  # (T) int64
    loss_weights: Tensor  # (T) float32
    lengths: tuple[int, ...]
    advantages: Tensor | None = None  # (T)
    sampler_logprobs: Tensor | None = None  # (T)
    old_policy_logprobs: Tensor | None = None  # (T)
    uids: tuple[str, ...] = field(default=())

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device) -> PackedBatch:
        """The same row on another device."""
        tensors = {
            name: value.to(device)
            for name in ("input_ids", "position_ids", "seq_idx", "loss_weights", *RL_FIELDS)
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **tensors)

    @property
    def document_ends(self) -> Tensor:
        """Index of each document's last token: (num_documents)."""
        return torch.tensor(self.lengths, device=self.input_ids.device).cumsum(0) - 1


def pack_row(documents: Sequence[Document]) -> PackedBatch:
    """Lay whole documents end to end in one row."""

    def joined(name: str) -> Tensor | None:
        parts = [getattr(document, name) for document in documents]
        if any(part is None for part in parts):
            return None
        return torch.tensor([value for part in parts for value in part], dtype=torch.float32)

    lengths = [len(document) for document in documents]
    return PackedBatch(
        input_ids=torch.tensor([token for document in documents for token in document.input_ids]),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        seq_idx=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        loss_weights=torch.tensor([weight for document in documents for weight in document.loss_weights]),
        lengths=tuple(lengths),
        advantages=joined("advantages"),
        sampler_logprobs=joined("sampler_logprobs"),
        uids=tuple(document.uid for document in documents),
    )


def plan_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Best-fit decreasing: which documents share a row, so that no row exceeds `row_tokens`.

    Returns document indices by row. Documents stay whole; a longer one than a row is a ValueError, for a trace
    that loses its end loses its answer. Deterministic: ties keep the order given.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > row_tokens:
            raise ValueError(f"a document of {lengths[index]} tokens does not fit a row of {row_tokens}")
        fitting = [row for row in range(len(rows)) if free[row] >= lengths[index]]
        if fitting:
            best = min(fitting, key=lambda row: free[row])
            rows[best].append(index)
            free[best] -= lengths[index]
        else:
            rows.append([index])
            free.append(row_tokens - lengths[index])
    return rows


def pack_for_rank(documents: Sequence[Document], row_tokens: int, rank: int, world_size: int) -> list[PackedBatch]:
    """Pack a step's documents into rows and return those of one rank.

    Every rank packs the same list and gets the same number of rows, of nearly equal tokens: longest row first to
    the rank that holds least so far. A rank left short receives its rows' worth of work as a one-token document
    of weight 0, so that all ranks meet the same collectives.
    """
    rows = plan_rows([len(document) for document in documents], row_tokens)
    return deal_rows([[documents[i] for i in row] for row in rows], world_size)[rank]


def deal_rows(rows: Sequence[Sequence[Document]], world_size: int) -> list[list[PackedBatch]]:
    """Deal rows to ranks by tokens; each rank ends with the same number of rows."""
    rows_per_rank = max(1, -(-len(rows) // world_size))
    dealt: list[list[Sequence[Document]]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for row in sorted(rows, key=lambda row: -sum(map(len, row))):
        open_ranks = [rank for rank in range(world_size) if len(dealt[rank]) < rows_per_rank]
        rank = min(open_ranks, key=lambda r: (tokens[r], r))
        dealt[rank].append(row)
        tokens[rank] += sum(map(len, row))
    filler = rows[0][0] if rows else None
    for rank_rows in dealt:
        while len(rank_rows) < rows_per_rank:
            rank_rows.append([weightless_document(filler)])
    return [[pack_row(row) for row in rank_rows] for rank_rows in dealt]


def weightless_document(like: Document | None) -> Document:
    """One token of weight 0, with the RL fields that `like` has: work without a gradient."""
    rl = like is not None and like.advantages is not None
    return Document([0], [0.0], advantages=[0.0] if rl else None, sampler_logprobs=[0.0] if rl else None)
