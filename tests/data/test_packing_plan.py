"""Plans of rows: every document once and whole, rows full, ranks even, and nothing depends on but seed and step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.data.packing_plan import (
    FALCON_H1_7B,
    DocumentCost,
    RowPlan,
    best_fit,
    deal_rows,
    dealt_in_turn,
    epoch_rows,
    plan_rows,
    shuffled,
    stratified_order,
)

ROW_TOKENS = 64
LENGTHS = st.lists(st.integers(1, ROW_TOKENS), min_size=1, max_size=80)
STEEP = DocumentCost(1.0, 1 / 32)  # of which the square is as much as the rest at half a row


def naive_best_fit(lengths: list[int], row_tokens: int) -> list[int]:
    """The slow twin: look at every row for every document."""
    room: list[int] = []
    filled_at: list[int] = []
    row_of = [0] * len(lengths)
    for time, index in enumerate(sorted(range(len(lengths)), key=lambda index: -lengths[index])):
        fitting = [row for row in range(len(room)) if room[row] >= lengths[index]]
        if not fitting:
            room.append(row_tokens)
            filled_at.append(time)
            fitting = [len(room) - 1]
        row = min(fitting, key=lambda row: (room[row], -filled_at[row]))
        room[row] -= lengths[index]
        filled_at[row] = time
        row_of[index] = row
    return row_of


@given(lengths=LENGTHS)
def test_best_fit_gives_the_rows_of_its_slow_twin(lengths: list[int]) -> None:
    assert best_fit(np.array(lengths), ROW_TOKENS).tolist() == naive_best_fit(lengths, ROW_TOKENS)


def test_best_fit_gives_the_rows_of_its_slow_twin_in_rows_of_many_words() -> None:
    lengths = np.random.default_rng(0).integers(1, 3000, 400).tolist()
    assert best_fit(np.array(lengths), 3000).tolist() == naive_best_fit(lengths, 3000)


@given(lengths=LENGTHS, window=st.integers(1, 30), seed=st.integers(-2, 2), epoch=st.integers(0, 2))
def test_an_epoch_has_every_document_once_and_whole(lengths: list[int], window: int, seed: int, epoch: int) -> None:
    tokens = np.array(lengths)
    plan = epoch_rows(tokens, ROW_TOKENS, seed, epoch, window)
    rows = [plan.row(number) for number in range(len(plan))]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[index] for index in row) <= ROW_TOKENS for row in rows)
    assert plan.sums(tokens).tolist() == [sum(lengths[index] for index in row) for row in rows]


def test_epochs_differ_and_repeat_themselves() -> None:
    lengths = np.random.default_rng(0).integers(1, ROW_TOKENS, 300)
    once, again = (epoch_rows(lengths, ROW_TOKENS, 3, 1, 100).documents.tolist() for _ in range(2))
    assert once == again
    assert once != epoch_rows(lengths, ROW_TOKENS, 3, 0, 100).documents.tolist()
    assert once != epoch_rows(lengths, ROW_TOKENS, 4, 1, 100).documents.tolist()


def test_a_shuffle_is_the_same_on_every_machine() -> None:
    """A run resumed elsewhere goes on with the same documents."""
    assert shuffled(8, seed=0, epoch=0).tolist() == [2, 7, 3, 1, 6, 5, 4, 0]


def test_rows_that_are_not_full_go_on_to_the_next_window() -> None:
    lengths = np.array([40, 24] * 50)
    plan = epoch_rows(lengths, ROW_TOKENS, 0, 0, window_documents=40)
    assert len(plan) == 50, "every window has its own surplus of one length or the other"


def test_documents_that_never_fill_a_row_are_not_carried_for_ever() -> None:
    plan = epoch_rows(np.full(500, 40), ROW_TOKENS, 0, 0, window_documents=20)
    assert len(plan) == 500


@pytest.mark.parametrize(
    "plan", [lambda lengths: best_fit(lengths, 64), lambda lengths: plan_rows(lengths.tolist(), 64)]
)
def test_a_document_longer_than_a_row_is_refused_not_cut(plan) -> None:
    with pytest.raises(ValueError, match="100 tokens does not fit a row of 64"):
        plan(np.array([10, 100]))


def test_rows_can_be_taken_in_any_order_and_joined() -> None:
    plan = RowPlan.of(np.array([5, 6, 7, 8]), np.array([1, 0, 1, 2]))
    assert [plan.row(number) for number in range(3)] == [[6], [5, 7], [8]]
    turned = plan.take(np.array([2, 1]))
    assert [turned.row(number) for number in range(len(turned))] == [[8], [5, 7]]
    joined = RowPlan.joined([turned, plan])
    assert [joined.row(number) for number in range(len(joined))] == [[8], [5, 7], [6], [5, 7], [8]]
    assert len(plan.take(np.array([], np.int64))) == 0


# -----------------------------------------------------------------------------
# Steps and ranks


@given(num_rows=st.integers(1, 60), batch_rows=st.integers(1, 8), num_before=st.integers(0, 7), epoch=st.integers(0, 3))
def test_strata_are_a_permutation(num_rows: int, batch_rows: int, num_before: int, epoch: int) -> None:
    costs = np.random.default_rng(num_rows).random(num_rows)
    order = stratified_order(costs, batch_rows, num_before, 0, epoch).tolist()
    assert sorted(order) == list(range(num_rows))


def test_every_step_has_a_row_of_every_stratum() -> None:
    costs = np.random.default_rng(0).permutation(103).astype(float)
    order = stratified_order(costs, 5, 2, seed=1, epoch=0)
    within = np.array([cost for row in order[2:102] for cost in [costs[row]]]).reshape(20, 5)
    rank = np.argsort(np.argsort(within.reshape(-1))).reshape(20, 5)
    assert (rank // 20 == np.arange(5)).all()


@given(costs=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=40), num_ranks=st.integers(1, 6))
def test_ranks_have_equally_many_rows_and_no_row_is_lost(costs: list[float], num_ranks: int) -> None:
    rows = [[index] for index in range(len(costs))]
    dealt = dealt_in_turn(rows, costs, num_ranks)
    assert len(dealt) % num_ranks == 0 and len(dealt) < len(rows) + num_ranks
    assert sorted(index for row in dealt for index in row) == list(range(len(costs)))
    for rank in range(num_ranks):
        own = [costs[row[0]] if row else 0.0 for row in dealt[rank::num_ranks]]
        assert own == sorted(own, reverse=True)


def test_a_deal_is_evened_out_by_exchange() -> None:
    """Dealt one by one, the ranks get 9+4+4 and 8+8+1 of 34; two for two are exchanged in the other."""
    for costs in ([9.0, 8.0, 8.0, 4.0, 4.0, 1.0], [10.0, 10.0, 6.0, 6.0, 5.0, 5.0, 4.0, 4.0]):
        dealt = deal_rows(costs, 2)
        totals = [sum(costs[row] for row in rows) for rows in dealt]
        assert totals[0] == totals[1] == sum(costs) / 2


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 50), min_size=24, max_size=90), num_ranks=st.integers(1, 4))
def test_a_steps_ranks_are_even_in_cost(lengths: list[int], num_ranks: int) -> None:
    rows = plan_rows(lengths, ROW_TOKENS * 8, num_ranks, STEEP)
    costs = [sum(float(STEEP.of(np.array(lengths[index]))) for index in row) for row in rows]
    by_rank = [sum(costs[rank::num_ranks]) for rank in range(num_ranks)]
    assert max(by_rank) - min(by_rank) <= float(STEEP.of(np.array(max(lengths))))


def test_an_epoch_of_the_recipes_lengths_meets_its_bars() -> None:
    """A window's worth; suite=packing measures 3.11M documents."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(49_152, np.exp(8.85 + 0.9 * rng.standard_normal(20_000))).astype(np.int64)
    plan = epoch_rows(lengths, 49_152, 0, 0)
    assert lengths.sum() / (len(plan) * 49_152) >= 0.99
    costs = plan.sums(FALCON_H1_7B.of(lengths))
    ordered = costs[stratified_order(costs, 32, 0, 0, 0)]
    for start in range(0, len(plan) - 32, 32):
        step = ordered[start : start + 32]
        totals = [step[rows].sum() for rows in deal_rows(step.tolist(), 8)]
        assert max(totals) <= 1.02 * np.mean(totals)
