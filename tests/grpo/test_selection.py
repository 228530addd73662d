"""Which problems RL learns from: the rules, what is dropped before them, and blocks that a cut run goes on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config import Config, GRPOConfig, SelectionConfig
from falcon_h1r.config_selection import asks_for_selection, selection_limits
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.selection.handover import check_selected
from falcon_h1r.grpo.selection.outcome import write_selection
from falcon_h1r.grpo.selection.rates_file import PassRateFile
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
from falcon_h1r.grpo.selection.sampling import problems_of_a_block, sample_blocks, sampling_settings
from falcon_h1r.grpo.selection.screening import Drop, drop_long_prompts, question_key, screen_problems
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.types import InputError, Problem, Rollout, to_row
from falcon_h1r.verifier import Verifier

ALONE = World(0, 1, torch.device("cpu"))
EIGHT = SelectionConfig(num_rollouts=8, drop_consistent_wrong=4, keep_unsolved_share=0.1)
LUCKY, UNLUCKY = 0.09, 0.11  # draws on either side of the share


# -----------------------------------------------------------------------------
# The rules


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


# -----------------------------------------------------------------------------
# Before any rollout


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("What is 3 + 4?", "what is  3+4"),
        ("Find $x^{2}$.", "find x^2"),
        ("**Find** it!", "Find it."),
        ("a three-digit number", "A three digit number"),
        ("Compute 3 \N{MINUS SIGN} 4", "Compute 3-4"),
        ("Compute, then: stop", "compute then\nstop"),
    ],
)
def test_questions_that_are_the_same(question: str, other: str) -> None:
    assert question_key(question) == question_key(other)


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("3 + 4", "3 - 4"),
        ("3 * 4", "3 + 4"),
        ("2 * 3", "2 3"),
        ("1.5", "15"),
        ("gcd of 12 and 3", "gcd of 1 and 23"),
        ("(2 + 3) * 4", "2 + 3 * 4"),
        ("5! is", "5 is"),
        ("n! is", "n is"),
        ("x \N{LESS-THAN OR EQUAL TO} 3", "x \N{GREATER-THAN OR EQUAL TO} 3"),
        ("3/4", "34"),
        ("10%", "10"),
        ("5 - 3", "5 3"),
    ],
)
def test_questions_that_are_not(question: str, other: str) -> None:
    assert question_key(question) != question_key(other)


@pytest.fixture
def sft_data(tmp_path: Path) -> SourceConfig:
    path = tmp_path / "sft.jsonl"
    rows = [{"question": f"what is {n}+{n}", "answer": f"Twice. #### {2 * n}"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), answer_after="####")


def test_problems_are_dropped_for_the_first_reason_and_each_gold_is_asked_about_once(sft_data: SourceConfig) -> None:
    asked: list[str] = []

    def check_gold(gold: str) -> bool:
        asked.append(gold)
        return gold != "?"

    problems = [
        Problem.from_question("What is 1 + 1?", "2"),
        Problem.from_question("What is 5 + 5?", "10"),
        Problem.from_question("what is 5+5", "10"),
        Problem.from_question("What is 2 + 8?", "10"),
        Problem.from_question("What is life?", "?"),
        Problem.from_question("What is love?", "?"),
        Problem.from_question("Prove it.", "10", verifiable=False),
        Problem.from_question("What is DNA?", "10", domain="science"),
        Problem(problem_uid := "own", "What is 6 + 6?", "12"),
        Problem(problem_uid, "What is 7 + 7?", "14"),
    ]
    selection = SelectionConfig(disjoint_from_sft=True, drop_unverifiable=True)
    drops = screen_problems(problems, selection, sft_data, check_gold, Watch())
    assert {index: drop.reason for index, drop in drops.items()} == {
        0: "in_sft",
        2: "repeated",
        4: "unverifiable_gold",
        5: "unverifiable_gold",
        6: "unverifiable_gold",
        7: "other_domain",
        9: "repeated",
    }
    assert drops[2].detail == f"as problem {problems[1].uid}"
    assert asked == ["10", "?", "12"]


def test_what_is_not_asked_for_is_not_dropped_but_rollouts_need_a_gold(sft_data: SourceConfig) -> None:
    problems = [Problem.from_question("What is 1 + 1?", "2"), Problem.from_question("What is life?", "?")]
    plain = SelectionConfig()
    missing = SourceConfig(path="nowhere.jsonl", curated=True)
    assert screen_problems(problems, plain, missing, lambda gold: False, Watch()) == {}
    drops = screen_problems(problems, replace(plain, num_rollouts=2), missing, lambda gold: gold != "?", Watch())
    assert drops == {1: Drop("unverifiable_gold", "?")}
    with pytest.raises(InputError, match="nowhere.jsonl: no such file"):
        screen_problems(problems, replace(plain, disjoint_from_sft=True), missing, lambda gold: True, Watch())


def test_prompts_beyond_the_limit_are_dropped_and_no_drop_is_given_twice() -> None:
    drops = {0: Drop("in_sft")}
    drop_long_prompts([[1] * 9, [1] * 4, [1] * 5], 4, drops)
    assert drops == {0: Drop("in_sft"), 2: Drop("prompt_too_long", "5 tokens")}


# -----------------------------------------------------------------------------
# Blocks


class ScriptedSampler:
    """Of problem i, the first i rollouts are right; the last is cut. Remembers how many prompts it got at a time."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.num_prompts: list[int] = []
        self._fail_after = fail_after

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[Rollout]:
        if len(self.num_prompts) == self._fail_after:
            raise StopRequested
        self.num_prompts.append(len(prompts))
        rollouts = []
        for prompt in prompts:
            right = int(prompt.problem_uid.split("/")[0])
            for sample in range(settings.num_samples):
                text = f"<think>hm</think>\\boxed{{{'7' if sample < right else f'{8 + sample % 2}.0'}}}"
                stop = "length" if sample + 1 == settings.num_samples else "stop"
                rollouts.append(
                    Rollout(prompt.problem_uid, sample, prompt.input_ids, [1, 2], [0.0, 0.0], stop, 0, text)
                )
        return rollouts

    def load_weights(self, policy: Any) -> None: ...


PROBLEMS = [Problem(f"{right}/{index}", f"question {index}", "7") for index, right in enumerate([0, 4, 1, 0, 2, 3, 0])]
PROMPTS = [[5, 6]] * len(PROBLEMS)
GRPO = GRPOConfig(selection=SelectionConfig(num_rollouts=4, keep_unsolved_share=0.0))


def sampled(folder: Path, sampler: ScriptedSampler, world: World = ALONE, resume: bool = False) -> bytes:
    rates = PassRateFile(folder / "pass_rates.jsonl")
    start = rates.open(PROBLEMS, resume)
    with Verifier(after_think=True) as verifier:
        settings = sampling_settings(GRPO, seed=0)
        sample_blocks(PROBLEMS[start:], PROMPTS[start:], sampler, verifier, settings, rates, 2, world)
    return (folder / "pass_rates.jsonl").read_bytes()


def test_a_row_says_how_the_rollouts_ended(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in sampled(tmp_path, ScriptedSampler()).splitlines()]
    assert [row["uid"] for row in rows] == [problem.uid for problem in PROBLEMS]
    assert [row["pass_rate"] for row in rows] == [0.0, 1.0, 0.25, 0.0, 0.5, 0.75, 0.0]
    assert rows[0] == {
        "uid": "0/0",
        "pass_rate": 0.0,
        "num_rollouts": 4,
        "num_correct": 0,
        "num_truncated": 1,
        "num_undecided": 0,
        "majority_frequency": 2,
        "mean_response_tokens": 2.0,
    }


@pytest.mark.parametrize("cut_bytes", [0, 1, 30])
def test_a_run_that_was_cut_goes_on_from_its_last_whole_row(tmp_path: Path, cut_bytes: int) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    once.mkdir(), again.mkdir()
    whole = sampled(once, ScriptedSampler())
    with pytest.raises(StopRequested, match="stopped with 3 problems left to sample; resume=true"):
        sampled(again, ScriptedSampler(fail_after=2))
    path = again / "pass_rates.jsonl"
    path.write_bytes(path.read_bytes()[: -cut_bytes or None])
    sampler = ScriptedSampler()
    assert sampled(again, sampler, resume=True) == whole
    assert sum(sampler.num_prompts) == len(PROBLEMS) - 4 + (cut_bytes > 0)
    assert sampled(again, ScriptedSampler(fail_after=0), resume=True) == whole


def test_rows_of_other_problems_are_refused(tmp_path: Path) -> None:
    sampled(tmp_path, ScriptedSampler())
    with pytest.raises(InputError, match=r"pass_rates\.jsonl: not of these problems"):
        PassRateFile(tmp_path / "pass_rates.jsonl").open(PROBLEMS[1:], resume=True)
    assert PassRateFile(tmp_path / "pass_rates.jsonl").open(PROBLEMS[1:], resume=False) == 0


def test_ranks_share_a_block_and_the_file_does_not_show_it(tmp_path: Path, run_on_ranks: Any) -> None:
    alone = sampled(tmp_path, ScriptedSampler())
    (tmp_path / "shared").mkdir()

    def work(world: World) -> list[int]:
        rates = PassRateFile(tmp_path / "shared" / "pass_rates.jsonl")
        sampler = ScriptedSampler()
        with Verifier(after_think=True) as verifier:
            settings = sampling_settings(GRPO, seed=0)
            sample_blocks(PROBLEMS, PROMPTS, sampler, verifier, settings, rates, 3, world)
        return sampler.num_prompts

    assert run_on_ranks(2, work) == [[2, 2, 1], [1, 1, 0]]
    assert (tmp_path / "shared" / "pass_rates.jsonl").read_bytes() == alone


def test_a_block_fills_every_rank_some_times() -> None:
    grpo = GRPOConfig(selection=SelectionConfig(num_rollouts=8))
    grpo.rollout.max_slots = 64
    assert problems_of_a_block(grpo, 3) == 3 * 32
    grpo.rollout.max_slots = 1
    assert problems_of_a_block(grpo, 3) == 3


# -----------------------------------------------------------------------------
# What is left, and GRPO's look at it


def test_the_files_say_what_was_kept_and_why_the_rest_was_not(tmp_path: Path) -> None:
    sampled(tmp_path, ScriptedSampler())
    problems = [Problem("x", "other", "1", domain="science"), *PROBLEMS]
    summary = write_selection(tmp_path, problems, {0: Drop("other_domain", "science")}, GRPO, seed=0)
    kept = [json.loads(line) for line in (tmp_path / "rl.jsonl").read_text().splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(row["uid"], row["pass_rate"]) for row in kept] == [("1/2", 0.25), ("2/4", 0.5), ("3/5", 0.75)]
    assert [(row["uid"], row["reason"]) for row in dropped] == [
        ("x", "other_domain"),
        ("0/0", "consistent_wrong"),
        ("4/1", "solved"),
        ("0/3", "consistent_wrong"),
        ("0/6", "consistent_wrong"),
    ]
    assert dropped[1]["detail"] == "0 of 4 right, 2 agree, 1 cut by the limit"
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["funnel"]["problems"] == 8 and summary["funnel"]["selected"] == len(kept)
    assert summary["dropped"] == {"other_domain": 1, "solved": 1, "consistent_wrong": 3}
    assert summary["pass_rates"] == {"0/4": 3, "1/4": 1, "2/4": 1, "3/4": 1, "4/4": 1}
    assert summary["kept_unsolved"] == 0
    assert summary["rollouts"]["number"] == 28 and summary["rollouts"]["tokens"] == 56


def test_a_small_share_of_the_unsolved_is_kept_whatever_else_is_there(tmp_path: Path) -> None:
    problems = [Problem(str(number), f"question {number}", "7") for number in range(400)]
    rows = [{"uid": problem.uid, "pass_rate": 0.0, **asdict(tallied(0))} for problem in problems]
    (tmp_path / "pass_rates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grpo = GRPOConfig(selection=EIGHT)
    summary = write_selection(tmp_path, problems, {}, grpo, seed=3)
    kept = (tmp_path / "rl.jsonl").read_bytes()
    assert summary["kept_unsolved"] == summary["funnel"]["selected"] == kept.count(b"\n")
    assert 20 < kept.count(b"\n") < 60
    write_selection(tmp_path, problems[:200], {}, grpo, seed=3)
    assert kept.startswith((tmp_path / "rl.jsonl").read_bytes())


def own_problems(folder: Path, *pass_rates: float | None) -> GRPOConfig:
    folder.mkdir()
    rows = [to_row(Problem(str(n), f"question {n}", "7", pass_rate=rate)) for n, rate in enumerate(pass_rates)]
    (folder / "rl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return GRPOConfig(data=SourceConfig(path=str(folder / "rl.jsonl"), curated=True))


def test_grpo_refuses_problems_that_were_not_selected_as_it_is_told(tmp_path: Path) -> None:
    grpo = own_problems(tmp_path / "select", 0.5, None)
    check_selected(grpo)
    grpo.selection.num_rollouts = 8
    with pytest.raises(InputError, match=r"rl\.jsonl: problem 2 \(1\) has no pass_rate.*run recipes/selection\.py"):
        check_selected(grpo)
    grpo = own_problems(tmp_path / "again", 0.5, 0.25)
    grpo.selection.num_rollouts = 8
    check_selected(grpo)
    grpo.selection.disjoint_from_sft = True
    for text in (None, "{}", "[]", '{"settings": {"disjoint_from_sft": false}}', "{"):
        if text is not None:
            (tmp_path / "again" / "summary.json").write_text(text)
        with pytest.raises(InputError, match=r"disjoint_from_sft=true: .*run recipes/selection\.py") as refusal:
            check_selected(grpo)
        assert "\n" not in str(refusal.value)
    (tmp_path / "again" / "summary.json").write_text('{"settings": {"disjoint_from_sft": true}}')
    check_selected(grpo)


def test_what_asks_for_a_selection() -> None:
    assert not asks_for_selection(Config().grpo.selection)
    for setting in (
        {"num_rollouts": 1},
        {"disjoint_from_sft": True},
        {"drop_unverifiable": True},
        {"domains": ["math", "science"]},
    ):
        assert asks_for_selection(SelectionConfig(**setting))


def test_responses_are_as_long_as_grpos_where_nothing_else_is_said() -> None:
    grpo = GRPOConfig()
    assert selection_limits(grpo).response_tokens == grpo.limits.response_tokens
    grpo.selection.max_response_tokens = 7
    limits = selection_limits(grpo)
    assert (limits.prompt_tokens, limits.response_tokens) == (grpo.limits.prompt_tokens, 7)
    assert limits.row_tokens == grpo.limits.prompt_tokens + 7
