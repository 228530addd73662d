"""The rule of RL selection, case by case: what a group of rollouts comes to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config_grpo import SelectionConfig
from falcon_h1r.grpo.selection.rules import (
    CONSISTENT_WRONG,
    SOLVED,
    UNSOLVED,
    UNSOLVED_TRUNCATED,
    Tally,
    drop_reason,
    fewest_consistent,
    tally_rollouts,
    unit_draw,
)

EIGHT = SelectionConfig(num_rollouts=8, drop_consistent_wrong=4, keep_unsolved_share=0.1)
LUCKY, UNLUCKY = 0.09, 0.11  # draws on either side of the share


def tallied(correct: int, truncated: int = 0, agreeing: int = 0, of: int = 8) -> Tally:
    return Tally(of, correct, truncated, 0, agreeing, 10.0)


@pytest.mark.parametrize(
    ("tally", "draw", "reason"),
    [
        (tallied(8, agreeing=8), LUCKY, SOLVED),
        (tallied(8, truncated=8), LUCKY, SOLVED),
        (tallied(7, agreeing=7), UNLUCKY, None),
        (tallied(1, agreeing=7), UNLUCKY, None),
        (tallied(1, truncated=7, agreeing=1), UNLUCKY, None),
        (tallied(0, truncated=8), UNLUCKY, UNSOLVED_TRUNCATED),
        (tallied(0, truncated=8), LUCKY, None),
        (tallied(0, truncated=4, agreeing=4), LUCKY, CONSISTENT_WRONG),
        (tallied(0, agreeing=8), LUCKY, CONSISTENT_WRONG),
        (tallied(0, agreeing=3), UNLUCKY, UNSOLVED),
        (tallied(0, agreeing=3), LUCKY, None),
        (tallied(0, truncated=7, agreeing=1), UNLUCKY, UNSOLVED),
        (tallied(0), UNLUCKY, UNSOLVED),
    ],
)
def test_the_published_rule(tally: Tally, draw: float, reason: str | None) -> None:
    assert drop_reason(tally, EIGHT, draw) == reason


@pytest.mark.parametrize(
    ("num_rollouts", "among_eight", "fewest"),
    [(8, 4, 4), (16, 4, 8), (4, 4, 2), (3, 4, 2), (12, 4, 6), (5, 4, 3), (1, 4, 2), (8, 2, 2), (4, 9, 5)],
)
def test_a_wrong_answer_is_consistent_from_the_same_share_on(num_rollouts: int, among_eight: int, fewest: int) -> None:
    selection = SelectionConfig(num_rollouts=num_rollouts, drop_consistent_wrong=among_eight)
    assert fewest_consistent(selection) == fewest


def test_one_rollout_agrees_with_nobody() -> None:
    once = replace(EIGHT, num_rollouts=1)
    assert drop_reason(tallied(0, agreeing=1, of=1), once, UNLUCKY) == UNSOLVED
    assert drop_reason(tallied(1, agreeing=1, of=1), once, UNLUCKY) == SOLVED


groups = st.lists(
    st.tuples(
        st.sampled_from(["correct", "wrong", "undecided", "unverifiable_gold"]),
        st.booleans(),
        st.sampled_from([None, "1", "2", "3"]),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=20,
)


@given(groups, st.randoms())
def test_the_order_of_rollouts_does_not_matter(group: list[Any], rng: Any) -> None:
    shuffled = list(group)
    rng.shuffle(shuffled)
    assert tally_rollouts(*zip(*group, strict=True)) == tally_rollouts(*zip(*shuffled, strict=True))


@given(groups, st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.floats(0, 1))
def test_what_any_group_comes_to(group: list[Any], draw: float, share: float, other_share: float) -> None:
    tally = tally_rollouts(*zip(*group, strict=True))
    smaller, larger = sorted((share, other_share))
    kept = [
        drop_reason(tally, SelectionConfig(num_rollouts=len(group), keep_unsolved_share=each), draw) is None
        for each in (smaller, larger)
    ]
    assert kept[0] <= kept[1]
    if 0 < tally.num_correct < len(group):
        assert kept == [True, True]
    if tally.num_correct == len(group):
        assert kept == [False, False]
    assert 0 <= tally.majority_frequency <= len(group) - tally.num_truncated


@given(groups.filter(lambda group: len(group) <= 8), st.floats(0, 1, exclude_max=True))
def test_every_rollout_twice_comes_to_the_same(group: list[Any], draw: float) -> None:
    group = (group * 8)[:8]
    reasons = [
        drop_reason(tally_rollouts(*zip(*each, strict=True)), replace(EIGHT, num_rollouts=len(each)), draw)
        for each in (group, group * 2)
    ]
    assert reasons[0] == reasons[1]


def test_a_tally_counts_what_is_neither_right_nor_wrong_and_lets_no_cut_rollout_vote() -> None:
    tally = tally_rollouts(
        ["correct", "wrong", "undecided", "unverifiable_gold", "wrong"],
        [False, True, False, False, False],
        ["7", "8", "8", "8", None],
        [1, 2, 3, 4, 5],
    )
    assert tally == Tally(5, 1, 1, 2, 2, 3.0)
    assert tally.pass_rate == 0.2
    with pytest.raises(ValueError, match="no rollouts"):
        tally_rollouts([], [], [], [])
    with pytest.raises(ValueError):
        tally_rollouts(["correct"], [False], [None, None], [1])


def test_draws_are_uniform_and_belong_to_a_seed_and_a_problem() -> None:
    draws = [unit_draw(0, f"problem {number}") for number in range(4000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert sum(draw < 0.1 for draw in draws) == pytest.approx(400, abs=80)  # four standard deviations
    assert draws[0] == unit_draw(0, "problem 0") != unit_draw(1, "problem 0")
