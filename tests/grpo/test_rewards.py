"""Rewards: structure, scripts, length, verdicts that are missing, programs; and what a hostile text or worker does."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config import CodeVerifierConfig, Config
from falcon_h1r.config_checks_grpo import check_grpo
from falcon_h1r.config_grpo import GRPOConfig, RewardConfig
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.grpo.metrics import group_facts, rollout_metrics, sample_rows
from falcon_h1r.grpo.rewards import (
    Scorer,
    open_scorer,
    overlong_share,
    reward_parts,
    settle_unjudged,
    thinking_opened,
    well_formed,
)
from falcon_h1r.grpo.stream import open_stream
from falcon_h1r.grpo.text_signals import other_script_share, repeated_ngram_share, think_fault
from falcon_h1r.types import InputError, Problem, Rollout, Verdict
from falcon_h1r.verifier import Verifier
from falcon_h1r.verifier.workers.sandbox import sandbox_support

PROBLEM = Problem("p", "What is 3 + 4?", "7")
RIGHT, WRONG = Verdict("correct", "string", ""), Verdict("wrong", "number", "")
GOOD = "<think>three and four</think>So \\boxed{7}."


def rollout_of(text: str, tokens: int = 5, stop: Any = "stop", sample: int = 0) -> Rollout:
    return Rollout("p", sample, [1], list(range(tokens)), [-1.0] * tokens, stop, 0, text)


# -----------------------------------------------------------------------------
# Structure


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, None),
        ("\n <think>\na\n</think>\n\nb", None),
        ("", "unopened"),
        ("7", "unopened"),
        ("a</think>7", "unopened"),
        ("Well, <think>a</think>7", "before"),
        ("a</think><think>b</think>7", "before"),
        ("<think>a", "unclosed"),
        ("<think>a <think>b</think>7", "repeated"),
        ("<think>a</think>b</think>7", "repeated"),
        ("<think>a</think>7<think>b</think>8", "repeated"),
        ("<think>a</think>7<think>", "repeated"),
        ("<think> \n</think>7", "empty"),
        ("<think></think>7", "empty"),
        ("<think>a</think>", "unanswered"),
        ("<think>a</think> \n ", "unanswered"),
    ],
)
def test_the_first_fault_of_a_structure_is_named(text: str, fault: str | None) -> None:
    assert think_fault(text) == fault
    assert well_formed(text) is (fault is None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("three and four</think>7", None),
        ("<think>again</think>7", "repeated"),
        ("</think>7", "empty"),
        ("three and four", "unclosed"),
        ("", "unclosed"),
    ],
)
def test_a_prompt_that_opened_the_thinking_asks_for_no_second_opening(text: str, fault: str | None) -> None:
    assert think_fault(text, opened=True) == fault


def test_a_template_that_ends_in_think_is_recognised(tokenizer: Any) -> None:
    assert not thinking_opened(tokenizer)
    opening = tokenizer.chat_template.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    assert opening != tokenizer.chat_template
    before, tokenizer.chat_template = tokenizer.chat_template, opening
    try:
        assert thinking_opened(tokenizer)
        with open_scorer(Config(), tokenizer) as scorer:
            assert scorer.thinking_opened
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize(
    ("text", "blamed"), [("<think>a", False), ("<think>a</think>", False), ("a b c", True), ("<think><think>a", False)]
)
def test_a_cut_response_is_blamed_for_what_it_wrote_and_not_for_its_missing_end(text: str, blamed: bool) -> None:
    config = GRPOConfig(reward=RewardConfig(format_penalty=0.5))
    parts = reward_parts(PROBLEM, rollout_of(text, stop="length"), WRONG, config)
    assert parts["format"] == (-0.5 if blamed else 0.0)
    assert reward_parts(PROBLEM, rollout_of(text), WRONG, config)["format"] == -0.5


# -----------------------------------------------------------------------------
# Scripts


@pytest.mark.parametrize(
    "text",
    [
        "Let α and β be roots, so αβ = 7, Δx > 0 and Σαβ = 3.",
        "The answer is $\\text{ответ}$ or \\(\\text{答案}\\).",
        "𝑥 + 𝒴 = ℝ and 5 Å, naïve, Straße, 7 µm",
        "∑∫∞≤≥ 1 2 3",
        "",
        "\ud800\udfff \x00",
        "```python\nx = 'Москва'\n```",
    ],
)
def test_mathematics_and_latin_letters_are_no_mixing(text: str) -> None:
    assert other_script_share(text, PROBLEM.question) == 0.0


@pytest.mark.parametrize(
    ("text", "question", "share"),
    [
        ("abcde 所以答案是", "What is it?", 5 / 10),
        ("abcdef ответ", "What is it?", 5 / 11),
        ("abcd الجواب", "What is it?", 6 / 10),
        ("abcdef απάντηση", "What is it?", 8 / 14),
        ("abcde 所以答案是", "三加四是多少？", 0.0),
        ("only English words", "三加四是多少？", 0.0),
        ("ответ 所以", "Сколько будет три плюс четыре?", 2 / 7),
        ("答えは七です", "さんたすよんはなんですか", 0.0),
        ("所以答案是", "What is it?", 1.0),
    ],
)
def test_letters_of_a_script_that_is_not_the_questions_are_mixing(text: str, question: str, share: float) -> None:
    assert other_script_share(text, question) == pytest.approx(share)


def test_the_penalty_is_the_share_times_its_weight() -> None:
    config = GRPOConfig(reward=RewardConfig(language_mixing_penalty=0.5))
    parts = reward_parts(PROBLEM, rollout_of("<think>abc</think> 所以答案是七"), RIGHT, config)
    letters = len("think") * 2 + 3 + 6
    assert parts == {"correct": 1.0, "language_mixing": pytest.approx(-0.5 * 6 / letters)}


# -----------------------------------------------------------------------------
# Repetition and length


def repeated_share_of_tuples(ids: list[int], n: int) -> float:
    """The readable twin: n-grams as tuples in a set."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


@given(st.lists(st.sampled_from([0, 1, 7, 130_047]), max_size=60), st.integers(1, 9))
def test_hashed_ngrams_repeat_as_often_as_tuples_do(ids: list[int], n: int) -> None:
    assert repeated_ngram_share(ids, n) == repeated_share_of_tuples(ids, n)


def test_a_long_response_of_a_large_vocabulary_has_the_share_of_its_tuples() -> None:
    rng = random.Random(0)
    ids = [rng.randrange(130_048) for _ in range(20_000)]
    ids += ids[5_000:15_000]
    assert repeated_ngram_share(ids) == repeated_share_of_tuples(ids, 8) > 0.3


@pytest.mark.parametrize(
    ("tokens", "share"), [(0, 0.0), (60, 0.0), (61, 0.025), (80, 0.5), (99, 0.975), (100, 1.0), (120, 1.0)]
)
def test_overlong_punishment_grows_over_the_last_tokens_before_the_limit(tokens: int, share: float) -> None:
    assert overlong_share(tokens, limit=100, buffer_tokens=40) == pytest.approx(share)
    config = GRPOConfig(
        limits=LimitsConfig(response_tokens=100), reward=RewardConfig(overlong_penalty=0.4, overlong_buffer_tokens=40)
    )
    assert reward_parts(PROBLEM, rollout_of(GOOD, tokens), RIGHT, config)["overlong"] == pytest.approx(-0.4 * share)


def test_only_the_limit_makes_a_rollout_truncated() -> None:
    config = GRPOConfig(reward=RewardConfig(truncated_penalty=0.3))
    rollouts = [rollout_of(GOOD, stop=stop) for stop in ("length", "stop", "abort")]
    costs = [reward_parts(PROBLEM, rollout, RIGHT, config)["truncated"] for rollout in rollouts]
    assert costs == [-0.3, 0.0, 0.0]


# -----------------------------------------------------------------------------
# Whole rewards


def test_a_reward_is_the_sum_of_its_parts_and_parts_without_weight_are_not_there() -> None:
    config = GRPOConfig(reward=RewardConfig(correct=2.0, format_penalty=0.25, several_boxes_penalty=0.5))
    rollouts = [rollout_of("\\boxed{7}"), rollout_of("<think>a</think>\\boxed{8} \\boxed{7}"), rollout_of(GOOD)]
    with Verifier(after_think=True) as verifier:
        group = Scorer(verifier, config).score(PROBLEM, rollouts, [WRONG, RIGHT, RIGHT])
    assert group.parts == [
        {"correct": 0.0, "format": -0.25, "several_boxes": 0.0},
        {"correct": 2.0, "format": 0.0, "several_boxes": -0.5},
        {"correct": 2.0, "format": 0.0, "several_boxes": 0.0},
    ]
    assert group.rewards == [-0.25, 1.5, 2.0]


def test_a_fault_of_the_verifiers_own_gives_no_credit_and_a_missed_deadline_is_wrong() -> None:
    parts = [{"correct": value, "format": -0.1} for value in (1.0, 0.0, 0.0, 0.0)]
    verdicts = [RIGHT, WRONG, Verdict("undecided", "deadline", ""), Verdict("undecided", "worker", "")]
    settled = settle_unjudged(parts, verdicts)
    assert [each["correct"] for each in settled] == [1.0, 0.0, 0.0, pytest.approx(1 / 3)]
    assert {each["format"] for each in settled} == {-0.1}
    rewards = [sum(each.values()) for each in settled]
    assert rewards[3] == pytest.approx(sum(rewards) / 4)  # its advantage is zero


def test_a_fault_among_equals_makes_no_contrast() -> None:
    for correct in (0.1, 0.7, 1.1):
        verdicts = [RIGHT] * 7 + [Verdict("undecided", "worker", "")]
        settled = settle_unjudged([{"correct": correct}] * 7 + [{"correct": 0.0}], verdicts)
        assert {each["correct"] for each in settled} == {correct}


def test_a_group_without_one_judgement_has_no_contrast() -> None:
    parts = [{"correct": 0.0}] * 3
    assert settle_unjudged(parts, [Verdict("undecided", "worker", "")] * 3) == parts


def test_a_gold_that_cannot_be_judged_makes_a_group_that_is_worth_nothing() -> None:
    config = GRPOConfig(reward=RewardConfig(format_penalty=0.5))
    problem = Problem("p", "?", "\\frac{1}{")
    rollouts = [rollout_of(GOOD), rollout_of("no structure")]
    with Verifier(after_think=True) as verifier:
        scorer = Scorer(verifier, config)
        assert not scorer.check_problem(problem)
        group = scorer.score(problem, rollouts, [scorer.submit(problem, each).result() for each in rollouts])
    assert group.rewards == [0.0, 0.0]
    assert not group.has_contrast
    metrics = rollout_metrics([group_facts(group)])
    assert metrics["format_broken_share"] == 0.5
    assert metrics["unverifiable_gold_share"] >= 0.5


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (RewardConfig(correct=0.0), "grpo.reward.correct=0.0: has to be above 0"),
        (RewardConfig(format_penalty=-0.1), "grpo.reward.format_penalty=-0.1: has to be at least 0"),
        (RewardConfig(overlong_penalty=1.0), "overlong_buffer_tokens=0: overlong_penalty needs 1 to"),
    ],
)
def test_weights_that_make_no_sense_are_refused(reward: RewardConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_grpo(GRPOConfig(reward=reward))


# -----------------------------------------------------------------------------
# Programs

TESTS = '{"inputs": ["1 2", "5 5"], "outputs": ["3", "10"]}'
ADDITION = Problem("add", "Add two numbers.", "", domain="code", tests=TESTS)
SUM, FIRST = "print(sum(map(int, input().split())))", "print(int(input().split()[0]) * 2)"


def program(code: str) -> str:
    return f"<think>easy</think>\n```python\n{code}\n```\n"


@pytest.fixture(scope="module")
def code_scorer() -> Iterator[Scorer]:
    if missing := sandbox_support().missing():
        pytest.skip(f"programs cannot be confined here: no {missing[0]}")
    config = Config()
    config.verifier.code = CodeVerifierConfig(memory_limit_gib=0.5)
    config.grpo.selection.domains = ["math", "code"]
    config.grpo.reward = RewardConfig(several_boxes_penalty=0.5)
    with open_scorer(config) as scorer:
        yield scorer


def test_a_program_earns_its_reward_by_passing_every_test(code_scorer: Scorer) -> None:
    texts = [program(SUM), program(FIRST), SUM, program(f"{SUM}  # \\boxed{{1}} \\boxed{{2}}")]
    rollouts = [rollout_of(text, sample=k) for k, text in enumerate(texts)]
    futures = [code_scorer.submit(ADDITION, each) for each in rollouts]
    group = code_scorer.score(ADDITION, rollouts, [future.result() for future in futures])
    assert group.rewards == [1.0, 0.0, 0.0, 1.0]  # boxes are for answers, not for programs
    metrics = rollout_metrics([group_facts(group)])
    assert (metrics["pass_at_1"], metrics["several_boxes_share"], metrics["no_box_share"]) == (0.5, 0.0, 0.0)
    assert [row["prediction"] for row in sample_rows([group], 1)] == [None] * 4


def test_each_domain_is_judged_by_its_own_verifier(code_scorer: Scorer) -> None:
    maths = Problem.from_question("Compute 1+1.", "2")
    assert code_scorer.submit(maths, rollout_of("<think>a</think>\\boxed{2}")).result().correct
    usable = [
        maths,
        ADDITION,
        Problem("cpp", "Add.", "", domain="code", tests=TESTS, language="c++"),
        Problem("none", "Add.", "", domain="code"),
        Problem("broken", "Add.", "", domain="code", tests='{"inputs": ["1"], "outputs": []}'),
        Problem.from_question("Prove it.", "2", verifiable=False),
    ]
    assert [code_scorer.check_problem(problem) for problem in usable] == [True, True, False, False, False, False]


def test_programs_are_drawn_where_the_config_names_code_and_left_out_where_not(
    tokenizer: Any, code_scorer: Scorer
) -> None:
    config = Config(system_prompt="")
    config.grpo.limits.prompt_tokens = 100
    config.grpo.problems_per_step = 1
    problems = [Problem.from_question("Compute 1+1.", "2"), ADDITION]
    _, counts = open_stream(problems, tokenizer, config, code_scorer.check_problem)
    assert counts["other_domain"] == 1
    config.grpo.selection.domains = ["math", "code"]
    stream, counts = open_stream(problems, tokenizer, config, code_scorer.check_problem)
    assert not any(counts.values())
    assert {stream.draw(), stream.draw()} == {problem.uid for problem in problems}


def test_without_sandboxes_programs_cannot_be_judged_and_are_not_called_wrong() -> None:
    with open_scorer(Config()) as scorer:
        assert scorer.code is None
        assert not scorer.check_problem(ADDITION)
        assert scorer.submit(ADDITION, rollout_of(program(SUM))).result().status == "unverifiable_gold"


# -----------------------------------------------------------------------------
# What goes wrong

ALL_WEIGHTS = RewardConfig(
    format_penalty=0.1, several_boxes_penalty=0.1, language_mixing_penalty=0.1, truncated_penalty=0.1,
    overlong_penalty=0.1, overlong_buffer_tokens=100,
)  # fmt: skip
MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "a" * MEGABYTE,
        "<think>" * (MEGABYTE // 7),
        "<think>a</think>" + "\\boxed{" * (MEGABYTE // 28),
        "<think>a</think>" + "\\boxed{7}" * (MEGABYTE // 36),
        "<think>" + "答" * (MEGABYTE // 3) + "</think>\\boxed{7}",
        "<think>" + "$" * MEGABYTE + "é</think>\\boxed{7}",
        "<think>αβ" + "\\(" * (MEGABYTE // 32) + "</think>\\boxed{7}",
        "<think>\ud800\udc00\x00\udfff</think>\x00\\boxed{\ud8007\x00}",
        "\x00" * 1000,
    ],
    ids=[
        "empty", "white", "megabyte", "openings", "open-boxes", "boxes", "han", "dollars", "brackets", "surrogates",
        "nuls",
    ],
)  # fmt: skip
def test_any_text_is_scored_counted_and_logged(text: str) -> None:
    with Verifier(after_think=True) as verifier:
        scorer = Scorer(verifier, GRPOConfig(reward=ALL_WEIGHTS))
        rollouts = [rollout_of(text, tokens=0 if not text else 5), rollout_of(GOOD, sample=1)]
        verdicts = [scorer.submit(PROBLEM, each).result() for each in rollouts]
        group = scorer.score(PROBLEM, rollouts, verdicts)
    metrics = rollout_metrics([group_facts(group)])
    assert group.rewards[1] == 1.0
    assert group.rewards[0] <= 1.0
    assert metrics["empty_share"] == (0.0 if text.strip() else 0.5)
    assert len(sample_rows([group], step=1)) == 2


def test_a_worker_that_is_killed_costs_its_rollout_the_credit_and_the_group_goes_on() -> None:
    problem = Problem("hard", "?", "2\\sqrt{2}")
    texts = [f"<think>a</think>\\boxed{{\\sqrt{{{n}}}}}" for n in (9, 8, 7)]
    rollouts = [rollout_of(text, sample=k) for k, text in enumerate(texts)]
    with Verifier(after_think=True, deadline_seconds=60.0) as verifier:
        verifier.start()
        scorer = Scorer(verifier, GRPOConfig())
        (pid,) = verifier._pool.process_ids()
        os.kill(pid, signal.SIGSTOP)  # so that it is asked, and has not answered, when it dies
        futures = [scorer.submit(problem, each) for each in rollouts]
        while verifier._pool._tasks.qsize() == len(rollouts):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        verdicts = [future.result() for future in futures]
        assert verifier.num_lost_workers == 1
    assert [verdict.status for verdict in verdicts] == ["undecided", "correct", "wrong"]
    group = scorer.score(problem, rollouts, verdicts)
    assert group.rewards == [0.5, 1.0, 0.0]
    metrics = rollout_metrics([group_facts(group)])
    assert metrics["verifier_fault_share"] == metrics["undecided_share"] == pytest.approx(1 / 3)


def test_a_worker_that_hangs_is_replaced_and_what_it_held_up_is_wrong() -> None:
    problem = Problem("hard", "?", "2\\sqrt{2}")
    texts = [f"<think>a</think>\\boxed{{\\sqrt{{{n}}}}}" for n in (9, 8, 7)]
    rollouts = [rollout_of(text, sample=k) for k, text in enumerate(texts)]
    with Verifier(after_think=True, deadline_seconds=0.8) as verifier:
        verifier.start()
        scorer = Scorer(verifier, GRPOConfig())
        os.kill(verifier._pool.process_ids()[0], signal.SIGSTOP)
        verdicts = [future.result() for future in [scorer.submit(problem, each) for each in rollouts]]
        assert verifier.num_deadline_kills == 1
    assert [(verdict.status, verdict.stage == "deadline") for verdict in verdicts] == [
        ("undecided", True),
        ("correct", False),
        ("wrong", False),
    ]
    group = scorer.score(problem, rollouts, verdicts)
    assert group.rewards == [0.0, 1.0, 0.0]
    metrics = rollout_metrics([group_facts(group)])
    assert (metrics["undecided_share"], metrics["verifier_fault_share"]) == (pytest.approx(1 / 3), 0.0)
