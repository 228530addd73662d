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

from falcon_h1r.data.packing_plan import FALCON_H1_7B, DocumentCost, plan_rows

RL_FIELDS = ("advantages", "positives", "sampler_logprobs", "old_policy_logprobs", "reference_logprobs")


@dataclass(frozen=True, slots=True)
class Document:
    """One tokenised sample. The optional fields, one entry a token, are what RL knows of its rollouts."""

    input_ids: list[int]
    loss_weights: list[float]  # 0 on the prompt; the first is always 0
    advantages: list[float] | None = None
    positives: list[float] | None = None  # 1 on the response of a correct rollout, else 0
    sampler_logprobs: list[float] | None = None
    uid: str = ""
    truncated: bool = False  # its end, and the end of its turn, were cut off to fit the limits

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
    positives: Tensor | None = None  # (T), 1 on the responses of correct rollouts
    sampler_logprobs: Tensor | None = None  # (T)
    old_policy_logprobs: Tensor | None = None  # (T)
    reference_logprobs: Tensor | None = None  # (T), of the policy that the KL term holds on to
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
        positives=joined("positives"),
        sampler_logprobs=joined("sampler_logprobs"),
        uids=tuple(document.uid for document in documents),
    )


def pack_for_rank(
    documents: Sequence[Document],
    row_tokens: int,
    rank: int,
    num_ranks: int,
    multiple_of: int = 1,
    cost: DocumentCost = FALCON_H1_7B,
) -> list[PackedBatch]:
    """Pack a step's documents into rows and return those of one rank.

    Every rank plans the same rows and takes every `num_ranks`-th, so that all have the same number of them and meet
    the same collectives.
    """
    rows = plan_rows([len(document) for document in documents], row_tokens, num_ranks, cost)
    return [
        pack_row_evenly([documents[index] for index in sorted(row)], multiple_of, documents)
        for row in rows[rank::num_ranks]
    ]


def pack_row_evenly(own: Sequence[Document], multiple_of: int, others: Sequence[Document] = ()) -> PackedBatch:
    """A row with a tail of weight 0 that makes its tokens a multiple of `multiple_of`; an empty row is that long.

    Args:
        others: of the step: an empty row has the RL fields that they have.
    """
    tail = -sum(len(document) for document in own) % multiple_of if own else multiple_of
    return pack_row([*own, *([weightless_document(tail, own or others)] if tail else [])])


def weightless_document(num_tokens: int, others: Sequence[Document] = ()) -> Document:
    """Tokens of weight 0, with the RL fields that the other documents have: work without a gradient."""
    blank = [0.0] * num_tokens
    credit = blank if others and others[0].advantages is not None else None
    return Document([0] * num_tokens, blank, advantages=credit, positives=credit, sampler_logprobs=credit)
