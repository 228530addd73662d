"""Rollouts that a step cuts off go on in the next ones: no token lost, none too old, the long not passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_grpo import GRPOConfig, RolloutConfig
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import GroupBatch
from falcon_h1r.rollout.sampler import RolloutRequest
from tests.grpo.conftest import Line, Ranks, by_chance, draw, make_ranks

CONFIG = GRPOConfig(
    problems_per_step=3,
    group_size=3,
    max_backfill_rounds=3,
    surplus_cache_groups=4,
    surplus_cache_steps=2,
    limits=LimitsConfig(response_tokens=200),
    rollout=RolloutConfig(meeting_tokens=4, oversampling=2.0, max_partial_steps=3),
)


def long_tailed(request: RolloutRequest) -> Line:
    """Mostly short, one in six up to 200 tokens; half are right."""
    length = 1 + draw(request, "length", 10 if draw(request, "tail", 6) else 200)
    return Line([draw(request, f"token {i}", 50) for i in range(length)], bool(draw(request, "right", 2)))


def responses(batch: GroupBatch) -> dict[int, list[list[int]]]:
    return {number: [r.response_ids for r in group.rollouts] for number, group in batch.own_groups.items()}


def steps(ranks: Ranks, num_steps: int) -> list[Any]:
    """What each step trained on and counted, over all ranks."""
    told = []
    for _ in range(num_steps):
        batches = ranks.collect()
        held = {number: ids for batch in batches for number, ids in responses(batch).items()}
        sums = {name: sum(batch.own_sums[name] for batch in batches) for name in batches[0].own_sums}
        told.append((held, batches[0].counts, sums))
        ranks.sync()
    return told


def test_a_step_ends_with_its_batch_and_what_ran_goes_on_from_where_it_was() -> None:
    ranks = make_ranks(1, CONFIG, [2] * 40, long_tailed, num_slots=32)
    carried = ranks.collectors[0].carried
    went_on = 0
    for _ in range(12):
        before = {partial.number: partial for partial in carried.partials}
        (batch,) = ranks.collect()
        for number, group in batch.own_groups.items():
            if number in before:
                for old, new in zip(before[number].rollouts, group.rollouts, strict=True):
                    assert new.response_ids[: len(old.response_ids)] == old.response_ids
                    assert new.policy_version == old.policy_version
                    went_on += bool(new.later_versions)
        ranks.sync()
    assert went_on > 0


def test_every_token_is_learnt_from_kept_or_counted_as_dropped() -> None:
    ranks = make_ranks(2, replace(CONFIG, surplus_cache_groups=2), [2] * 40, long_tailed, num_slots=12)
    sampled = learnt = dropped = without_contrast = 0.0
    for _ in range(10):
        batches = ranks.collect()
        sampled += sum(batch.own_sums["sampled_tokens"] for batch in batches)
        dropped += sum(batch.own_sums["dropped_tokens"] for batch in batches)
        learnt += sum(len(ids) for batch in batches for group in responses(batch).values() for ids in group)
        without_contrast += sum(
            rollout.response_tokens
            for facts in batches[0].drawn
            if not facts.has_contrast
            for rollout in facts.rollouts
        )
        ranks.sync()
    carried = [collector.carried for collector in ranks.collectors]
    kept = sum(partial.num_tokens for each in carried for partial in each.partials)
    kept += sum(len(r.response_ids) for each in carried for spare in each.surplus for r in spare.group.rollouts)
    assert sampled == sum(sampler.num_tokens for sampler in ranks.samplers)
    assert sampled == learnt + kept + dropped + without_contrast
    assert learnt > 0 and dropped > 0


@pytest.mark.parametrize("most", [1, 2, 4])
def test_no_group_is_carried_for_longer_than_allowed(most: int) -> None:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, max_partial_steps=most))
    ranks = make_ranks(1, config, [2] * 40, long_tailed, num_slots=32)
    (collector,) = ranks.collectors
    ages, dropped = set(), 0.0
    for _ in range(20):
        (batch,) = ranks.collect()
        ages |= {collector.stream.step + 1 - partial.begun_step for partial in collector.carried.partials}
        dropped += batch.own_sums["dropped_tokens"]
    assert max(ages) == most
    assert (dropped > 0) == (most < 4)  # by then, the longest have ended


def test_waiting_for_all_takes_longer_than_cutting_and_wastes_no_less() -> None:
    waiting = replace(CONFIG, rollout=RolloutConfig(meeting_tokens=4, oversampling=2.0), surplus_cache_groups=0)
    cutting = replace(CONFIG, rollout=replace(CONFIG.rollout, max_partial_steps=8))
    spent = []
    for config in (waiting, cutting):
        ranks = make_ranks(1, config, [2] * 60, long_tailed, num_slots=64)
        told = steps(ranks, 12)
        spent.append((ranks.samplers[0].num_steps, sum(sums["dropped_tokens"] for _, _, sums in told)))
    assert spent[1][0] < 0.7 * spent[0][0]
    assert spent[1][1] < spent[0][1]


def test_long_responses_are_learnt_from_as_often_as_they_are_drawn() -> None:
    """Of all groups begun, as large a share of the long as of the short ends up in a batch: who is late is not lost."""
    config = replace(CONFIG, group_size=2, surplus_cache_groups=50, surplus_cache_steps=50)
    config = replace(config, rollout=replace(config.rollout, max_partial_steps=50))

    def two_kinds(request: RolloutRequest) -> Line:
        is_long = request.prompt.problem_uid.startswith("1")
        return Line([1] * (120 if is_long else 4), request.sample_index == 0)

    ranks = make_ranks(1, config, [1, 2] * 60, two_kinds, num_slots=64)
    learnt: list[int] = []
    for _ in range(25):
        (batch,) = ranks.collect()
        learnt += [int(each.facts.problem_uid[0]) for each in batch.chosen]
    share = learnt.count(1) / len(learnt)
    assert 0.42 < share < 0.58


@given(
    num_ranks=st.integers(1, 3),
    cut_at=st.integers(1, 5),
    budget=st.sampled_from([None, 80]),
    seed=st.integers(0, 50),
)
@settings(max_examples=25)
def test_ranks_that_come_back_from_their_rows_go_on_as_if_they_had_not_left(
    num_ranks: int, cut_at: int, budget: int | None, seed: int
) -> None:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, step_tokens=budget), skip_solved_steps=2)

    def fresh() -> Ranks:
        return make_ranks(num_ranks, config, [1, 2, 3] * 8, by_chance, num_slots=7, seed=seed)

    ranks = fresh()
    steps(ranks, cut_at)
    stored = [(c.stream.state_dict(), list(c.carried.snapshot()())) for c in ranks.collectors]
    text = json.dumps(stored)
    expected = steps(ranks, 4)

    again = fresh()
    for collector, (stream, rows) in zip(again.collectors, json.loads(text), strict=True):
        collector.stream.load_state_dict(stream)
        collector.carried.restore(rows)
        collector.sampler.policy_version = cut_at
    assert steps(again, 4) == expected
    assert [list(c.carried.snapshot()()) for c in again.collectors] == [
        list(c.carried.snapshot()()) for c in ranks.collectors
    ]


def test_what_is_carried_and_remembered_does_not_grow() -> None:
    config = replace(CONFIG, skip_solved_steps=3, surplus_cache_refresh=True)
    ranks = make_ranks(2, config, [0, 1, 2, 3, 4] * 20, num_slots=12)
    most_open, sizes = 6, []
    for _ in range(200):
        ranks.collect()
        ranks.sync()
        carried = [collector.carried for collector in ranks.collectors]
        assert sum(len(each.partials) for each in carried) <= most_open
        assert sum(len(each.surplus) for each in carried) <= config.surplus_cache_groups
        sizes.append(len(json.dumps(ranks.collectors[0].stream.state_dict())))
    assert max(sizes) < 1_000


def test_carried_groups_may_be_dealt_anew_to_other_ranks() -> None:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, meeting_tokens=16))
    ranks = make_ranks(3, config, [2] * 40, long_tailed, num_slots=8)
    steps(ranks, 4)
    rows = [row for collector in ranks.collectors for row in collector.carried.snapshot()()]
    assert any("begun_step" in row for row in rows) and any("added_step" in row for row in rows)
    fewer = make_ranks(2, CONFIG, [2] * 40, long_tailed, num_slots=12)
    for rank, collector in enumerate(fewer.collectors):
        collector.stream.load_state_dict(ranks.collectors[0].stream.state_dict())
        collector.carried.restore(rows[rank::2])
    told = steps(fewer, 6)
    learnt = {number for held, _, _ in told for number in held}
    assert learnt & {row["number"] for row in rows}


def test_a_partial_group_comes_back_from_its_rows_as_it_was() -> None:
    ranks = make_ranks(1, CONFIG, [2] * 40, long_tailed, num_slots=32)
    steps(ranks, 3)
    carried = ranks.collectors[0].carried
    again = CarriedRollouts()
    again.restore(json.loads(json.dumps(list(carried.snapshot()()))))
    assert carried.partials
    assert again.partials == carried.partials


def test_while_they_are_held_a_snapshot_is_of_what_was_carried_before() -> None:
    ranks = make_ranks(1, CONFIG, [2] * 40, long_tailed, num_slots=32)
    steps(ranks, 2)
    carried = ranks.collectors[0].carried
    before = list(carried.snapshot()())
    carried.hold()
    steps(ranks, 1)
    assert list(carried.snapshot()()) == before
    carried.release()
    assert list(carried.snapshot()()) != before
