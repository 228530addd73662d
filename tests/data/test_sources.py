from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from falcon_h1r.config import Config
from falcon_h1r.config_errors import refuse_unknown_keys
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.data.problems import generate_problems
from falcon_h1r.data.sources import check_problems, check_traces, load_problems, load_traces, read_problems
from falcon_h1r.data.teachers import TerseTeacher, write_traces
from falcon_h1r.types import InputError, Problem, Trace, Turn, content_hash, to_row

GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"
OWN = {"question": "1+1?", "answer": "2"}


def source(tmp_path: Path, *rows: Any, **fields: Any) -> SourceConfig:
    """A source over a file of these rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), **fields)


def complaint(action: Any, config: SourceConfig) -> str:
    with pytest.raises(InputError) as raised:
        action(config)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"{config.path}").removeprefix(", ").removeprefix(": ")


def test_fields_are_found_under_the_names_given(tmp_path: Path) -> None:
    row = {
        "problem": "1+1?",
        "gold": 2,
        "cot": "1+1=2",
        "model": "a",
        "topic": "sums",
        "level": "hard",
        "w": 1.5,
    }
    config = source(
        tmp_path,
        row,
        question_field="problem",
        answer_field="gold",
        reasoning_field="cot",
        teacher_field="model",
        family_field="topic",
        difficulty_field="level",
        weight_field="w",
    )
    problem = Problem(content_hash("1+1?"), "1+1?", "2", "sums", "hard")
    assert load_problems(config) == [problem]
    assert load_traces(config) == [Trace(problem, "a", "1+1=2", r"\boxed{2}", 1.5)]


def test_optional_fields_may_be_null_or_unnamed(tmp_path: Path) -> None:
    nulls = {**OWN, "cot": None, "model": None, "topic": None, "level": None}
    config = source(
        tmp_path,
        nulls,
        reasoning_field="cot",
        teacher_field="model",
        family_field="topic",
        difficulty_field="level",
    )
    expected = Problem(content_hash("1+1?"), "1+1?", "2", "unknown", None)
    assert load_traces(config) == [Trace(expected, "unknown", "", r"\boxed{2}", 1.0)]


@pytest.mark.parametrize(("answer", "gold"), [(7, "7"), (-3, "-3"), (2.5, "2.5"), ("1,000", "1,000"), (" x ", "x")])
def test_golds_may_be_numbers_and_are_otherwise_left_alone(tmp_path: Path, answer: Any, gold: str) -> None:
    assert load_problems(source(tmp_path, {"question": "?", "answer": answer}))[0].answer == gold


def test_a_worked_answer_is_divided_at_its_last_mark(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "#### is a mark.\n48/2 = <<48/2=24>>24 clips\n#### 1,024"}
    config = source(tmp_path, row, answer_after="####", strip_pattern="<<[^>]*>>")
    trace = load_traces(config)[0]
    assert trace.problem.answer == "1,024"
    assert trace.reasoning == "#### is a mark.\n48/2 = 24 clips"
    assert trace.response == r"\boxed{1,024}"


@pytest.mark.parametrize(
    ("reasoning", "thought", "response"),
    [
        ("1+1 is 2", "1+1 is 2", r"\boxed{2}"),
        (r"so \boxed{3}, no, \boxed{4}", r"so \boxed{3}, no, \boxed{4}", r"\boxed{4}"),
        ("<think>\nhm, 3\n</think>\nIt is 3.", "hm, 3", "It is 3."),
        (r"hm</think>It is \boxed{3}.", "hm", r"It is \boxed{3}."),
        (r"\boxed{5} was a guess </think> \boxed{2}", r"\boxed{5} was a guess", r"\boxed{2}"),
        ("<think>never ends", "never ends", r"\boxed{2}"),
    ],
)
def test_a_trace_is_judged_by_the_result_it_states(tmp_path: Path, reasoning: str, thought: str, response: str) -> None:
    trace = load_traces(source(tmp_path, {**OWN, "cot": reasoning}, reasoning_field="cot"))[0]
    assert (trace.reasoning, trace.response) == (thought, response)


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"question": "?", "solution": "x"}, {}, "no field 'answer' (it has: question, solution)"),
        ({}, {}, "no field 'question' (it has: none)"),
        ({"question": 3, "answer": "x"}, {}, "field 'question' has to be text, not a number"),
        ({"question": " ", "answer": "x"}, {}, "field 'question' is empty"),
        ({"question": "?", "answer": ""}, {}, "field 'answer' is empty"),
        (
            {"question": "?", "answer": True},
            {},
            "field 'answer' has to be text or a number, not true or false",
        ),
        ({"question": "?", "answer": None}, {}, "field 'answer' has to be text or a number, not null"),
        ({"question": "?", "answer": float("nan")}, {}, "field 'answer' has to be text or a number, not nan"),
        ({"question": "?", "answer": ["x"]}, {}, "field 'answer' has to be text or a number, not a list"),
        (
            {"question": "\ud800", "answer": "x"},
            {},
            "field 'question' holds half a character (a lone surrogate)",
        ),
        (OWN, {"answer_after": "####"}, "field 'answer' has no '####' before its answer"),
        ({**OWN, "answer": "x ####"}, {"answer_after": "####"}, "field 'answer' is empty"),
        (OWN, {"family_field": "topic"}, "no field 'topic' (it has: question, answer)"),
        (
            {**OWN, "level": 5},
            {"difficulty_field": "level"},
            "field 'level' has to be one of easy, medium, hard, not '5'",
        ),
    ],
)
def test_a_row_that_is_no_problem_is_told_with_its_line(
    tmp_path: Path, row: Any, fields: dict[str, str], message: str
) -> None:
    good = {"question": "1?", "answer": "#### 1", "topic": "a", "level": "easy"}
    assert complaint(check_problems, source(tmp_path, good, row, **fields)) == f"line 2: {message}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"cot": 1}, "field 'cot' has to be text, not a number"),
        ({"who": ["a"]}, "field 'who' has to be text, not a list"),
        ({"w": "1"}, "field 'w' has to be a number, not text"),
        ({"w": None}, "field 'w' has to be a number, not null"),
        ({"w": -1}, "field 'w' has to be from 0 to 1e+09, not -1"),
        ({"w": float("inf")}, "field 'w' has to be from 0 to 1e+09, not inf"),
        ({"w": 1e39}, "field 'w' has to be from 0 to 1e+09, not 1e+39"),
    ],
)
def test_a_row_that_is_no_trace_is_told_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    good = {**OWN, "cot": "1+1=2", "who": "a", "w": 1}
    config = source(tmp_path, good, {**good, **row}, reasoning_field="cot", teacher_field="who", weight_field="w")
    assert complaint(check_traces, config) == f"line 2: {message}"


def test_what_is_wrong_with_the_settings_is_told(tmp_path: Path) -> None:
    assert complaint(check_traces, source(tmp_path, OWN)).startswith("no reasoning to learn from")
    assert complaint(check_problems, source(tmp_path, OWN, limit=0)) == "limit=0 has to be at least 1"
    assert complaint(check_problems, SourceConfig()) == "path: a file, a folder or a dataset has to be named"
    config = source(tmp_path, OWN, reasoning_field="cot", strip_pattern="<<[")
    assert "strip_pattern=<<[: not a regular expression (unterminated character set" in complaint(check_traces, config)


def test_a_path_that_cannot_be_looked_for_is_told() -> None:
    path = "x" * 5000
    assert complaint(check_traces, SourceConfig(path=path, reasoning_field="cot")).endswith(
        "cannot be read (File name too long)"
    )


def test_rows_after_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    config = source(tmp_path, OWN, OWN, {"broken": 1}, limit=2)
    check_problems(config)
    assert len(load_problems(config)) == 2


def test_reading_is_lazy(tmp_path: Path) -> None:
    problems = read_problems(source(tmp_path, OWN, {"broken": 1}))
    assert next(problems).answer == "2"
    with pytest.raises(InputError, match="line 2"):
        next(problems)


def test_what_curation_wrote_is_read_back_as_it_was(tmp_path: Path) -> None:
    problems = list(generate_problems(0, 50))
    traces = list(write_traces(problems, TerseTeacher(), seed=0))
    write_jsonl(tmp_path / "rl.jsonl", map(to_row, problems))
    write_jsonl(tmp_path / "traces.jsonl", map(to_row, traces))
    assert load_problems(SourceConfig(path=str(tmp_path / "rl.jsonl"), curated=True)) == problems
    assert load_traces(SourceConfig(path=str(tmp_path / "traces.jsonl"), curated=True)) == traces


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    uid=TEXT, question=TEXT, answer=TEXT, reasoning=TEXT, response=TEXT, weight=st.floats(0, 9),
    difficulty=st.sampled_from([None, "easy", "medium", "hard"]),
)  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_any_trace_is_read_back_as_it_was(
    tmp_path: Path,
    uid: str,
    question: str,
    answer: str,
    reasoning: str,
    response: str,
    weight: float,
    difficulty: Any,
) -> None:
    trace = Trace(Problem(uid, question, answer, "f", difficulty), "t", reasoning, response, weight)
    write_jsonl(tmp_path / "traces.jsonl", [to_row(trace)])
    assert load_traces(SourceConfig(path=str(tmp_path / "traces.jsonl"), curated=True)) == [trace]


OWN_PROBLEM = to_row(Problem("u", "1+1?", "2"))
NO_SUCH_DIFFICULTY = "field 'difficulty' has to be one of easy, medium, hard, not 'x'"
NO_UID = "no field 'uid' (it has: problem, teacher, reasoning, response, weight)"
OWN_TRACE = to_row(Trace(Problem("u", "1+1?", "2"), "t", "1+1=2", r"\boxed{2}"))


@pytest.mark.parametrize(
    ("check", "row", "message"),
    [
        (check_problems, OWN_TRACE, NO_UID),
        (check_problems, {**OWN_PROBLEM, "x": 1}, "unknown field 'x': not a row that curation writes"),
        (check_problems, {**OWN_PROBLEM, "uid": 1}, "field 'uid' has to be text, not a number"),
        (check_problems, {**OWN_PROBLEM, "difficulty": "x"}, NO_SUCH_DIFFICULTY),
        (check_traces, {**OWN_TRACE, "problem": "x"}, "field 'problem' has to be an object, not text"),
        (check_traces, {**OWN_TRACE, "problem": OWN_TRACE}, NO_UID),
        (check_traces, {**OWN_TRACE, "weight": "x"}, "field 'weight' has to be a number, not text"),
        (check_traces, OWN, "no field 'problem' (it has: question, answer)"),
    ],
)  # fmt: skip
def test_a_row_that_curation_did_not_write_is_told(tmp_path: Path, check: Any, row: Any, message: str) -> None:
    assert complaint(check, source(tmp_path, row, curated=True)) == f"line 1: {message}"


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not in ../shared/data/gsm8k_train.jsonl")
def test_gsm8k_reads_whole_with_numeric_answers() -> None:
    config = SourceConfig(path=str(GSM8K), answer_after="####", strip_pattern="<<[^>]*>>")
    traces = load_traces(config)
    assert len(traces) == len(load_problems(config)) == 7_473
    assert all(re.fullmatch(r"-?[\d,]+(\.\d+)?", trace.problem.answer) for trace in traces)
    assert not any("<<" in trace.reasoning or "####" in trace.reasoning for trace in traces)
    assert all(trace.reasoning for trace in traces)


def test_several_traces_of_a_row_and_the_verdicts_that_come_with_them(tmp_path: Path) -> None:
    row = {**OWN, "gens": ["a</think>\\boxed{2}", "b</think>\\boxed{3}"], "right": [1, None]}
    config = source(tmp_path, row, generations_field="gens", verdict_field="right", teacher="r1")
    problem = Problem(content_hash("1+1?"), "1+1?", "2")
    assert load_traces(config) == [
        Trace(problem, "r1", "a", r"\boxed{2}", given_verdict=True),
        Trace(problem, "r1", "b", r"\boxed{3}", given_verdict=None),
    ]
    assert load_problems(config) == [problem]


RICH_TRACE = Trace(
    Problem("u", "1+1?", "", domain="other", verifiable=False, pass_rate=0.5, language="c++"),
    "t",
    "",
    "2",
    turns=(Turn("system", "Add."), Turn("assistant", "Yes.", "hm"), Turn("user", "1+1?")),
    origin="s:f:1#2",
    given_verdict=False,
)


def test_what_newer_fields_say_is_read_back(tmp_path: Path) -> None:
    assert load_traces(source(tmp_path, to_row(RICH_TRACE), curated=True)) == [RICH_TRACE]
    assert load_problems(source(tmp_path, to_row(RICH_TRACE.problem), curated=True)) == [RICH_TRACE.problem]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"origin": 3}, "field 'origin' has to be text, not a number"),
        ({"given_verdict": "yes"}, "field 'given_verdict' has to be true or false, not text"),
        ({"given_verdict": 1}, "field 'given_verdict' has to be true or false, not a number"),
        ({"turns": "x"}, "field 'turns' has to be a list, not text"),
        ({"turns": ["x"]}, "turn 1 has to be an object, not text"),
        ({"turns": [{"role": "user"}]}, "turn 1: no field 'content' (it has: role)"),
        (
            {"turns": [{"role": "user", "content": 3, "reasoning": ""}]},
            "turn 1: field 'content' has to be text, not a number",
        ),
        (
            {"turns": [{"role": "user", "content": "", "reasoning": "", "x": ""}]},
            "turn 1: unknown field 'x': not a row that curation writes",
        ),
        ({"problem": {**OWN_PROBLEM, "language": 3}}, "field 'language' has to be text, not a number"),
        ({"problem": {**OWN_PROBLEM, "pass_rate": "1"}}, "field 'pass_rate' has to be a number, not text"),
        ({"problem": {**OWN_PROBLEM, "pass_rate": 1.5}}, "field 'pass_rate' has to be a share from 0 to 1, not 1.5"),
        ({"problem": {**OWN_PROBLEM, "verifiable": None}}, "field 'verifiable' has to be true or false, not null"),
    ],
)
def test_newer_fields_are_checked(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    config = source(tmp_path, {**OWN_TRACE, **fields}, curated=True)
    assert complaint(check_traces, config) == f"line 1: {message}"


# -----------------------------------------------------------------------------
# Presets on the command line


def composed(*overrides: str) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "configs"), version_base="1.3"):
        tree = compose("config", overrides=list(overrides))
    refuse_unknown_keys(tree)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    return config


def test_presets_are_picked_by_name_and_keep_their_order() -> None:
    assert composed().curate.sources == {}
    config = composed("data/source=[openr1_math,gsm8k]", "curate.sources.gsm8k.path=train.jsonl", "data=gsm8k")
    assert list(config.curate.sources) == ["openr1_math", "gsm8k"]
    assert config.curate.sources["openr1_math"].generations_field == "generations"
    assert config.curate.sources["gsm8k"].path == "train.jsonl"
    assert config.sft.data.answer_after == "####"


def test_a_preset_may_have_another_name_or_place() -> None:
    config = composed(
        "data/source=chat",
        "+data/source@curate.sources.second=chat",
        "curate.sources.second.path=more.jsonl",
        "+data/source@sft.data=numina",
        "+data/source@curate.decontamination.sets.gsm8k=gsm8k",
    )
    assert [(name, source.path) for name, source in config.curate.sources.items()] == [
        ("chat", None), ("second", "more.jsonl"),
    ]  # fmt: skip
    assert config.sft.data.reasoning_field == "solution"
    assert config.curate.decontamination.sets["gsm8k"].answer_after == "####"


def test_a_source_may_be_written_on_the_command_line() -> None:
    config = composed("+curate.sources={mine: {path: mine.jsonl, reasoning_field: cot}}")
    assert config.curate.sources == {"mine": SourceConfig(path="mine.jsonl", reasoning_field="cot")}
