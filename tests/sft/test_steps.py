"""Steps are functions of lengths, seed and step: the same on any number of ranks, each epoch with every document."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config import Config, SFTConfig
from falcon_h1r.config_checks import check_config
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.dry_run.arithmetic import RankPlan, plan_sft
from falcon_h1r.sft.loop import rows_of_rank
from falcon_h1r.sft.steps import RowSteps, SequenceSteps, StepPlan, plan_steps, step_documents
from falcon_h1r.types import InputError

ROW_TOKENS = 64
LENGTHS = st.lists(st.integers(1, ROW_TOKENS), min_size=1, max_size=40)
WAYS = st.sampled_from([SequenceSteps, RowSteps])


def documents_of(plan: StepPlan, step: int, num_ranks: int) -> list[int]:
    return sorted(index for row in plan.rows(step, num_ranks) for index in row)


@settings(max_examples=60)
@given(way=WAYS, lengths=LENGTHS, batch=st.integers(1, 12), seed=st.integers(0, 3), num_ranks=st.integers(1, 5))
def test_a_step_is_the_same_on_any_number_of_ranks(
    way: Any, lengths: list[int], batch: int, seed: int, num_ranks: int
) -> None:
    tokens = np.array(lengths)
    plan, begun_anew = (way(tokens, batch, ROW_TOKENS, seed) for _ in range(2))
    for step in range(4):
        rows = plan.rows(step, num_ranks)
        assert len(rows) % num_ranks == 0, "every rank has as many micro-batches"
        assert all(sum(lengths[index] for index in row) <= ROW_TOKENS for row in rows)
        assert documents_of(plan, step, 1) == documents_of(plan, step, num_ranks)
    assert begun_anew.rows(3, num_ranks) == rows, "a resumed run asks for a later step first"


@settings(max_examples=60)
@given(way=WAYS, lengths=LENGTHS, batch=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_epoch_has_every_document_once(way: Any, lengths: list[int], batch: int, seed: int) -> None:
    plan = way(np.array(lengths), batch, ROW_TOKENS, seed)
    num_steps = int(np.ceil(3 * plan.steps_per_epoch)) + 3
    seen = Counter(index for step in range(num_steps) for index in documents_of(plan, step, 2))
    assert set(seen) == set(range(len(lengths)))
    if way is SequenceSteps or batch == 1:
        assert max(seen.values()) - min(seen.values()) <= 1


def test_rows_of_a_step_are_whole_rows_of_the_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, ROW_TOKENS, 200)
    plan = RowSteps(lengths, 5, ROW_TOKENS, seed=1)
    one_by_one = RowSteps(lengths, 1, ROW_TOKENS, seed=1)
    num_rows = round(one_by_one.steps_per_epoch)
    epoch = {tuple(one_by_one.rows(step, 1)[0]) for step in range(num_rows)}
    taken = [tuple(row) for step in range(num_rows // 5) for row in plan.rows(step, 3) if row]
    assert len(set(taken)) == len(taken) and set(taken) <= epoch
    assert plan.fill > 0.95
    assert plan.tokens_per_step == pytest.approx(lengths.sum() * 5 / num_rows)


def test_rows_that_ranks_cannot_share_evenly_are_told() -> None:
    plan = RowSteps(np.full(12, 32), 6, ROW_TOKENS, seed=0)
    assert plan.describe(3) == "6 rows a step, 100.00% full, 384 tokens on average"
    assert plan.describe(4).endswith("; 2 more that are empty, for 4 data ranks")
    assert [len(row) for row in plan.rows(0, 4)].count(0) == 2


def test_a_rank_reads_its_own_documents_alone() -> None:
    documents = {n: Document([n + 1] * (n + 2), [0.0] + [1.0] * (n + 1), uid=str(n)) for n in range(6)}
    dealt = [[0, 3], [1], [2], []]
    only = {number: documents[number] for number in (1,)}
    first, empty = rows_of_rank(only, dealt, rank=1, num_ranks=2, multiple_of=4)  # type: ignore[arg-type]
    assert first.uids == ("1", "") and first.num_tokens == 4
    assert first.loss_weights.tolist() == [0, 1, 1, 0]
    assert empty.num_tokens == 4 and not empty.loss_weights.any()


def test_the_documents_of_sequence_steps_are_those_of_step_documents() -> None:
    documents = [Document([n + 1], [0.0], uid=str(n)) for n in range(10)]
    plan = SequenceSteps(np.ones(10, np.int64), 4, ROW_TOKENS, seed=2)
    for step in range(5):
        expected = sorted(int(document.uid) for document in step_documents(documents, step, 4, seed=2))
        assert documents_of(plan, step, 2) == expected


def test_the_config_chooses_the_way() -> None:
    limits = LimitsConfig(8, 8, ROW_TOKENS)
    lengths = np.full(10, 16)
    assert isinstance(plan_steps(SFTConfig(limits=limits), lengths, 0), SequenceSteps)
    rows = plan_steps(SFTConfig(limits=limits, batch_sequences=None, batch_rows=2), lengths, 0)
    assert isinstance(rows, RowSteps) and len(rows.rows(0, 1)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_rows": 8}, "sft.batch_rows=8, batch_sequences=32: a step is made of one or the other"),
        ({"batch_sequences": None}, "sft.batch_sequences: null, and so is batch_rows"),
        ({"batch_sequences": None, "batch_rows": 0}, "sft.batch_rows=0: has to be at least 1"),
        ({"denominator": "rows"}, "sft.denominator=rows: not one of weights, tokens"),
    ],
)
def test_a_step_is_made_of_one_or_the_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_config(Config(sft=SFTConfig(**settings)))


def test_a_plan_of_rows_reckons_with_full_ones() -> None:
    sft = SFTConfig(limits=LimitsConfig(100, 900, 1000), batch_sequences=None, batch_rows=12, num_epochs=2)
    plan = plan_sft(sft, RankPlan(8, 8, False), num_samples=600, num_tokens=240_000)
    assert (plan.steps_per_epoch, plan.num_steps, plan.tokens_per_step, plan.micro_batches) == (20, 40, 12_000, 2)
    with pytest.raises(InputError, match="sft.batch_rows=12: fewer than the 16 data ranks"):
        plan_sft(sft, RankPlan(16, 16, False), None, None)
