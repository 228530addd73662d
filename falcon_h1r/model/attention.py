"""Causal attention within each document of a packed row, without a mask of T x T.

    out_t = sum over s <= t of the same document: softmax_s(scale * q_t . k_s) v_s

query (T, H, d), key and value (T, K, d) with H a multiple of K; outputs (T, H, d).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.model.row import Row


def bucketed_attention(query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float) -> Tensor:
    """Documents of a bucket stand under each other, padded on the right.

    A causal query never looks right, so real tokens see no padding and the backend's memory-lean causal path
    applies; the pads' outputs are dropped.
    """
    if row.is_bucket:  # in place already
        (shape,) = row.buckets
        query, key, value = (tensor.unflatten(0, shape).transpose(1, 2) for tensor in (query, key, value))
        return _attend(query, key, value, scale)
    outputs = []
    buckets = zip(*(_by_bucket(tensor, row) for tensor in (query, key, value)), strict=True)
    for bucket_query, bucket_key, bucket_value in buckets:
        outputs.append(_attend(bucket_query, bucket_key, bucket_value, scale))
    return torch.cat(outputs).index_select(0, row.slots)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(documents, H, longest, d) and (documents, K, longest, d) -> (documents * longest, H, d)."""
    if query.is_cuda:  # in float32 the memory-lean backend there wants a KV head for every query head
        key, value = (heads.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for heads in (key, value))
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return attended.transpose(1, 2).flatten(0, 1)


def _by_bucket(tensor: Tensor, row: Row) -> list[Tensor]:
    """(T, H, d) -> for each bucket (documents, H, longest, d)."""
    sizes = [documents * longest for documents, longest in row.buckets]
    buffer = tensor.new_zeros(sum(sizes), *tensor.shape[1:]).index_copy(0, row.slots, tensor)
    return [
        part.unflatten(0, bucket).transpose(1, 2) for part, bucket in zip(buffer.split(sizes), row.buckets, strict=True)
    ]
