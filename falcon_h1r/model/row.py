"""Where documents begin and end in a packed row, in the forms that attention, convolution and scan need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.data.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class Row:
    """T tokens in whole documents."""

    position_ids: Tensor  # (T), from 0 in each document
    seq_idx: Tensor  # (T)
    lengths: tuple[int, ...]
    document_ends: Tensor  # (num_documents): each document's last token
    cu_seqlens: Tensor  # (num_documents + 1) int32: where documents begin, and T
    buckets: list[tuple[int, int]]  # (documents, longest) of each bucket of similar lengths
    slots: Tensor  # (T): where each token goes in the buckets' right-padded buffer

    @classmethod
    def from_batch(cls, batch: PackedBatch) -> Row:
        """Group documents by powers of two of their length: right-padding wastes less than half a bucket."""
        by_size: dict[int, list[int]] = {}
        for document, length in enumerate(batch.lengths):
            by_size.setdefault((length - 1).bit_length(), []).append(document)
        buckets, first_slot, offset = [], [0] * len(batch.lengths), 0
        for _, documents in sorted(by_size.items()):
            longest = max(batch.lengths[document] for document in documents)
            for rank, document in enumerate(documents):
                first_slot[document] = offset + rank * longest
            buckets.append((len(documents), longest))
            offset += len(documents) * longest
        device = batch.seq_idx.device
        slots = torch.tensor(first_slot, device=device)[batch.seq_idx] + batch.position_ids
        ends = batch.document_ends
        cu_seqlens = F.pad(ends + 1, (1, 0)).to(torch.int32)
        return cls(batch.position_ids, batch.seq_idx, batch.lengths, ends, cu_seqlens, buckets, slots)

    @property
    def is_bucket(self) -> bool:
        """Whether the row is one bucket without padding, documents in order: all are equally long."""
        return len(set(self.lengths)) == 1
