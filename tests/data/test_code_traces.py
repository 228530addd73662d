"""Traces of programs: from a user's file, through curation, and back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.config import Config
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.curation import judge as judging
from falcon_h1r.data.curation.corpus import curate_corpus
from falcon_h1r.data.curation.judge import ChunkJudge
from falcon_h1r.data.jsonl import read_jsonl, write_jsonl
from falcon_h1r.data.sources import load_problems, load_traces
from falcon_h1r.progress import ProgressReporter
from falcon_h1r.types import InputError, Problem, Trace, Verdict, problem_from_row, to_row
from falcon_h1r.verifier.code import service as code_service
from falcon_h1r.verifier.workers.sandbox import SandboxSupport, sandbox_support

TESTS = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}
RIGHT = "```python\nprint(2 * int(input()))\n```"
NEEDS_SANDBOX = pytest.mark.skipif(bool(sandbox_support().missing()), reason="programs cannot be confined here")


def source(tmp_path: Path, *rows: Any, **fields: Any) -> SourceConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), reasoning_field="solution", tests_field="tests", **fields)


def code_row(solution: str, tests: Any = TESTS, **rest: Any) -> dict[str, Any]:
    return {"question": "Double it.", "solution": solution, "tests": tests, **rest}


# -----------------------------------------------------------------------------
# Rows


def test_a_row_with_tests_is_a_code_problem_and_needs_no_answer(tmp_path: Path) -> None:
    config = source(tmp_path, code_row(f"Double it, I think.</think>\n{RIGHT}"))
    (problem,) = load_problems(config)
    assert (problem.answer, problem.domain, json.loads(problem.tests or "")) == ("", "code", TESTS)
    assert load_traces(config) == [Trace(problem, "unknown", "Double it, I think.", RIGHT)]


def test_tests_may_be_text_and_are_left_alone(tmp_path: Path) -> None:
    (problem,) = load_problems(source(tmp_path, code_row("", json.dumps(TESTS))))
    assert problem.tests == json.dumps(TESTS)


def test_without_an_end_of_thinking_the_last_program_is_the_response(tmp_path: Path) -> None:
    rows = [code_row(f"First\n```python\nprint(0)\n```\nbut then\n{RIGHT}\nThat is it."), code_row("no program")]
    assert [trace.response for trace in load_traces(source(tmp_path, *rows))] == [RIGHT, ""]


def test_a_row_whose_tests_are_null_is_a_maths_problem_beside_the_others(tmp_path: Path) -> None:
    config = source(tmp_path, code_row(RIGHT), code_row("1+1=2", None, answer="2"))
    code, maths = load_problems(config)
    assert (code.domain, maths.domain, maths.tests, maths.answer) == ("code", "math", None, "2")
    with pytest.raises(InputError, match="line 1: no field 'answer'"):
        load_problems(source(tmp_path, code_row("1+1=2", None)))
    with pytest.raises(InputError, match="line 1: no field 'tests'"):
        load_problems(source(tmp_path, {"question": "?", "answer": "2"}))


def test_a_problem_with_tests_is_read_back_as_it_was_and_rows_from_before_are_read_too(tmp_path: Path) -> None:
    problem = Problem("u", "Double it.", "", domain="code", tests=json.dumps(TESTS))
    assert problem_from_row(json.loads(json.dumps(to_row(problem)))) == problem
    write_jsonl(tmp_path / "rl.jsonl", [to_row(problem), {k: v for k, v in to_row(problem).items() if k != "tests"}])
    first, second = load_problems(SourceConfig(path=str(tmp_path / "rl.jsonl"), curated=True))
    assert first == problem and second.tests is None
    write_jsonl(tmp_path / "bad.jsonl", [{**to_row(problem), "tests": TESTS}])
    with pytest.raises(InputError, match="line 1: field 'tests' has to be text, not an object"):
        load_problems(SourceConfig(path=str(tmp_path / "bad.jsonl"), curated=True))


# -----------------------------------------------------------------------------
# Curation


def code_trace(response: str, tests: str = json.dumps(TESTS)) -> Trace:
    return Trace(Problem("u", "Double it.", "", domain="code", tests=tests), "a", "thinking", response)


def test_code_goes_to_the_code_verifier_and_maths_to_the_other_one() -> None:
    maths = Trace(Problem("m", "1+1?", "2"), "a", "1+1=2", r"\boxed{2}")
    traces = [code_trace(RIGHT), maths, code_trace("```python\nprint(0)\n```"), code_trace("no program")]

    def score(predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        assert (list(predictions), list(golds)) == ([r"\boxed{2}"], ["2"])
        return [Verdict("correct", "string", "")]

    def score_code(responses: Sequence[str], tests: Sequence[str]) -> list[Verdict]:
        assert list(tests) == [json.dumps(TESTS)] * 2
        return [Verdict("correct" if response == RIGHT else "wrong", "test", "test 1 of 2") for response in responses]

    judged = ChunkJudge(Config(), score, score_code, lambda gold: True).judge(traces)
    assert [(one.reason, one.detail) for one in judged] == [
        ("", ""),
        ("", ""),
        ("wrong", "test: test 1 of 2"),
        ("no_program", ""),
    ]


def curate(tmp_path: Path, *rows: Any) -> Path:
    config = Config()
    config.curate.sources = {"rows": source(tmp_path, *rows)}
    config.verifier.code.cpu_seconds = 2.0
    curate_corpus(config, tmp_path / "out", lambda total, what: ProgressReporter(total, what, "chunks"))
    return tmp_path / "out"


@NEEDS_SANDBOX
def test_curation_judges_programs_by_their_tests(tmp_path: Path) -> None:
    rows = [
        code_row(f"thinking</think>\n{RIGHT}"),
        code_row("thinking</think>\n```python\nprint(2)\n```"),
        code_row(f"thinking</think>\n{RIGHT}", {"inputs": ["1"], "outputs": []}),
        code_row("thinking, and no program"),
        code_row("1+1=2", None, answer="2"),
        code_row(r"1+1=3, so \boxed{3}", None, answer="2"),
    ]
    out = curate(tmp_path, *rows)
    kept = [row["problem"]["domain"] for _, row in read_jsonl(out / "traces.jsonl")]
    dropped = [(row["reason"], row["detail"]) for _, row in read_jsonl(out / "dropped.jsonl")]
    assert kept == ["code", "math"]
    assert dropped == [
        ("wrong", "test: test 2 of 2: line 1 is '2', not '4'"),
        ("unverifiable_gold", "tests: tests have 1 inputs and 0 outputs"),
        ("no_program", ""),
        ("wrong", "number: not equal"),
    ]
    (code, _) = load_traces(SourceConfig(path=str(out / "traces.jsonl"), curated=True))
    assert json.loads(code.problem.tests or "") == TESTS


def test_without_programs_no_sandbox_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_code_verifier", lambda config: pytest.fail("a sandbox was asked for"))
    out = curate(tmp_path, code_row("1+1=2", None, answer="2"))
    assert len(list(read_jsonl(out / "traces.jsonl"))) == 1


def test_a_machine_without_a_sandbox_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_service, "sandbox_support", lambda: SandboxSupport("x86_64", True, 0))
    with pytest.raises(InputError, match=r"verifier\.code: programs cannot be confined here: no Landlock.*sandbox_url"):
        curate(tmp_path, code_row(RIGHT))


def test_the_maths_verifier_stays_light() -> None:
    code = "import sys, falcon_h1r.verifier; print('falcon_h1r.verifier.code' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
