"""Rows hold whole documents, each once, without padding; ranks get the same number of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.data.packing import Document, pack_for_rank, pack_row
from falcon_h1r.data.packing_plan import plan_rows

LENGTH_LISTS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(lengths=LENGTH_LISTS)
def test_every_document_is_in_exactly_one_row_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = plan_rows(lengths, row_tokens=64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)


@given(lengths=st.lists(st.integers(1, 50), min_size=8, max_size=60), num_ranks=st.integers(1, 4))
def test_ranks_are_as_even_as_whole_documents_and_rows_allow(lengths: list[int], num_ranks: int) -> None:
    tokens = [sum(lengths[index] for index in row) for row in plan_rows(lengths, 64, num_ranks)]
    assert len(tokens) % num_ranks == 0
    by_rank = [sum(tokens[rank::num_ranks]) for rank in range(num_ranks)]
    assert max(by_rank) - min(by_rank) <= max(lengths)


@given(lengths=LENGTH_LISTS, world_size=st.integers(1, 5))
def test_ranks_together_hold_every_token_once_and_have_equally_many_rows(lengths: list[int], world_size: int) -> None:
    documents = [Document([7 + i] * n, [0.0] + [1.0] * (n - 1), uid=str(i)) for i, n in enumerate(lengths)]
    by_rank = [pack_for_rank(documents, 64, rank, world_size) for rank in range(world_size)]
    assert len({len(rows) for rows in by_rank}) == 1
    tokens = sorted(token for rows in by_rank for row in rows for token in row.input_ids.tolist() if token != 0)
    assert tokens == sorted(token for document in documents for token in document.input_ids)
    weight = sum(row.loss_weights.sum().item() for rows in by_rank for row in rows)
    assert weight == sum(sum(document.loss_weights) for document in documents)


@given(lengths=LENGTH_LISTS, world_size=st.integers(1, 5), multiple_of=st.integers(1, 4))
def test_no_document_is_divided_nor_its_tokens_reordered(lengths: list[int], world_size: int, multiple_of: int) -> None:
    documents = {
        str(i): Document(list(range(100 * i, 100 * i + n)), [0.0] + [1.0] * (n - 1), uid=str(i))
        for i, n in enumerate(lengths)
    }
    seen = []
    for rank in range(world_size):
        for row in pack_for_rank(list(documents.values()), 64, rank, world_size, multiple_of):
            assert row.num_tokens % multiple_of == 0
            for uid, part in zip(row.uids, row.input_ids.split(row.lengths), strict=True):
                assert not uid or part.tolist() == documents[uid].input_ids
            seen += [uid for uid in row.uids if uid]
    assert sorted(seen) == sorted(documents)


def test_positions_restart_and_nothing_is_between_documents(random_documents) -> None:
    documents = random_documents([3, 1, 4])
    row = pack_row(documents)
    assert row.num_tokens == 8
    assert row.position_ids.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert row.seq_idx.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert row.input_ids.tolist() == [token for document in documents for token in document.input_ids]
    assert row.document_ends.tolist() == [2, 3, 7]


def test_a_documents_first_token_never_carries_loss() -> None:
    with pytest.raises(AssertionError):
        Document([1, 2], [1.0, 1.0])


def test_rl_fields_travel_with_their_tokens() -> None:
    documents = [
        Document([1, 2], [0.0, 0.5], advantages=[0.0, 2.0], positives=[0.0, 1.0], sampler_logprobs=[0.0, -1.0]),
        Document(
            [3, 4, 5],
            [0.0, 0.5, 0.5],
            advantages=[0.0, -1.0, -1.0],
            positives=[0.0] * 3,
            sampler_logprobs=[0.0, -2.0, -3.0],
        ),
    ]
    row = pack_row(documents)
    assert row.advantages is not None and row.sampler_logprobs is not None
    assert row.positives is not None and row.positives.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert row.advantages.tolist() == [0.0, 2.0, 0.0, -1.0, -1.0]
    assert torch.equal(row.sampler_logprobs, torch.tensor([0.0, -1.0, 0.0, -2.0, -3.0]))
