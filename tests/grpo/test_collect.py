"""Filling a batch: which groups a step begins, who samples them, when it ends, and what it may not depend on."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_grpo import GRPOConfig, RewardConfig, RolloutConfig
from falcon_h1r.grpo.ledger import Ledger
from falcon_h1r.grpo.metrics import group_facts, rollout_metrics
from falcon_h1r.grpo.rewards import Scorer, well_formed
from falcon_h1r.rollout.sampler import RolloutRequest
from falcon_h1r.types import Problem, Rollout, Verdict
from falcon_h1r.verifier import Verifier
from tests.grpo.conftest import Line, QuickVerifier, Ranks, by_chance, chosen_uids, first_right, make_ranks, stream_of

BACKFILLED = GRPOConfig(problems_per_step=4, group_size=4, max_backfill_rounds=50)


def collected(ranks: Ranks, num_steps: int = 1) -> list[list[str]]:
    """The uids of every step's batch; all ranks have to agree."""
    steps = []
    for _ in range(num_steps):
        batches = ranks.collect()
        for batch in batches:
            assert [(e.number, e.owner) for e in batch.chosen] == [(e.number, e.owner) for e in batches[0].chosen]
            assert batch.counts == batches[0].counts
        held = [number for batch in batches for number in batch.own_groups]
        assert sorted(held) == sorted({each.number for each in batches[0].chosen})
        steps.append(chosen_uids(batches[0]))
        ranks.sync()
    return steps


# -----------------------------------------------------------------------------
# Which groups


def test_groups_without_contrast_are_replaced_one_for_one_until_the_batch_is_full() -> None:
    ranks = make_ranks(1, BACKFILLED, [0, 4, 1, 0, 2, 3, 4, 0, 1, 2], first_right)
    (batch,) = ranks.collect()
    assert len(batch.chosen) == 4
    assert all(0 < sum(rollout.reward for rollout in each.facts.rollouts) < 4 for each in batch.chosen)
    assert [each.number for each in batch.chosen] == sorted(each.number for each in batch.chosen)
    without = sum(not facts.has_contrast for facts in batch.drawn)
    assert len(batch.drawn) == 4 + without  # no more than was missing
    assert batch.counts["num_backfill_groups"] == without


def test_groups_that_go_on_are_no_replacements() -> None:
    config = GRPOConfig(problems_per_step=4, rollout=RolloutConfig(oversampling=2.0, max_partial_steps=2))
    stream = stream_of([1] * 20)
    carried = Ledger(stream, config, 1, {number: str(number) for number in range(5)})  # the cache had the other three
    assert (carried.num_owed, carried.num_replaced) == (0, 0)
    fresh = Ledger(stream, config, 4, {})
    fresh.deal([100])
    assert (fresh.num_drawn, fresh.num_replaced) == (8, 0)


def test_backfill_is_bounded_and_averages_count_what_was_dropped() -> None:
    config = GRPOConfig(problems_per_step=4, group_size=4, max_backfill_rounds=2)
    (batch,) = make_ranks(1, config, [0, 4] * 8, first_right).collect()
    assert batch.chosen == []
    metrics = rollout_metrics(batch.drawn)
    assert (len(batch.drawn), metrics["zero_variance_share"]) == (12, 1.0)


def test_a_step_draws_no_problem_twice_and_ends_with_the_last() -> None:
    (batch,) = make_ranks(1, BACKFILLED, [0, 4, 1, 0], first_right).collect()
    assert sorted(facts.problem_uid for facts in batch.drawn) == ["0/0", "0/3", "1/2", "4/1"]
    assert chosen_uids(batch) == ["1/2"]


def test_reject_draws_no_others_and_duplicate_repeats_in_turn() -> None:
    num_right = [0, 1, 4, 2]
    for rule, expected in (("reject", 2), ("duplicate", 4)):
        config = GRPOConfig(problems_per_step=4, group_size=4, zero_variance=rule)
        (batch,) = make_ranks(1, config, num_right, first_right).collect()
        assert len(batch.drawn) == 4
        uids = chosen_uids(batch)
        assert len(uids) == expected
        assert set(uids) == {"1/1", "2/3"}
        assert uids == (uids[:2] * 2)[:expected]


def test_problems_solved_lately_are_passed_over() -> None:
    config = GRPOConfig(problems_per_step=2, group_size=4, zero_variance="reject", skip_solved_steps=2)
    ranks = make_ranks(1, config, [4, 4, 1, 2], first_right)
    drawn = []
    for _ in range(6):
        (batch,) = ranks.collect()
        drawn.append({facts.problem_uid for facts in batch.drawn})
    for step in range(1, 6):
        solved = {uid for before in drawn[max(0, step - 2) : step] for uid in before if uid.startswith("4")}
        assert not drawn[step] & solved
    assert any({"4/0", "4/1"} & uids for uids in drawn[3:])  # and come again


def test_when_all_are_solved_the_one_solved_longest_ago_is_drawn_and_counted() -> None:
    config = GRPOConfig(problems_per_step=1, group_size=4, zero_variance="reject", skip_solved_steps=10)
    ranks = make_ranks(1, config, [4, 4, 4], first_right)
    order = []
    for step in range(6):
        (batch,) = ranks.collect()
        order.append(batch.drawn[0].problem_uid)
        assert batch.counts["solved_drawn_groups"] == float(step >= 3)
    assert order[3:] == order[:3]


@given(
    num_right=st.lists(st.integers(0, 4), min_size=3, max_size=16),
    oversampling=st.sampled_from([1.0, 1.4, 3.0]),
    rounds=st.integers(0, 3),
    rule=st.sampled_from(["backfill", "reject"]),
    meeting_tokens=st.integers(1, 30),
)
@settings(max_examples=50)
def test_a_batch_is_what_drawing_one_problem_after_the_other_gives(
    num_right: list[int], oversampling: float, rounds: int, rule: str, meeting_tokens: int
) -> None:
    """The twin knows no ranks, slots or meetings: it draws as many as are begun at once, then one by one."""
    config = GRPOConfig(
        problems_per_step=3,
        group_size=4,
        zero_variance=rule,
        max_backfill_rounds=rounds,
        rollout=RolloutConfig(oversampling=oversampling, meeting_tokens=meeting_tokens),
    )
    stream, drawn = stream_of(num_right), []
    at_once = math.ceil(3 * oversampling)
    most = at_once + 3 * rounds * (rule == "backfill")
    while len(drawn) < most and (uid := stream.draw(drawn)) is not None:
        drawn.append(uid)
        if len(drawn) >= at_once and sum(0 < int(uid[0]) < 4 for uid in drawn) >= 3:
            break
    (batch,) = make_ranks(1, config, num_right, first_right, num_slots=7).collect()
    assert [facts.problem_uid for facts in batch.drawn] == drawn
    assert chosen_uids(batch) == [uid for uid in drawn if 0 < int(uid[0]) < 4][:3]


# -----------------------------------------------------------------------------
# Any number of ranks


@given(
    num_right=st.lists(st.integers(0, 4), min_size=4, max_size=20),
    slots=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(lambda slots: max(slots) > 0),
    meeting_tokens=st.integers(1, 40),
    oversampling=st.sampled_from([1.0, 1.5, 2.5]),
    cache=st.integers(0, 5),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_a_batch_that_waits_for_all_depends_on_neither_ranks_nor_slots_nor_meetings(
    num_right: list[int], slots: list[int], meeting_tokens: int, oversampling: float, cache: int, seed: int
) -> None:
    def steps(num_ranks: int, num_slots: Any, stretch: int) -> list[list[str]]:
        config = GRPOConfig(
            problems_per_step=3,
            group_size=3,
            max_backfill_rounds=2,
            surplus_cache_groups=cache,
            surplus_cache_steps=2,
            surplus_cache_refresh=True,
            skip_solved_steps=1,
            rollout=RolloutConfig(meeting_tokens=stretch, oversampling=oversampling),
        )
        return collected(make_ranks(num_ranks, config, num_right, by_chance, num_slots, seed=seed), num_steps=3)

    assert steps(len(slots), slots, meeting_tokens) == steps(1, 64, 7)


def test_groups_go_whole_to_the_rank_with_most_room_and_none_to_a_rank_without() -> None:
    config = GRPOConfig(problems_per_step=6, group_size=4, zero_variance="reject")
    ranks = make_ranks(3, config, [2] * 6, first_right, num_slots=[16, 0, 8])
    ranks.collect()
    begun = [sampler.begun for sampler in ranks.samplers]
    assert [len(keys) for keys in begun] == [16, 0, 8]
    for keys in begun:
        assert all(len({sample for uid, sample in keys if uid == wanted}) == 4 for wanted, _ in keys)


def test_a_rank_that_is_done_early_is_given_more() -> None:
    def slow_first(request: RolloutRequest) -> Line:
        is_slow = request.prompt.problem_uid == first
        return Line([1] * (200 if is_slow else 3), request.sample_index == 0)

    config = GRPOConfig(problems_per_step=8, group_size=2, rollout=RolloutConfig(meeting_tokens=4))
    ranks = make_ranks(2, config, [1] * 8, slow_first, num_slots=2)
    first = ranks.collectors[0].stream._next_uid(set())
    ranks.collectors[0].stream._position = 0
    ranks.collect()
    assert [len(sampler.begun) for sampler in ranks.samplers] == [2, 14]


def test_a_group_larger_than_a_sampler_is_sampled_all_the_same() -> None:
    config = GRPOConfig(problems_per_step=2, group_size=4)
    (batch,) = make_ranks(1, config, [2, 2], first_right, num_slots=1).collect()
    assert len(batch.chosen) == 2


def test_nobody_to_sample_is_an_error_and_not_a_wait() -> None:
    config = GRPOConfig(problems_per_step=2, group_size=4)
    with pytest.raises(RuntimeError, match="no rank's sampler has a free slot"):
        make_ranks(2, config, [2, 2], first_right, num_slots=0).collect()


def test_the_verifiers_pace_changes_no_schedule() -> None:
    """A group counts at the meeting after its last rollout's, however soon its verdicts are there."""

    class Slow(QuickVerifier):
        def submit(self, prediction: str, gold: str) -> Future[Verdict]:
            promise: Future[Verdict] = Future()
            verdict = super().submit(prediction, gold).result()
            threading.Timer(random.uniform(0.0, 0.02), promise.set_result, [verdict]).start()
            return promise

    config = GRPOConfig(
        problems_per_step=3,
        group_size=5,
        max_backfill_rounds=4,
        rollout=RolloutConfig(meeting_tokens=3, max_partial_steps=2, oversampling=2.0),
    )
    num_right = [0, 1, 2, 3, 4] * 4
    quick = make_ranks(1, config, num_right)
    slow = make_ranks(1, config, num_right, verifier=Slow())
    for _ in range(3):
        (one,), (other,) = quick.collect(), slow.collect()
        assert quick.num_meetings == slow.num_meetings
        assert chosen_uids(one) == chosen_uids(other)
        assert one.own_sums == other.own_sums


# -----------------------------------------------------------------------------
# The budget


def test_a_steps_budget_cuts_what_runs_and_counts_it() -> None:
    def long_after(request: RolloutRequest) -> Line:
        return Line([1] * (4 if request.prompt.problem_uid in short else 1000), request.sample_index == 0)

    config = GRPOConfig(
        problems_per_step=4,
        group_size=2,
        rollout=RolloutConfig(meeting_tokens=4, step_tokens=60),
        limits=GRPOConfig().limits,
    )
    ranks = make_ranks(1, config, [1] * 6, long_after, num_slots=64)
    short = {"1/0", "1/1"}
    (batch,) = ranks.collect()
    began = {uid for uid, _ in ranks.samplers[0].begun}
    assert set(chosen_uids(batch)) == short & began
    assert 60 <= batch.own_sums["sampled_tokens"] < 60 + 8 * 4
    assert batch.own_sums["dropped_tokens"] == batch.own_sums["sampled_tokens"] - 8 * len(short & began)
    assert batch.own_sums["sampled_tokens"] == ranks.samplers[0].num_tokens
    assert ranks.collectors[0].carried.partials == ()
    assert ranks.samplers[0].free_slots == 64


# -----------------------------------------------------------------------------
# What may go wrong


def test_empty_responses_are_credited_counted_and_not_learnt_from() -> None:
    def sometimes_empty(request: RolloutRequest) -> Line:
        return Line([] if request.sample_index == 3 else [1, 2], request.sample_index == 0)

    config = GRPOConfig(problems_per_step=2, group_size=4)
    (batch,) = make_ranks(1, config, [1, 1], sometimes_empty).collect()
    assert batch.counts["empty_responses"] == 2
    assert [len(group.rewards) for group in batch.own_groups.values()] == [4, 4]


@pytest.mark.parametrize(("sent", "stage"), [(signal.SIGKILL, "worker"), (signal.SIGSTOP, "deadline")])
def test_a_verifier_that_is_killed_or_hangs_costs_no_step(sent: int, stage: str) -> None:
    class Unlucky:
        """Of four answers, the third needs a worker that has been killed or stopped."""

        def __init__(self, verifier: Verifier) -> None:
            self.verifier, self.count = verifier, 0

        def submit(self, prediction: str, gold: str) -> Future[Verdict]:
            self.count += 1
            if self.count == 3:
                (pid,) = self.verifier._pool.process_ids()
                os.kill(pid, sent)
                return self.verifier.submit(r"</think>\boxed{\sqrt{8}+1}", r"2\sqrt{2}+1")
            return self.verifier.submit(prediction, gold)

    config = GRPOConfig(problems_per_step=1, group_size=4)
    with Verifier(after_think=True) as verifier:
        verifier.start()
        (batch,) = make_ranks(1, config, [1, 1], first_right, verifier=Unlucky(verifier)).collect()
    statuses = [rollout.status for rollout in batch.drawn[0].rollouts]
    assert statuses == ["correct", "wrong", "undecided", "wrong"]
    (group,) = batch.own_groups.values()
    assert group.verdicts[2].stage == stage
    assert len(batch.chosen) == 1


# -----------------------------------------------------------------------------
# Rewards


def test_several_boxes_cost_what_the_config_says_and_are_counted(verifier) -> None:
    config = GRPOConfig(problems_per_step=1, group_size=2, reward=RewardConfig(several_boxes_penalty=0.25))
    problem = Problem("1/0", "question", "7")
    texts = ("<think>\\boxed{1} \\boxed{2}</think>\\boxed{7}", "<think>hm</think>\\boxed{8} or \\boxed{7}")
    rollouts = [Rollout(problem.uid, k, [5], [1], [-1.0], "stop", 0, text) for k, text in enumerate(texts)]
    scorer = Scorer(verifier, config)
    verdicts = [scorer.submit(problem, rollout).result() for rollout in rollouts]
    group = scorer.score(problem, rollouts, verdicts)
    assert group.rewards == [1.0, 0.75]
    metrics = rollout_metrics([group_facts(group)])
    assert metrics["several_boxes_share"] == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<think>a</think>\boxed{1}", True),
        (r"a</think>\boxed{1}", False),
        (r"<think>a \boxed{1}", False),
        ("<think>a</think>", False),
        (r"<think>a</think>b</think>\boxed{1}", False),
    ],
)
def test_a_well_formed_response_thinks_once_then_answers(text: str, expected: bool) -> None:
    assert well_formed(text) is expected
