"""The shipped schemas, each on rows as its data set has them: what comes out is compared whole."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.adapters import Adapter
from falcon_h1r.data.sources import check_benchmark, load_problems
from falcon_h1r.types import InputError, Problem, Trace, content_hash, to_row
from falcon_h1r.verifier.code import parse_tests

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "data" / "source"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def preset(name: str, **changes: Any) -> Adapter:
    """The adapter of a shipped schema."""
    settings = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return Adapter(replace(SourceConfig(**{**settings, "path": "rows.jsonl"}), **changes))


def problem(question: str, answer: str = "", **rest: Any) -> Problem:
    return Problem(content_hash(question), question, answer, **rest)


def complaint(action: Any, row: Any) -> str:
    with pytest.raises(InputError) as raised:
        action(row)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_named_after_its_file_and_contradicts_nothing(name: str) -> None:
    first_line = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").split("\n")[0]
    assert first_line == f"# @package curate.sources.{name}"
    problems_only = ("acereason_math", "problems", "livecodebench", "curated")
    assert preset(name).has_traces == (name not in problems_only)


# -----------------------------------------------------------------------------
# Questions and answers


def test_gsm8k() -> None:
    adapter = preset("gsm8k")
    asked = problem("How many?", "24", family="gsm8k")
    row = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 24"}
    assert adapter.traces(row, "g:f:1") == [Trace(asked, "unknown", "48/2 = 24", r"\boxed{24}", origin="g:f:1")]
    row = {"question": "How many?", "answer": "#### 1,024"}  # no working
    assert adapter.traces(row) == [Trace(replace(asked, answer="1,024"), "unknown", "", r"\boxed{1,024}")]
    assert complaint(adapter.traces, {"question": "?", "answer": "24"}) == (
        "field 'answer' has no '####' before its answer"
    )


def solved(*solutions: Any) -> dict[str, Any]:
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return {"question": "?", "ground_truth": "3*6=<<3*6=18>>18\nA: 18", **dict(zip(names, solutions, strict=True))}


def test_gsm8k_model_solutions() -> None:
    row = solved(
        {"solution": "3*6=<<3*6=18>>18\nA: 18", "is_correct": True},
        {"solution": "3*5=15\nA: 15", "is_correct": False},
        {"solution": "and so on without end", "is_correct": False},
        None,
    )
    asked = problem("?", "18", family="gsm8k")
    assert preset("gsm8k_model_solutions").traces(row, "s:f.jsonl:7") == [
        Trace(asked, "6b_finetuning", "3*6=18", r"\boxed{18}", 1.0, (), "s:f.jsonl:7#1", True),
        Trace(asked, "6b_verification", "3*5=15", r"\boxed{15}", 1.0, (), "s:f.jsonl:7#2", False),
        Trace(asked, "175b_finetuning", "and so on without end", "", 1.0, (), "s:f.jsonl:7#3", False),
    ]
    odd = solved({"solution": "x\nA:", "is_correct": 0}, *[{"solution": "A DNA: 3", "is_correct": None}] * 3)
    traces = preset("gsm8k_model_solutions").traces(odd)
    assert [(t.reasoning, t.response, t.given_verdict, t.origin) for t in traces] == [
        ("x", "", False, ""),
        *[("A DNA: 3", "", None, "")] * 3,
    ]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("text", "field '6b_finetuning' has to be an object, not text"),
        ({"solution": "x"}, "no field 'is_correct' in '6b_finetuning' (it has: solution)"),
        (
            {"solution": "x", "is_correct": "yes"},
            "field '6b_finetuning.is_correct' has to be true or false, not text",
        ),
        ({"solution": None, "is_correct": True}, "field '6b_finetuning' has to be text, not null"),
    ],
)
def test_a_broken_generation_is_told(broken: Any, message: str) -> None:
    good = {"solution": "A", "is_correct": True}
    assert complaint(preset("gsm8k_model_solutions").traces, solved(broken, good, good, good)) == message


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_the_model_solutions_read_whole() -> None:
    adapter = preset("gsm8k_model_solutions")
    lines = (SHARED / "gsm8k_model_solutions.jsonl").read_text(encoding="utf-8").splitlines()
    traces = [trace for line in lines for trace in adapter.traces(json.loads(line))]
    assert len(traces) == 4 * 1_319
    assert sum(not trace.response for trace in traces) == 11, "those that never reach their answer"
    for trace in traces:  # the verdicts of the data set agree with what was cut out of it
        stated = trace.response.removeprefix(r"\boxed{").removesuffix("}").replace(",", "")
        gold = trace.problem.answer.replace(",", "")
        assert not (stated == gold and not trace.given_verdict)


def test_numina() -> None:
    adapter = preset("numina")
    row = {"problem": "2x=8", "solution": "x is $\\boxed{4}$.", "answer": "4", "problem_type": "Algebra"}
    asked = problem("2x=8", "4", family="Algebra")
    assert adapter.traces(row) == [Trace(asked, "unknown", "x is $\\boxed{4}$.", r"\boxed{4}")]
    proof = {"problem": "Prove it.", "solution": "Obvious.", "answer": " Proof ", "problem_type": None}
    asked = problem("Prove it.", family="unknown", verifiable=False)
    assert adapter.traces(proof) == [Trace(asked, "unknown", "", "Obvious.")]
    assert adapter.problem({**proof, "answer": None}) == asked
    assert adapter.problem({**proof, "answer": "notfound"}) == asked


def test_numina_cot_has_its_golds_in_boxes() -> None:
    adapter = preset("numina_cot")
    row = {"problem": "2x=8", "solution": r"x is \boxed{3}, no, \boxed{4}."}
    assert adapter.traces(row) == [Trace(problem("2x=8", "4"), "unknown", row["solution"], r"\boxed{4}")]
    for text in ("Obvious.", r"Obvious. $\boxed{}$"):
        asked = problem("Prove it.", verifiable=False)
        assert adapter.traces({"problem": "Prove it.", "solution": text}) == [Trace(asked, "unknown", "", text)]


def test_reasoning_rows() -> None:
    row = {"question": "?", "reasoning": "<think>hm</think>It is 2.", "answer": 2}
    assert preset("reasoning").traces(row) == [Trace(problem("?", "2"), "unknown", "hm", "It is 2.")]
    assert preset("reasoning").traces({**row, "reasoning": None}) == [
        Trace(problem("?", "2"), "unknown", "", r"\boxed{2}")
    ]


# -----------------------------------------------------------------------------
# Several generations


def test_openr1_math() -> None:
    adapter = preset("openr1_math")
    row = {
        "problem": "2x=8",
        "answer": "4",
        "problem_type": "Algebra",
        "generations": ["<think>\n8/2\n</think>\nIt is \\boxed{4}.", "<think>never ends", None],
        "correctness_math_verify": [True, False, None],
    }
    asked = problem("2x=8", "4", family="Algebra")
    assert adapter.traces(row, "openr1:part-3.parquet:17") == [
        Trace(asked, "deepseek_r1", "8/2", r"It is \boxed{4}.", 1.0, (), "openr1:part-3.parquet:17#1", True),
        Trace(asked, "deepseek_r1", "never ends", "", 1.0, (), "openr1:part-3.parquet:17#2", False),
    ]
    without = adapter.traces({**row, "correctness_math_verify": None})
    assert [trace.given_verdict for trace in without] == [None, None]
    assert adapter.traces({**row, "generations": [], "correctness_math_verify": []}) == []
    assert adapter.problem({**row, "generations": 3}) == asked, "a problem needs no generations"
    assert complaint(adapter.traces, {**row, "correctness_math_verify": [True]}) == (
        "field 'correctness_math_verify' has 1 verdicts for 3 generations"
    )
    assert complaint(adapter.traces, {**row, "generations": "x"}) == "field 'generations' has to be a list, not text"
    assert complaint(adapter.traces, {**row, "generations": [1, 2, 3]}) == (
        "field 'generations[0]' has to be text, not a number"
    )


def test_generations_that_are_objects_in_a_list() -> None:
    source = SourceConfig(
        path="x", generations_field="samples", generation_text="out.text", generation_verdict=None, answer_field=None
    )
    assert complaint(Adapter(source).traces, {"question": "?", "samples": [{"out.text": 1}]}) == (
        "field 'samples[0]' has to be text, not a number"
    )
    row = {"question": "?", "samples": json.dumps([{"out.text": "a</think>b"}])}
    asked = problem("?", verifiable=False)
    assert Adapter(source).traces(row, "o") == [Trace(asked, "unknown", "a", "b", origin="o#1")]


def test_openmathreasoning() -> None:
    row = {
        "problem": "2x=8",
        "expected_answer": "4",
        "generated_solution": "<think>8/2</think>\\boxed{4}",
        "generation_model": "DeepSeek-R1",
        "pass_rate_72b_tir": "0.25",
        "problem_type": "has_answer_extracted",
    }
    asked = problem("2x=8", "4", family="has_answer_extracted", pass_rate=0.25)
    adapter = preset("openmathreasoning")
    assert adapter.traces(row) == [Trace(asked, "DeepSeek-R1", "8/2", r"\boxed{4}")]
    odd = {**row, "expected_answer": "", "pass_rate_72b_tir": "n/a", "generation_model": None}
    asked = replace(asked, answer="", verifiable=False, pass_rate=None)
    assert adapter.traces(odd) == [Trace(asked, "unknown", "8/2", r"\boxed{4}")]
    for rate, shown in (("1.5", "'1.5'"), (-1, "'-1'"), (True, "true or false"), ([], "a list")):
        assert complaint(adapter.problem, {**row, "pass_rate_72b_tir": rate}) == (
            f"field 'pass_rate_72b_tir' has to be a share from 0 to 1, not {shown}"
        )


def test_deepmath() -> None:
    row = {"question": "?", "final_answer": "0", "difficulty": 4.5, "topic": "Limits"}
    row |= {"r1_solution_1": "hm</think>\\boxed{0}", "r1_solution_2": "It is \\boxed{1}", "r1_solution_3": None}
    asked = problem("?", "0", family="Limits", difficulty="easy")
    adapter = preset("deepmath")
    assert adapter.traces(row, "o") == [
        Trace(asked, "deepseek_r1", "hm", r"\boxed{0}", origin="o#1"),
        Trace(asked, "deepseek_r1", r"It is \boxed{1}", r"\boxed{1}", origin="o#2"),
    ]
    levels = [adapter.problem({**row, "difficulty": level}).difficulty for level in (-1, 5.0, "6.9", 7, None)]
    assert levels == ["easy", "medium", "medium", "hard", None]
    assert "has to be one of easy, medium, hard" in complaint(adapter.problem, {**row, "difficulty": "steep"})


def test_openthoughts() -> None:
    adapter = preset("openthoughts")
    row = {
        "problem": "2x=8",
        "deepseek_reasoning": "8/2",
        "deepseek_solution": "It is 4.",
        "ground_truth_solution": r"So \boxed{4}",
        "test_cases": None,
        "domain": "math",
    }
    asked = problem("2x=8", "4", family="math")
    assert adapter.traces(row) == [Trace(asked, "deepseek_r1", "8/2", "It is 4.")]
    tests = '{"inputs": ["1"], "outputs": ["2"]}'
    code = {**row, "test_cases": tests, "domain": "code", "ground_truth_solution": "print(2)"}
    assert adapter.problem(code) == problem("2x=8", family="code", domain="code", tests=tests)
    physics = {**row, "domain": "physics", "ground_truth_solution": None, "test_cases": ""}
    asked = problem("2x=8", family="physics", domain="science", verifiable=False)
    assert adapter.traces(physics) == [Trace(asked, "deepseek_r1", "8/2", "It is 4.")]
    assert adapter.problem({**row, "domain": "riddles"}).domain == "other"


def test_openthoughts_chat_has_marks_of_its_own() -> None:
    says = "<|begin_of_thought|>\n\n8/2\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n4\n\n<|end_of_solution|>"
    row = {
        "system": "Think.",
        "conversations": [{"from": "user", "value": "2x=8"}, {"from": "assistant", "value": says}],
    }
    adapter = preset("openthoughts_chat")
    (trace,) = adapter.traces(row)
    asked = problem("2x=8", domain="other", verifiable=False)
    assert trace == Trace(asked, "deepseek_r1", "8/2", "4", turns=trace.turns)
    assert [(turn.role, turn.content) for turn in trace.turns] == [("system", "Think."), ("user", "2x=8")]
    assert adapter.traces({**row, "system": None}) == [Trace(asked, "deepseek_r1", "8/2", "4")]


def test_openthoughts3() -> None:
    says = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "<think>a</think>b"}]
    row = {"conversations": says, "domain": "science", "difficulty": 8.0}
    asked = problem("?", domain="science", verifiable=False, difficulty="hard")
    assert preset("openthoughts3").traces(row) == [Trace(asked, "qwq_32b", "a", "b")]
    odd = {**row, "domain": None, "difficulty": None}
    assert preset("openthoughts3").problem(odd) == problem("?", verifiable=False)
    assert complaint(preset("openthoughts3").problem, {**row, "domain": "law"}) == (
        "field 'domain': 'law' is no domain; domain_names says what it is"
    )


def test_acereason() -> None:
    adapter = preset("acereason")
    asks = {"role": "user", "content": "2x=8"}
    row = {"messages": [asks, {"role": "assistant", "content": "<think>8/2</think>\\boxed{4}"}], "answer": "4"}
    assert adapter.traces(row) == [Trace(problem("2x=8", "4"), "unknown", "8/2", r"\boxed{4}")]
    unanswered = {"messages": [asks], "answer": 4}
    assert adapter.problem(unanswered) == problem("2x=8", "4")
    assert complaint(adapter.traces, unanswered) == "field 'messages' has no assistant turn"
    assert complaint(adapter.problem, {**row, "answer": ""}) == "field 'answer' is empty"
    assert preset("acereason_math").problem({"problem": "2x=8", "answer": "4"}) == problem("2x=8", "4")
    assert preset("acereason_math").problem({"problem": "2x=8", "answer": 4.5}) == problem("2x=8", "4.5")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize(("name", "count"), [("aime24", 30), ("amc23", 40)])
def test_problems_of_competitions(name: str, count: int) -> None:
    source = replace(preset("problems").source, path=str(SHARED / f"{name}.jsonl"))
    found = load_problems(source)
    assert len(found) == count and all(asked.verifiable and asked.answer for asked in found)
    check_benchmark(source)


def test_acereason_sft() -> None:
    row = {"category": "math", "source": "s1", "input": "2x=8", "output": "<think>8/2</think>It is 4."}
    asked = problem("2x=8", family="s1", verifiable=False)
    assert preset("acereason_sft").traces(row) == [Trace(asked, "deepseek_r1", "8/2", "It is 4.")]
    odd = {**row, "category": "code", "source": None, "output": "<think>never ends"}
    asked = problem("2x=8", domain="code", verifiable=False)
    assert preset("acereason_sft").traces(odd) == [Trace(asked, "deepseek_r1", "never ends", "")]


# -----------------------------------------------------------------------------
# Code

CODE_TESTS: list[Any] = [
    {"inputs": ["1\n"], "outputs": ["2\n"]},
    {"inputs": [[1]], "outputs": [2], "fn_name": "double"},
    [{"input": "1", "output": "2", "testtype": "stdin"}],
    {"input_output": '{"inputs": ["1"], "outputs": ["2"]}'},
]


@pytest.mark.parametrize("tests", CODE_TESTS)
@pytest.mark.parametrize("as_text", [True, False])
def test_code(tests: Any, as_text: bool) -> None:
    answer = "```python\nprint(2)\n```"
    row = {"question": "Double.", "solution": f"hm</think>{answer}", "language": "Python"}
    row["tests"] = json.dumps(tests) if as_text else tests
    (trace,) = preset("code").traces(row)
    asked = problem("Double.", domain="code", tests=json.dumps(tests), language="python")
    assert trace == Trace(asked, "unknown", "hm", answer)
    assert trace.problem.tests is not None and parse_tests(trace.problem.tests).cases
    odd = {**row, "language": None, "solution": f"First\n{answer}\nthat is it."}
    assert preset("code").traces(odd) == [Trace(replace(asked, language=None), "unknown", odd["solution"], answer)]


def test_code_without_tests_proves_nothing() -> None:
    row = {"question": "Double.", "solution": "print(2)", "language": "", "tests": None}
    asked = problem("Double.", domain="code", verifiable=False)
    assert preset("code").traces(row) == [Trace(asked, "unknown", "", "print(2)")]


def test_taco() -> None:
    tests = '{"inputs": ["1\\n"], "outputs": ["2\\n"]}'
    fenced = "```python\nprint(2)\n```"
    row = {"question": "Double.", "input_output": tests, "difficulty": "MEDIUM_HARD"}
    row["solutions"] = json.dumps([fenced, "print(2)"])
    asked = problem("Double.", domain="code", tests=tests, difficulty="medium", language="python")
    assert preset("taco").traces(row, "o") == [
        Trace(asked, "unknown", fenced, fenced, origin="o#1"),
        Trace(asked, "unknown", "print(2)", "", origin="o#2"),
    ]
    odd = {**row, "difficulty": "UNKNOWN_DIFFICULTY", "solutions": []}
    assert preset("taco").traces(odd) == []
    assert preset("taco").problem(odd).difficulty is None


def test_livecodebench_has_its_tests_in_several_columns() -> None:
    row = {
        "question_content": "Double.",
        "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]',
        "private_test_cases": "[]",
        "metadata": "{}",
        "difficulty": "hard",
    }
    found = preset("livecodebench").problem(row)
    assert found == problem(
        "Double.", domain="code", difficulty="hard", language="python", tests=found.tests
    )  # fmt: skip
    assert found.tests is not None and len(parse_tests(found.tests).cases) == 1
    calls = [{"input": "1", "output": "2", "testtype": "functional"}]
    row |= {"public_test_cases": json.dumps(calls), "metadata": '{"func_name": "double"}', "difficulty": None}
    found = preset("livecodebench").problem(row)
    assert found.tests is not None and parse_tests(found.tests).fn_name == "double"


# -----------------------------------------------------------------------------
# Multiple choice

SHOWN = "Which?\n\nA. red\nB. 7\nC. blue"


@pytest.mark.parametrize("answer", [2, 2.0, "2", "C", "c", "(C)", "C.", "blue", " blue "])
def test_multiple_choice(answer: Any) -> None:
    row = {"question": "Which?\n", "choices": ["red", 7, "blue"], "answer": answer, "reasoning": "It is the sky."}
    asked = problem(SHOWN, "C", domain="science")
    assert preset("multiple_choice").traces(row) == [Trace(asked, "unknown", "It is the sky.", r"\boxed{C}")]
    stated = {**row, "reasoning": "hm</think>\\boxed{A}"}
    assert preset("multiple_choice").traces(stated) == [Trace(asked, "unknown", "hm", r"\boxed{A}")]


@pytest.mark.parametrize(
    "choices",
    [
        {"text": ["red", "7", "blue"], "label": ["1", "2", "3"]},
        {"1": "red", "2": "7", "3": "blue", "4": None},
        '["red", "7", "blue"]',
    ],
)
def test_choices_may_have_labels_of_their_own(choices: Any) -> None:
    row = {"question": "Which?", "choices": choices, "answer": "blue" if isinstance(choices, str) else "3"}
    assert preset("multiple_choice").problem(row) == problem(SHOWN, "C", domain="science")


def test_choices_may_be_fields_each() -> None:
    source = SourceConfig(path="x", choices=["opa", "opb"], answer_field="cop", domain="science")
    row = {"question": "Which?", "opa": "red", "opb": "blue", "cop": 1}
    assert Adapter(source).problem(row) == problem("Which?\n\nA. red\nB. blue", "B", domain="science")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 3}, "field 'answer': no choice 3 among 3 (they count from 0)"),
        ({"answer": -1}, "field 'answer': no choice -1 among 3 (they count from 0)"),
        ({"answer": "green"}, "field 'answer': 'green' is none of the choices"),
        ({"answer": "9" * 5000}, f"field 'answer': '{'9' * 40}' is none of the choices"),
        ({"answer": None}, "field 'answer' has to be text or a number, not null"),
        ({"choices": ["red", "red", "x"], "answer": "red"}, "field 'answer': 'red' names more than one of the choices"),
        ({"choices": ["B", "A"], "answer": "A"}, "field 'answer': 'A' names more than one of the choices"),
        ({"choices": ["red"]}, "field 'choices' has 1 choices; from 2 to 26 can be shown"),
        ({"choices": "red"}, "field 'choices' has to be a list, not text"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "field 'choices' has to have as many labels as texts"),
    ],
)
def test_a_choice_that_names_none_is_told(row: Any, message: str) -> None:
    whole = {"question": "Which?", "choices": ["red", 7, "blue"], "answer": 2, **row}
    assert complaint(preset("multiple_choice").problem, whole) == message


def test_a_choice_without_a_key_is_not_verifiable() -> None:
    adapter = preset("multiple_choice", unprovable_answers=["-1"])
    row = {"question": "Which?", "choices": ["red", 7, "blue"], "answer": -1}
    assert adapter.problem(row) == problem(SHOWN, domain="science", verifiable=False)


# -----------------------------------------------------------------------------
# The rest


def test_instructions() -> None:
    row = {"instruction": "Say hello.", "response": "Hello."}
    asked = problem("Say hello.", domain="other", family="instruction_following", verifiable=False)
    assert preset("instructions").traces(row) == [Trace(asked, "unknown", "", "Hello.")]
    assert preset("instructions").traces({**row, "response": None}) == [Trace(asked, "unknown", "", "")]


def test_fields_may_be_paths() -> None:
    source = SourceConfig(path="x", question_field="extra.problem", answer_field="a.b.c", uid_field="id")
    row = {"extra": {"problem": "?"}, "a": {"b": {"c": 2}}, "id": 17}
    assert Adapter(source).problem(row) == Problem("17", "?", "2")
    assert Adapter(source).problem({"extra.problem": "?", "a.b.c": 2, "id": None}) == problem("?", "2")
    assert complaint(Adapter(source).problem, {**row, "a": {"b": 3}}) == (
        "field 'a.b' has to be an object to have 'a.b.c', not a number"
    )
    assert complaint(Adapter(source).problem, {**row, "extra": {"x": 1}}) == "no field 'extra.problem' ('extra' has: x)"
    assert (
        complaint(Adapter(source).problem, {**row, "extra": None}) == "field 'extra.problem' has to be text, not null"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": None}, "path: a file, a folder or a dataset has to be named"),
        ({"format": "csv"}, "format=csv: has to be one of jsonl, parquet, hub, or null"),
        ({"limit": 0}, "limit=0 has to be at least 1"),
        ({"revision": "abc"}, "revision=abc: only a hub dataset has one; set format=hub"),
        ({"reasoning_field": "a", "messages_field": "b"}, "messages_field: contradicts reasoning_field; one of"),
        ({"response_field": "a", "generations": ["b"]}, "generations: contradicts response_field; one of the two"),
        ({"answer_after": "####", "answer_in_box": True}, "answer_in_box: contradicts answer_after; one of the two"),
        ({"generation_text": "t"}, "generation_text: says nothing without generations_field or generations"),
        ({"tools_field": "t"}, "tools_field: says nothing without messages_field"),
        ({"answer_field": None, "answer_in_box": True}, "answer_in_box: says nothing without answer_field"),
        ({"difficulty_bounds": [1.0, 2.0]}, "difficulty_bounds: says nothing without difficulty_field"),
        (
            {"difficulty_field": "d", "difficulty_bounds": [2.0, 1.0]},
            "difficulty_bounds=[2.0, 1.0]: has to be two numbers, the smaller first",
        ),
        ({"domain": "law"}, "domain: 'law' is none of math, code, science, other"),
        ({"domain_field": "d", "domain_names": {"x": "law"}}, "domain_names: 'law' is none of math, code, science"),
        (
            {"messages_field": "m", "role_names": {"human": "person"}},
            "role_names: 'person' is none of system, user, assistant, tool, tool_call",
        ),
        ({"reasoning_marks": ["<a>"]}, "reasoning_marks=['<a>']: has to be two texts"),
        ({"strip_pattern": "(" }, "strip_pattern=(: not a regular expression (missing ), unterminated"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_schema_is_told_with_its_key(settings: dict[str, Any], message: str) -> None:
    source = SourceConfig(**{"path": "rows.jsonl", **settings})
    with pytest.raises(InputError) as raised:
        Adapter(source, key="curate.sources.mine")
    assert str(raised.value).startswith(f"curate.sources.mine.{message}")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(
        ["", " ", "A", "1", "user", "gpt", "function_call", "x</think>\\boxed{1}", "\ud800", "[{}]", b"\xff"]
    )
    | st.just(datetime.datetime(2026, 1, 1))
)
KEYS = ["role", "content", "from", "value", "type", "text", "label", "solution", "is_correct"]
KEYS += ["tool_calls", "function_call", "function", "name", "arguments"]
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
)


@given(name=st.sampled_from([name for name in NAMES if name != "curated"]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_a_row_holds_it_is_read_or_told(name: str, data: st.DataObject) -> None:
    adapter = preset(name)
    named = [value for key, value in vars(adapter.source).items() if key.endswith("_field") and value]
    named += adapter.source.generations + adapter.source.tests_fields
    row = {field: data.draw(VALUES) for field in named if data.draw(st.integers(0, 9))}
    row[adapter.source.question_field] = data.draw(st.just("?") | VALUES)
    try:
        for trace in adapter.traces(row):
            json.dumps(to_row(trace), ensure_ascii=False).encode()
        adapter.problem(row)
    except InputError as error:
        assert "\n" not in str(error)
