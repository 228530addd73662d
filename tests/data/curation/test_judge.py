from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from falcon_h1r.config_data import CurateConfig, DifficultyWeightsConfig, TraceFiltersConfig
from falcon_h1r.data.curation import curate_traces
from falcon_h1r.data.difficulty import difficulty_weight, hardness
from falcon_h1r.data.problems import generate_problems
from falcon_h1r.data.teachers import CarelessTeacher, TerseTeacher, VerboseTeacher, write_traces
from falcon_h1r.types import Difficulty, InputError, Problem, Trace, Verdict, trace_from_row
from falcon_h1r.verifier import Verifier

PROBLEMS = list(generate_problems(seed=0, count=400))


def score(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
    """A verifier that compares strings and gives up on a question mark."""

    def judge(prediction: str, gold: str) -> Verdict:
        if gold == "?":
            return Verdict("unverifiable_gold", "gold", "cannot be read")
        if "?" in prediction:
            return Verdict("undecided", "sympy", "gave up")
        return Verdict("correct" if prediction == rf"\boxed{{{gold}}}" else "wrong", "string", "as it stands")

    return [judge(prediction, gold) for prediction, gold in zip(predictions, golds, strict=True)]


def trace(
    reasoning: str = "1+1=2",
    response: str = r"\boxed{2}",
    gold: str = "2",
    teacher: str = "a",
    weight: float = 1.0,
    difficulty: Difficulty | None = None,
) -> Trace:
    return Trace(Problem("u", "1+1?", gold, "sums", difficulty), teacher, reasoning, response, weight)


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
        (trace(gold="?"), "unverifiable_gold", "gold: cannot be read"),
        (trace(weight=0.0), "no_weight", ""),
    ],
)
def test_a_bad_trace_is_dropped_with_its_reason_and_the_good_stay(bad: Trace, reason: str, detail: str) -> None:
    good = trace()
    curated = curate_traces([good, bad, good], CurateConfig(keep_teacher="a"), score)
    assert curated.kept == [good, good]
    assert [(dropped.trace, dropped.reason, dropped.detail) for dropped in curated.dropped] == [(bad, reason, detail)]
    assert curated.summary()["dropped_by_reason"] == {reason: 1}


def test_filters_can_be_switched_off() -> None:
    filters = TraceFiltersConfig(require_reasoning=False, require_boxed=False)
    unboxed = trace(reasoning="", response="2", gold="2")
    curated = curate_traces([unboxed], CurateConfig(filters=filters), lambda p, g: [Verdict("correct", "", "")])
    assert curated.kept == [unboxed]


def test_nothing_vanishes_and_order_is_kept() -> None:
    teachers = (VerboseTeacher(), TerseTeacher(), CarelessTeacher())
    traces = [trace for teacher in teachers for trace in write_traces(PROBLEMS, teacher, seed=0)]
    curated = curate_traces(traces, CurateConfig(), score)
    position = {(trace.teacher, trace.problem.uid): index for index, trace in enumerate(traces)}
    kept = [position[trace.teacher, trace.problem.uid] for trace in curated.kept]
    dropped = [position[one.trace.teacher, one.trace.problem.uid] for one in curated.dropped]
    assert sorted(kept + dropped) == list(range(len(traces)))
    assert kept == sorted(kept)
    assert dropped == sorted(dropped)
    assert {one.trace.teacher for one in curated.dropped} == {"careless"}


def test_the_verifier_finds_exactly_the_careless_errors() -> None:
    traces = list(write_traces(PROBLEMS, CarelessTeacher(0.5), seed=0))
    with Verifier() as verifier:
        curated = curate_traces(traces, CurateConfig(keep_teacher="careless"), verifier.score)
    wrong = [trace for trace in traces if trace.response != rf"\boxed{{{trace.problem.answer}}}"]
    assert [dropped.trace for dropped in curated.dropped] == wrong
    assert {dropped.reason for dropped in curated.dropped} == {"wrong"}
    assert 100 < len(wrong) < 300


def test_other_teachers_are_not_even_verified() -> None:
    seen: list[str] = []

    def counting(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        seen.extend(predictions)
        return score(predictions, golds)

    curate_traces([trace(), trace(teacher="b"), trace(response="none")], CurateConfig(keep_teacher="a"), counting)
    assert seen == [r"\boxed{2}"]


def test_a_teacher_who_wrote_nothing_is_a_mistake() -> None:
    with pytest.raises(InputError, match=r"curate\.keep_teacher=c: wrote none of the traces \(there are: a, b\)"):
        curate_traces([trace(), trace(teacher="b")], CurateConfig(keep_teacher="c"), score)


def test_the_summary_adds_up() -> None:
    traces = [
        trace(),
        trace(teacher="b"),
        trace(reasoning=""),
        trace(response=r"\boxed{3}"),
        trace(difficulty="easy"),
    ]
    summary = curate_traces(traces, CurateConfig(keep_teacher="a"), score).summary()
    assert summary["funnel"] == {"traces": 5, "of_the_teacher": 4, "complete": 3, "correct": 2, "kept": 2}
    assert summary["kept_by_teacher"] == {"a": 2}
    assert summary["dropped_by_teacher"] == {"a": 2, "b": 1}
    assert summary["kept_by_family"] == {"sums": 2}
    assert summary["kept_by_difficulty"] == {"None": 1, "easy": 1}
    assert summary["mean_weight"] == 0.75


def test_dropped_rows_hold_the_trace_and_are_json() -> None:
    bad = trace(response=r"\boxed{3}", difficulty="hard")
    (row,) = curate_traces([bad], CurateConfig(), score).dropped_rows()
    row = json.loads(json.dumps(row))
    assert (row.pop("reason"), row.pop("detail")) == ("wrong", "string: as it stands")
    assert trace_from_row(row) == bad


# -----------------------------------------------------------------------------
# Weights


def test_weights_follow_the_report() -> None:
    assert difficulty_weight("easy", 0.9) == 0.5
    assert difficulty_weight("medium", 0.9) == 1.0
    assert difficulty_weight(None, 0.9) == 1.0
    assert [difficulty_weight("hard", hard) for hard in (0.0, 0.5, 1.0)] == [1.25, 1.5, 1.75]


def test_weights_are_settings_and_a_weight_of_zero_drops() -> None:
    weights = DifficultyWeightsConfig(easy=0.0, medium=2.0, hard_low=3.0, hard_high=3.0)
    traces = [trace(difficulty="easy"), trace(difficulty="medium"), trace(difficulty="hard")]
    curated = curate_traces(traces, CurateConfig(weights=weights), score)
    assert [one.weight for one in curated.kept] == [2.0, 3.0]
    assert [dropped.reason for dropped in curated.dropped] == ["no_weight"]


def test_a_sources_own_weight_multiplies() -> None:
    curated = curate_traces([trace(weight=4.0, difficulty="easy")], CurateConfig(), score)
    assert curated.kept[0].weight == 2.0


def test_hardness_lies_between_zero_and_one_and_tells_hard_problems_apart() -> None:
    by_difficulty: dict[str, list[float]] = {"easy": [], "medium": [], "hard": []}
    for problem in PROBLEMS:
        by_difficulty[str(problem.difficulty)].append(hardness(problem))
    assert all(0.0 <= value <= 1.0 for values in by_difficulty.values() for value in values)
    means = {name: sum(values) / len(values) for name, values in by_difficulty.items()}
    assert means["easy"] < means["medium"] < means["hard"]
    assert len(set(by_difficulty["hard"])) > 10


def test_the_hardness_of_other_problems_is_in_the_middle() -> None:
    assert hardness(Problem.from_question("How many?", "4", family="gsm8k")) == 0.5
    assert hardness(Problem.from_question("How many?", "4", family="addition")) == 0.5


def test_a_longer_working_is_harder() -> None:
    short, long = "Compute 85+47.", "Compute 8512+4777."
    assert hardness(Problem.from_question(short, "132", family="addition")) < hardness(
        Problem.from_question(long, "13289", family="addition")
    )


def test_a_gold_that_cannot_be_read_is_asked_once_reported_and_never_scored() -> None:
    broken = trace(gold=r"\frac{1}{", response=r"\boxed{2}")
    fine = trace(gold="7", response=r"\boxed{7}")
    asked: list[str] = []
    scored: list[str] = []

    def check_gold(gold: str) -> bool:
        asked.append(gold)
        return gold == "7"

    def score_all(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        scored.extend(golds)
        return [Verdict("correct", "string", "equal")] * len(golds)

    curated = curate_traces([broken, fine, broken], CurateConfig(), score_all, check_gold=check_gold)
    assert [len(curated.kept), [d.reason for d in curated.dropped]] == [1, ["unverifiable_gold"] * 2]
    assert asked == [r"\frac{1}{", "7"] and scored == ["7"]
    assert curated.summary()["unverifiable_golds"] == [r"\frac{1}{"]
