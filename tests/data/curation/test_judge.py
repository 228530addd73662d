"""What speaks against a trace, in the order in which it is looked for; and what is remembered of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from falcon_h1r.config import Config
from falcon_h1r.config_data import CurateConfig, TraceFiltersConfig
from falcon_h1r.data.curation.facts import FactsWriter
from falcon_h1r.data.curation.judge import ChunkJudge, token_counter
from falcon_h1r.data.problems import generate_problems
from falcon_h1r.data.teachers import CarelessTeacher, write_traces
from falcon_h1r.types import Difficulty, InputError, Problem, Trace, Verdict
from falcon_h1r.verifier import Verifier

PROBLEMS = list(generate_problems(seed=0, count=400))


def score(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
    """A verifier that compares strings and gives up on a question mark."""

    def judge(prediction: str, gold: str) -> Verdict:
        if "?" in prediction:
            return Verdict("undecided", "sympy", "gave up")
        return Verdict("correct" if prediction == rf"\boxed{{{gold}}}" else "wrong", "string", "as it stands")

    return [judge(prediction, gold) for prediction, gold in zip(predictions, golds, strict=True)]


def never(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
    raise AssertionError("judged by the wrong verifier")


def judge_of(
    curate: CurateConfig | None = None, score: Any = score, check_gold: Any = lambda gold: gold != "?"
) -> ChunkJudge:
    config = Config()
    config.curate = curate or CurateConfig()
    return ChunkJudge(config, score, never, check_gold)


def trace(
    reasoning: str = "1+1=2",
    response: str = r"\boxed{2}",
    gold: str = "2",
    teacher: str = "a",
    difficulty: Difficulty | None = None,
    given: bool | None = None,
    **problem: Any,
) -> Trace:
    return Trace(
        Problem("u", "1+1?", gold, "sums", difficulty, **problem), teacher, reasoning, response, given_verdict=given
    )


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (trace(teacher="b"), "other_teacher", ""),
        (trace(reasoning=" \n"), "empty_reasoning", ""),
        (trace(response=""), "empty_answer", ""),
        (trace(response=r"\boxed{ }"), "empty_answer", ""),
        (trace(gold=""), "empty_answer", ""),
        (trace(response="It is 2."), "no_box", ""),
        (trace(response=r"\boxed{2"), "no_box", ""),
        (trace(response=r"\boxed{3}"), "wrong", "string: as it stands"),
        (trace(response=r"\boxed{?}"), "undecided", "sympy: gave up"),
        (trace(gold="?"), "unverifiable_gold", "gold: '?' cannot be read"),
        (trace(verifiable=False), "unproved", ""),
    ],
)
def test_a_bad_trace_is_dropped_with_its_reason_and_the_good_stay(bad: Trace, reason: str, detail: str) -> None:
    judged = judge_of(CurateConfig(keep_teacher="a")).judge([trace(), bad, trace()])
    assert [(one.reason, one.detail) for one in judged] == [("", ""), (reason, detail), ("", "")]


def test_what_needs_no_proof_is_kept_unjudged() -> None:
    chat = Trace(Problem("u", "Hello?", "", domain="other", verifiable=False), "a", "polite", "Hello.")
    proof = trace(verifiable=False, gold="")
    assert [one.reason for one in judge_of(score=never).judge([chat, proof])] == ["", "unproved"]
    allowed = CurateConfig(filters=TraceFiltersConfig(keep_unproved=["proof"]))
    assert [one.reason for one in judge_of(allowed, score=never).judge([chat, proof])] == ["", ""]


def test_the_sources_verdict_can_be_a_second_check() -> None:
    given = CurateConfig(filters=TraceFiltersConfig(second_check="given"))
    traces = [trace(given=given) for given in (True, None, False)]
    assert [one.reason for one in judge_of(given).judge(traces)] == ["", "", "second_check"]
    assert [one.reason for one in judge_of().judge(traces)] == ["", "", ""]


def test_the_verifier_finds_exactly_the_careless_errors() -> None:
    traces = list(write_traces(PROBLEMS, CarelessTeacher(0.5), seed=0))
    with Verifier() as verifier:
        judged = judge_of(score=verifier.score, check_gold=verifier.check_gold).judge(traces)
    wrong = [trace.response != rf"\boxed{{{trace.problem.answer}}}" for trace in traces]
    assert [one.reason == "wrong" for one in judged] == wrong
    assert 100 < sum(wrong) < 300


def test_other_teachers_are_not_even_verified_unless_pass_rates_need_them() -> None:
    seen: list[str] = []

    def counting(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        seen.extend(predictions)
        return score(predictions, golds)

    traces = [trace(), trace(teacher="b", response=r"\boxed{7}"), trace(response="none")]
    curate = CurateConfig(keep_teacher="a")
    judge_of(curate, counting).judge(traces)
    assert seen == [r"\boxed{2}"]
    curate.weights.measured_by = "pass_rate"
    judge_of(curate, counting).judge(traces)
    assert seen == [r"\boxed{2}", r"\boxed{2}", r"\boxed{7}"]


def test_a_gold_that_cannot_be_read_is_asked_once_and_never_scored() -> None:
    broken = trace(gold=r"\frac{1}{", response=r"\boxed{2}")
    asked: list[str] = []
    scored: list[str] = []

    def check_gold(gold: str) -> bool:
        asked.append(gold)
        return gold == "2"

    def score_all(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        scored.extend(golds)
        return [Verdict("correct", "string", "equal")] * len(golds)

    judged = judge_of(score=score_all, check_gold=check_gold).judge([broken, trace(), broken])
    assert [one.reason for one in judged] == ["unverifiable_gold", "", "unverifiable_gold"]
    assert asked == [r"\frac{1}{", "2"] and scored == ["2"]


def test_a_verdict_that_the_machines_load_decided_is_asked_again() -> None:
    stages = ["deadline", "string"]

    def loaded(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        stage = stages.pop(0)
        return [Verdict("correct" if stage == "string" else "undecided", stage, "")] * len(predictions)

    (one,) = judge_of(score=loaded).judge([trace()])
    assert one.reason == "" and not stages


def test_only_what_can_be_solved_can_be_failed_at() -> None:
    chat = {"gold": "", "domain": "other", "verifiable": False}
    traces = [trace(response="none"), trace(response=""), trace(gold=""), trace(response="", **chat)]
    judged = judge_of().judge(traces)
    assert [one.verdict for one in judged] == ["no_answer", "no_answer", "", ""]
    assert [one.reason for one in judged] == ["no_box", "empty_answer", "empty_answer", "empty_answer"]


def test_facts_say_what_was_judged() -> None:
    traces = [trace(given=False, difficulty="hard"), trace(teacher="b", response=r"\boxed{3}", pass_rate=0.25)]
    writer = FactsWriter("s")
    for one, judged in zip(traces, judge_of().judge(traces), strict=True):
        writer.add(one, judged)
    facts, names = writer.facts, writer.notes.names
    assert [names["teacher"][place] for place in facts["teacher"]] == ["a", "b"]
    assert [names["reason"][place] for place in facts["reason"]] == ["", "wrong"]
    assert facts["difficulty"].tolist() == [2, -1] and facts["given"].tolist() == [0, -1]
    assert np.isnan(facts["pass_rate"][0]) and facts["pass_rate"][1] == 0.25
    assert facts["hardness"].tolist() == [0.5, 0.0]
    assert writer.notes.details == {"1": "string: as it stands"} and writer.notes.disagreements == [0]


def test_tokens_are_estimated_or_counted_by_a_tokenizer(tokenizer: Any, tmp_path: Any) -> None:
    config = Config()
    assert token_counter(config)("x" * 30) == 10
    tokenizer.save_pretrained(tmp_path)
    config.curate.tokenizer = str(tmp_path)
    text = "Compute 12+30, then <think>."
    assert token_counter(config)(text) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    config.curate.tokenizer = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"curate\.tokenizer=.*nowhere: cannot be loaded"):
        token_counter(config)
