"""Groups beyond need are kept for the next steps: bounded, aged, used oldest first, and nothing sampled is lost."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config_grpo import GRPOConfig, RolloutConfig
from falcon_h1r.grpo.carried import CarriedRollouts, Summary, SurplusSummary
from falcon_h1r.grpo.metrics import GroupFacts
from falcon_h1r.grpo.surplus import bounded, withdraw
from tests.grpo.conftest import chosen_uids, first_right, make_ranks

CONFIG = GRPOConfig(
    problems_per_step=2,
    group_size=4,
    surplus_cache_groups=8,
    surplus_cache_steps=1,
    rollout=RolloutConfig(oversampling=2.0),
)
CONTRAST = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]


def test_what_one_step_did_not_need_the_next_begins_with() -> None:
    ranks = make_ranks(2, CONFIG, CONTRAST, first_right)
    first, *_ = ranks.collect()
    assert [each.number for each in first.chosen] == [0, 1]
    assert first.counts["cache_groups"] == 2
    num_begun = [len(sampler.begun) for sampler in ranks.samplers]
    second, *_ = ranks.collect()
    assert [each.number for each in second.chosen] == [2, 3]
    assert second.counts["cache_used_groups"] == 2
    assert second.drawn == []
    assert [len(sampler.begun) for sampler in ranks.samplers] == num_begun  # nothing was sampled
    third, *_ = ranks.collect()
    assert [each.number for each in third.chosen] == [4, 5]


def test_a_problem_in_the_cache_is_not_drawn_again() -> None:
    config = replace(CONFIG, surplus_cache_steps=5, rollout=RolloutConfig(oversampling=1.5))
    ranks = make_ranks(1, config, [1, 2, 3, 1], first_right)
    for _ in range(20):
        (batch,) = ranks.collect()
        held = [each.group.problem.uid for each in ranks.collectors[0].carried.surplus]
        uids = [*chosen_uids(batch), *held]
        assert len(set(uids)) == len(uids)


def spares(ages: list[int], owners: int = 2) -> list[Summary]:
    facts = [GroupFacts(f"{number}", "sum", True, ()) for number in range(len(ages))]
    by_owner = [
        tuple(SurplusSummary(n, age, facts[n]) for n, age in enumerate(ages) if n % owners == owner)
        for owner in range(owners)
    ]
    return [Summary((), each) for each in by_owner]


@given(ages=st.lists(st.integers(1, 9), max_size=12), steps=st.integers(1, 4), bound=st.integers(0, 6))
def test_the_cache_is_bounded_in_age_and_number_and_forgets_none_uncounted(
    ages: list[int], steps: int, bound: int
) -> None:
    now = 10
    config = replace(CONFIG, surplus_cache_steps=steps, surplus_cache_groups=bound)
    found = withdraw(spares(ages), now, config)
    kept, evicted = bounded(found.kept, config)
    everywhere = [*found.used, *found.expired, *kept, *evicted]
    assert sorted(spare.scored.number for spare in everywhere) == list(range(len(ages)))
    assert all(now - spare.added_step > steps for spare in found.expired)
    assert all(now - spare.added_step <= steps for spare in [*found.used, *found.kept])
    assert len(kept) <= bound
    assert not evicted or len(kept) == bound
    assert len(found.used) == min(config.problems_per_step, len(found.used) + len(found.kept))
    oldest_first = [(spare.added_step, spare.scored.number) for spare in [*found.used, *evicted, *kept]]
    assert oldest_first == sorted(oldest_first)
    assert [spare.scored.owner for spare in everywhere] == [spare.scored.number % 2 for spare in everywhere]


def test_what_there_is_no_room_for_counts_as_dropped() -> None:
    config = replace(CONFIG, surplus_cache_groups=1, rollout=RolloutConfig(oversampling=3.0))
    ranks = make_ranks(2, config, CONTRAST, first_right, num_slots=16)
    batches = ranks.collect()
    assert batches[0].counts["cache_groups"] == 1
    assert batches[0].counts["cache_evicted_groups"] == 3
    assert sum(batch.own_sums["dropped_tokens"] for batch in batches) == 3 * 4 * 2


def test_groups_too_old_are_counted_and_their_problems_drawn_again_before_others() -> None:
    config = replace(
        CONFIG, problems_per_step=4, surplus_cache_steps=1, surplus_cache_refresh=True, rollout=RolloutConfig()
    )
    ranks = make_ranks(1, config, [1] * 20, first_right)
    ranks.collect()
    (carried,) = [collector.carried for collector in ranks.collectors]
    donor = make_ranks(1, replace(config, rollout=RolloutConfig(oversampling=2.0)), [1] * 20, first_right, seed=9)
    donor.collect()
    spare = donor.collectors[0].carried.surplus[0]
    carried.surplus = (replace(spare, number=1000, added_step=0),)
    (batch,) = ranks.collect()
    assert batch.counts["cache_expired_groups"] == 1
    assert batch.own_sums["dropped_tokens"] == 8
    assert batch.drawn[0].problem_uid == spare.group.problem.uid


def test_the_cache_comes_back_from_its_rows_as_it_was() -> None:
    ranks = make_ranks(1, CONFIG, CONTRAST, first_right)
    ranks.collect()
    carried = ranks.collectors[0].carried
    rows = [json.loads(json.dumps(row)) for row in carried.snapshot()()]
    again = CarriedRollouts()
    again.restore(rows)
    assert len(again.surplus) == 2
    assert again.surplus == carried.surplus
    assert again.summary() == carried.summary()
