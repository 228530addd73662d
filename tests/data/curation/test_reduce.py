"""Decisions over all facts: the teacher, pass rates, difficulty, weights, traces of a problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from falcon_h1r.config_data import CurateConfig, DifficultyWeightsConfig, TraceFiltersConfig
from falcon_h1r.data.curation.facts import FACTS, NAMED, VERDICTS, CorpusFacts, problem_key
from falcon_h1r.data.curation.reduce import Reduced, reduce_corpus
from falcon_h1r.types import DIFFICULTIES, InputError, content_hash


def corpus_of(*rows: dict[str, Any]) -> CorpusFacts:
    """Traces alive unless they have a `reason`; of problem 1, teacher a, judged correct, unless they say otherwise."""
    defaults = {
        "problem": 1, "source": "s", "teacher": "a", "domain": "math", "family": "", "reason": "", "verdict": "correct",
        "difficulty": None, "weight": 1.0, "pass_rate": np.nan, "response_tokens": 10, "given": -1,
    }  # fmt: skip
    full = [{**defaults, **row} for row in rows]
    names = {column: sorted({row[column] for row in full}) for column in NAMED}
    facts = np.zeros(len(full), FACTS)
    for place, row in enumerate(full):
        for column, value in row.items():
            if column in NAMED:
                value = names[column].index(value)
            elif column == "verdict":
                value = VERDICTS.index(value)
            elif column == "difficulty":
                value = -1 if value is None else DIFFICULTIES.index(value)
            facts[place][column] = value
    return CorpusFacts(facts, names, np.array([0, len(full)]))


def reduce(corpus: CorpusFacts, **settings: Any) -> Reduced:
    return reduce_corpus(corpus, CurateConfig(**settings), [], seed=0)


def reasons(corpus: CorpusFacts) -> list[str]:
    return [corpus.names["reason"][place] for place in corpus.facts["reason"]]


def difficulties(corpus: CorpusFacts) -> list[str | None]:
    return [None if place < 0 else DIFFICULTIES[place] for place in corpus.facts["difficulty"]]


# -----------------------------------------------------------------------------
# The teacher


def test_one_teacher_stays() -> None:
    corpus = corpus_of({}, {"teacher": "b"}, {"teacher": "b", "reason": "no_box"}, {"reason": "wrong"})
    assert reduce(corpus, keep_teacher="a").teacher == "a"
    assert reasons(corpus) == ["", "other_teacher", "other_teacher", "wrong"]


def test_the_teacher_of_most_solved_problems_is_chosen_however_many_traces_others_wrote() -> None:
    many = [{"teacher": "a", "problem": 1}] * 5
    corpus = corpus_of(*many, {"teacher": "b", "problem": 1}, {"teacher": "b", "problem": 2, "verdict": "correct"})
    reduced = reduce(corpus, keep_teacher="by_coverage")
    assert (reduced.teacher, reduced.coverage) == ("b", {"a": 1, "b": 2})
    assert reasons(corpus) == ["other_teacher"] * 5 + ["", ""]


def test_what_was_not_judged_right_covers_nothing() -> None:
    wrong = [{"teacher": "b", "problem": n, "verdict": "wrong", "reason": "wrong"} for n in range(3)]
    assert reduce(corpus_of({}, *wrong), keep_teacher="by_coverage").teacher == "a"


def test_a_teacher_who_wrote_nothing_is_a_mistake() -> None:
    with pytest.raises(InputError, match=r"curate\.keep_teacher=c: wrote none of the traces \(there are: a, b\)"):
        reduce(corpus_of({}, {"teacher": "b"}), keep_teacher="c")


# -----------------------------------------------------------------------------
# Difficulty


def test_pass_rates_are_over_the_traces_of_all_teachers_that_were_judged_or_gave_no_answer() -> None:
    wrong = {"verdict": "wrong", "reason": "wrong", "teacher": "b"}
    unjudged = {"verdict": "", "reason": "too_long_response"}
    corpus = corpus_of({}, {}, wrong, {"verdict": "no_answer", "reason": "no_box"}, unjudged, {"problem": 2})
    reduced = reduce(corpus, weights=DifficultyWeightsConfig(measured_by="pass_rate"), keep_teacher="a")
    assert reduced.pass_rates.tolist() == [0.5] * 5 + [1.0]
    assert difficulties(corpus) == ["medium"] * 5 + ["easy"]


@pytest.mark.parametrize(
    ("rate", "difficulty", "weight"),
    [(1.0, "easy", 0.5), (0.75, "easy", 0.5), (0.74, "medium", 1.0), (0.26, "medium", 1.0), (0.25, "hard", 1.25),
     (0.125, "hard", 1.5), (0.0, "hard", 1.75)],
)  # fmt: skip
def test_hard_weights_rise_as_the_pass_rate_falls(rate: float, difficulty: str, weight: float) -> None:
    corpus = corpus_of({"pass_rate": rate})
    reduce(corpus, weights=DifficultyWeightsConfig(measured_by="pass_rate", pass_rates="rows"))
    assert difficulties(corpus) == [difficulty]
    assert corpus.facts["weight"][0] == pytest.approx(weight)


def test_pass_rates_of_a_file_are_found_by_uid_and_other_problems_keep_their_label(tmp_path: Path) -> None:
    uids = [content_hash("one"), "problem-7", "unknown"]
    path = tmp_path / "pass_rates.jsonl"
    rows = [{"uid": uid, "pass_rate": float(place)} for place, uid in enumerate(uids[:2])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = corpus_of(*({"problem": problem_key(uid), "difficulty": "medium"} for uid in uids))
    reduce(corpus, weights=DifficultyWeightsConfig(measured_by="pass_rate", pass_rates=str(path)))
    assert difficulties(corpus) == ["hard", "easy", "medium"]
    path.write_text('{"uid": "a", "pass_rate": 1.5}\n')
    with pytest.raises(InputError, match="line 1: needs a uid and a pass_rate from 0 to 1"):
        reduce(corpus, weights=DifficultyWeightsConfig(measured_by="pass_rate", pass_rates=str(path)))


def test_pass_rates_that_nobody_knows_are_a_mistake() -> None:
    with pytest.raises(InputError, match=r"curate\.weights\.pass_rates=rows: no problem has a pass rate"):
        reduce(corpus_of({}), weights=DifficultyWeightsConfig(measured_by="pass_rate", pass_rates="rows"))


def test_length_is_that_of_a_problems_shortest_trace_alive() -> None:
    corpus = corpus_of(
        {"problem": 1, "response_tokens": 50_000},
        {"problem": 1, "response_tokens": 5_000},
        {"problem": 1, "response_tokens": 10, "reason": "no_box"},
        {"problem": 2, "response_tokens": 22_000},
        {"problem": 3, "response_tokens": 100},
    )
    reduce(corpus, weights=DifficultyWeightsConfig(measured_by="trace_tokens"))
    assert difficulties(corpus) == ["medium", "medium", "medium", "hard", "easy"]
    assert corpus.facts["weight"][[0, 3, 4]].tolist() == pytest.approx([1.0, 1.5, 0.5])


def test_labels_weigh_as_the_report_says_and_a_sources_own_weight_multiplies() -> None:
    rows = [{"difficulty": name, "weight": 2.0} for name in (*DIFFICULTIES, None)]
    corpus = corpus_of(*rows)
    corpus.facts["hardness"][2] = 1.0
    reduce(corpus)
    assert corpus.facts["weight"].tolist() == [1.0, 2.0, 3.5, 2.0]


@pytest.mark.parametrize("uid", ["-000000000000001", "0x00000000000001", "00000000_0000001", "ABCDEFABCDEFABCD", "7"])
def test_a_uid_that_only_looks_like_a_hash_is_hashed(uid: str) -> None:
    assert problem_key(uid) == int(content_hash(uid), 16)
    assert problem_key(content_hash(uid)) == int(content_hash(uid), 16)


def test_a_weight_that_is_written_as_zero_drops() -> None:
    corpus = corpus_of({"weight": 1e-8}, {"weight": 1e-6})
    reduce(corpus)
    assert reasons(corpus) == ["no_weight", ""]


def test_a_weight_of_zero_drops() -> None:
    corpus = corpus_of({"difficulty": "easy"}, {"difficulty": "medium"}, {"weight": 0.0})
    reduce(corpus, weights=DifficultyWeightsConfig(easy=0.0))
    assert reasons(corpus) == ["no_weight", "", "no_weight"]


def test_very_hard_problems_may_keep_what_could_not_be_judged_but_nothing_wrong() -> None:
    statuses = ("undecided", "unverifiable_gold", "wrong")
    rows = [{"verdict": status, "reason": status, "difficulty": "hard"} for status in statuses]
    corpus = corpus_of(*rows, {**rows[0], "difficulty": "medium"})
    reduce(corpus, filters=TraceFiltersConfig(keep_unproved=["very_hard"]))
    assert reasons(corpus) == ["", "", "wrong", "undecided"]


# -----------------------------------------------------------------------------
# Traces of a problem


def test_the_first_traces_of_each_problem_stay() -> None:
    problems = [5, 7, 5, 5, 7, 5, 9]
    corpus = corpus_of(*({"problem": problem} for problem in problems), {"problem": 9, "reason": "no_box"})
    reduce(corpus, traces_per_problem=2)
    enough = "enough_of_problem"
    assert reasons(corpus) == ["", "", "", enough, "", enough, "", "no_box"]
