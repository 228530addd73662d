"""Benchmarks: every config composes and reads files of its layout; what is missing is said before a model is loaded."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config
from falcon_h1r.config_errors import refuse_unknown_keys
from falcon_h1r.config_evaluate import BenchmarkConfig, BenchmarkGroupConfig
from falcon_h1r.data.sources import load_problems
from falcon_h1r.evaluation.benchmark_groups import group_averages
from falcon_h1r.evaluation.benchmarks import as_local, bridge_lines, check_tasks, tasks_of
from falcon_h1r.evaluation.evaluate import summarise_run
from falcon_h1r.evaluation.tasks import Task
from falcon_h1r.types import InputError

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted(path.stem for path in (ROOT / "configs" / "benchmark").glob("*.yaml"))
BRIDGED = ["hle", "scicode", "terminal_bench_hard"]
SHARED_DATA = ROOT.parent / "shared" / "data"

# A row of each benchmark, in the layout of its files, and what its problem says.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        name: ({"problem": "1+1?", "answer": "2"}, {"question": "1+1?", "answer": "2", "family": name})
        for name in ("aime24", "amc23", "hmmt25")
    },
    "aime25": ({"problem_idx": 1, "problem": "1+1?", "answer": 2}, {"answer": "2"}),
    "amo_bench": (
        {"question_id": 1, "prompt": "1+1?", "answer": r"\boxed{2}", "answer_type": "number"},
        {"answer": r"\boxed{2}", "family": "number"},
    ),
    "math500": (
        {"problem": "1+1?", "solution": "...", "answer": "2", "subject": "Algebra", "level": 1},
        {"answer": "2", "family": "Algebra"},
    ),
    "math": (
        {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{2}$."},
        {"answer": "2", "family": "Algebra"},
    ),
    "gsm8k": ({"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}, {"answer": "2", "family": "gsm8k"}),
    "bbh_logic": ({"input": "Who?\nOptions:\n(A) Ann\n(B) Bob", "target": "(B)"}, {"answer": "(B)"}),
    "mmlu_pro": (
        {"question_id": 70, "question": "Who?", "options": ["Ann", "Bob"], "answer": "B", "category": "law"},
        {"uid": "70", "question": "Who?\n\nA. Ann\nB. Bob", "answer": "B", "family": "law"},
    ),
    "arc_challenge": (
        {"id": "M1", "question": "Who?", "choices": {"text": ["Ann", "Bob"], "label": ["1", "2"]}, "answerKey": "2"},
        {"uid": "M1", "question": "Who?\n\nA. Ann\nB. Bob", "answer": "B"},
    ),
    "gpqa_diamond": (
        {"Question": "Who?", "Correct Answer": "Bob", **{f"Incorrect Answer {n}": f"Ann {n}" for n in (1, 2, 3)}},
        {"family": "gpqa_diamond"},
    ),
    "livecodebench_v6": (
        {
            "question_content": "Double it.",
            "question_id": "abc",
            "platform": "leetcode",
            "difficulty": "easy",
            "starter_code": "class Solution:\n    def double(self, n):",
            "public_test_cases": '[{"input": "1", "output": "2", "testtype": "functional"}]',
            "private_test_cases": "[]",
            "metadata": '{"func_name": "double"}',
        },
        {
            "uid": "abc",
            "question": "Double it.\n\n```python\nclass Solution:\n    def double(self, n):\n```",
            "family": "leetcode",
            "domain": "code",
        },
    ),
    "humaneval": (
        {
            "task_id": "HumanEval/0",
            "prompt": "def f(x):\n",
            "canonical_solution": "    return x",
            "test": "def check(f): pass",
            "entry_point": "f",
        },
        {"uid": "HumanEval/0", "question": "def f(x):\n"},
    ),
    "ifbench": (
        {
            "key": "1",
            "prompt": "No commas.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{"N": None}],
        },
        {"uid": "1", "question": "No commas."},
    ),
}


def composed(*overrides: str) -> Config:
    entry.store_schema()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        tree = compose("config", overrides=list(overrides))
    refuse_unknown_keys(tree)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    check_config(config)
    return config


@pytest.fixture(scope="module")
def every_benchmark() -> Config:
    return composed(*(f"+benchmark@evaluate.benchmarks.{name}={name}" for name in BENCHMARKS))


@pytest.fixture(scope="module")
def preset() -> Config:
    """The report's, with a file of one's own, and a benchmark more under another name."""
    return composed(
        "+evaluation=h1r",
        "evaluate.benchmarks.aime24.data.path=x.jsonl",
        "+benchmark@evaluate.benchmarks.seven=bbh_logic",
        "evaluate.benchmarks.seven.data.subset=logical_deduction_seven_objects",
    )


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_file(config: Config, name: str, path: Path) -> Config:
    """As `evaluate.only=[NAME] evaluate.benchmarks.NAME.data.path=PATH` has it."""
    config = copy.deepcopy(config)
    config.evaluate.only = [name]
    config.evaluate.benchmarks[name].data.path = str(path)
    return config


def only_task(config: Config) -> Task:
    (task,) = tasks_of(config)
    return task


def refused(config: Config) -> str:
    with pytest.raises(InputError) as caught:
        tasks_of(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -----------------------------------------------------------------------------
# Configs


def test_every_benchmark_is_bridged_or_has_a_row_here() -> None:
    assert sorted([*BRIDGED, *ROWS]) == BENCHMARKS


@pytest.mark.parametrize("name", ROWS)
def test_a_files_path_is_all_that_a_benchmark_needs(every_benchmark: Config, tmp_path: Path, name: str) -> None:
    row, expected = ROWS[name]
    task = only_task(with_file(every_benchmark, name, write_rows(tmp_path / "mine.jsonl", [row])))
    (problem,) = task.problems
    assert {key: getattr(problem, key) for key in expected} == expected
    assert (task.name, task.greedy, task.num_traces, task.notes) == (name, False, 0, ())
    assert "{question}" in task.prompt


def test_overrides_of_the_command_line_reach_a_presets_benchmark(preset: Config) -> None:
    config = copy.deepcopy(preset)
    config.evaluate.only = ["aime24"]
    assert as_local(config.evaluate.benchmarks["aime24"].data).format is None
    assert "x.jsonl: no such file" in refused(config)


def test_one_benchmark_serves_under_several_names(preset: Config) -> None:
    assert preset.evaluate.benchmarks["seven"].data.subset == "logical_deduction_seven_objects"
    assert preset.evaluate.benchmarks["seven"].scorer == "choice"


def test_the_preset_is_the_reports_protocol(preset: Config) -> None:
    evaluate = preset.evaluate
    assert (evaluate.temperature, evaluate.top_p) == (0.6, 0.95)
    protocol = {name: (one.num_samples, one.max_response_tokens) for name, one in evaluate.benchmarks.items()}
    del protocol["seven"]
    assert protocol == {
        **dict.fromkeys(("aime24", "aime25", "hmmt25", "amo_bench"), (16, 65_536)),
        "gpqa_diamond": (5, 32_768),
        "livecodebench_v6": (3, 65_536),
        "mmlu_pro": (3, 32_768),
        **dict.fromkeys(("math500", "ifbench"), (1, 32_768)),
        **dict.fromkeys(("scicode", "hle", "terminal_bench_hard"), (1, 65_536)),
    }


def test_the_7b_recipe_is_evaluated_by_it(preset: Config) -> None:
    mine = copy.deepcopy(preset.evaluate)
    del mine.benchmarks["seven"]
    mine.benchmarks["aime24"].data.path = "HuggingFaceH4/aime_2024"
    for name in ("hmmt25", "math500", "mmlu_pro"):  # the report gives no scaled score of them
        mine.benchmarks[name].num_traces = 0
    assert composed("experiment=falcon_h1r_7b").evaluate == mine


def test_published_averages_are_those_of_the_published_scores(preset: Config) -> None:
    evaluate = preset.evaluate
    for name, group in evaluate.groups.items():
        scores = [evaluate.benchmarks[benchmark].reference_score for benchmark in group.benchmarks]
        mean = sum(score for score in scores if score is not None) / len(scores)
        assert group.reference_score == pytest.approx(mean, abs=0.02), name  # printed scores are rounded
    grouped = [name for group in evaluate.groups.values() for name in group.benchmarks]
    assert sorted([*grouped, "seven"]) == sorted(evaluate.benchmarks)


# -----------------------------------------------------------------------------
# Tasks


def test_without_benchmarks_there_is_one_task_of_ones_own_data(tmp_path: Path) -> None:
    config = Config()
    config.evaluate.data.path = str(write_rows(tmp_path / "mine.jsonl", [{"question": "1+1?", "answer": "2"}] * 2))
    task = only_task(config)
    assert (task.name, task.scorer, len(task.problems), task.prompt) == ("mine", "math", 1, "{question}")
    assert (task.settings.num_samples, task.settings.max_response_tokens) == (8, 1536)
    assert task.notes == ("1 of 2 problems left out, repeats of others",)
    assert "evaluate.data.path is not set" in refused(Config())


def test_two_answers_to_one_question_are_refused(every_benchmark: Config, tmp_path: Path) -> None:
    rows = [{"problem": "1+1?", "answer": answer} for answer in ("2", "3")]
    assert "differs ('1+1?')" in refused(with_file(every_benchmark, "aime24", write_rows(tmp_path / "a.jsonl", rows)))


def test_samples_lengths_and_budgets_are_the_benchmarks_own(every_benchmark: Config, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"problem": f"{n}?", "answer": "2"} for n in range(3)])
    config = with_file(every_benchmark, "aime24", path)
    config.scaling.num_traces, config.seed = 32, 5
    config.evaluate.benchmarks["aime24"].num_problems = 2
    task = only_task(config)
    settings = task.settings
    assert (settings.num_samples, settings.max_response_tokens, settings.seed) == (16, 65_536, 5)
    assert (len(task.problems), task.num_traces, task.reference_score) == (2, 32, 88.1)
    config.evaluate.benchmarks["aime24"].num_traces = 0
    assert only_task(config).num_traces == 0


def test_there_is_no_vote_on_programs(every_benchmark: Config, tmp_path: Path) -> None:
    config = with_file(every_benchmark, "humaneval", write_rows(tmp_path / "h.jsonl", [ROWS["humaneval"][0]]))
    config.scaling.num_traces = 32
    assert only_task(config).num_traces == 0


def test_what_is_left_out_or_cannot_be_judged_is_said(every_benchmark: Config, tmp_path: Path) -> None:
    row = ROWS["amo_bench"][0]
    described = {**row, "prompt": "Describe.", "answer": "All of them.", "answer_type": "description"}
    config = with_file(every_benchmark, "amo_bench", write_rows(tmp_path / "a.jsonl", [row, described]))
    assert only_task(config).notes == ("1 of 2 problems left out, by family (description)",)
    row = {**ROWS["ifbench"][0], "instruction_id_list": ["format:emoji"]}
    config = with_file(every_benchmark, "ifbench", write_rows(tmp_path / "i.jsonl", [row]))
    assert only_task(config).notes == (
        "1 of 1 problems ask for what no rule decides, and count as not right: format:emoji (1)",
    )


def test_choices_are_shuffled_the_same_way_everywhere(every_benchmark: Config, tmp_path: Path) -> None:
    """In its rows the right choice comes first: unshuffled, A would always be right."""
    row = ROWS["gpqa_diamond"][0]
    rows = [{**row, "Question": f"Who is {n}?"} for n in range(40)]
    config = with_file(every_benchmark, "gpqa_diamond", write_rows(tmp_path / "g.jsonl", rows))
    problems = only_task(config).problems
    assert {problem.answer for problem in problems} == set("ABCD")
    assert all(f"{problem.answer}. Bob" in problem.question.split("\n") for problem in problems)
    assert [problem.answer for problem in problems[:6]] == ["D", "D", "A", "B", "A", "C"]
    assert load_problems(as_local(config.evaluate.benchmarks["gpqa_diamond"].data)) == problems


# -----------------------------------------------------------------------------
# Refusals


def test_a_benchmark_without_its_file_names_the_key(every_benchmark: Config, tmp_path: Path) -> None:
    config = copy.deepcopy(every_benchmark)
    config.evaluate.only = ["livecodebench_v6"]
    assert refused(config).startswith("evaluate.benchmarks.livecodebench_v6.data.path is not set")
    missing = tmp_path / "missing.jsonl"
    assert refused(with_file(config, "math", missing)) == (
        f"evaluate.benchmarks.math.data.path: {missing}: no such file"
    )
    broken = write_rows(tmp_path / "broken.jsonl", [{"problem": "1+1?"}])
    assert f"evaluate.benchmarks.aime24.data.path: {broken}, line 1: no field 'answer'" in refused(
        with_file(config, "aime24", broken)
    )


def test_a_hub_dataset_that_cannot_be_had_names_the_key(
    every_benchmark: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    config = copy.deepcopy(every_benchmark)
    config.evaluate.only = ["aime24"]
    assert refused(config) == (
        "evaluate.benchmarks.aime24.data.path: HuggingFaceH4/aime_2024, split train: cannot be loaded (no network)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": "oracle"}, "evaluate.benchmarks.x.scorer=oracle: not one of math, choice, code, instructions"),
        ({"num_samples": 0}, "evaluate.benchmarks.x.num_samples=0: has to be at least 1"),
        ({"max_response_tokens": 0}, "evaluate.benchmarks.x.max_response_tokens=0: has to be at least 1"),
        ({"num_problems": 0}, "evaluate.benchmarks.x.num_problems=0: has to be at least 1"),
        ({"num_traces": -1}, "evaluate.benchmarks.x.num_traces=-1: has to be at least 0"),
        ({"prompt": "?"}, "evaluate.benchmarks.x.prompt: has to say where the problem goes, {question}"),
        (
            {"leave_out_families": ["a"]},
            "evaluate.benchmarks.x.leave_out_families: says nothing without data.family_field",
        ),
        ({"scorer": "code"}, "evaluate.benchmarks.x.scorer=code: problem"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = Config()
    benchmark = replace(BenchmarkConfig(), **changes)
    benchmark.data.path = str(write_rows(tmp_path / "x.jsonl", [{"question": "1+1?", "answer": "2"}]))
    config.evaluate.benchmarks = {"x": benchmark}
    assert refused(config).startswith(message)


def test_only_names_benchmarks_that_there_are(every_benchmark: Config) -> None:
    config = copy.deepcopy(every_benchmark)
    config.evaluate.only = ["aime26"]
    assert refused(config).startswith("evaluate.only=aime26: no such benchmark (there are: aime24, aime25, ")
    config.evaluate.benchmarks = {}
    assert refused(config) == "evaluate.only=aime26: no such benchmark (there are: none)"


def test_what_is_bridged_alone_is_refused_with_its_command(every_benchmark: Config, tmp_path: Path) -> None:
    config = copy.deepcopy(every_benchmark)
    config.evaluate.only = ["hle"]
    config.evaluate.endpoint.urls, config.evaluate.endpoint.model = ["http://node7:8000/v1"], "h1r"
    message = refused(config)
    assert message.startswith("evaluate.only: nothing of it is run here; hle is bridged: OPENAI_BASE_URL=http://node7")
    assert "--model openai/h1r " in message and "{" not in message


def test_bridged_benchmarks_are_listed_beside_those_that_run(every_benchmark: Config, tmp_path: Path) -> None:
    config = with_file(every_benchmark, "aime24", write_rows(tmp_path / "a.jsonl", [ROWS["aime24"][0]]))
    config.evaluate.only = ["scicode", "aime24"]
    assert only_task(config).name == "aime24"
    (line,) = bridge_lines(config)
    assert line.startswith("scicode is bridged: OPENAI_BASE_URL=http://localhost:8000/v1 inspect eval ")
    listed = summarise_run(config, {})["benchmarks"]
    assert listed == {"scicode": {"bridge": line.removeprefix("scicode is bridged: "), "reference_score": 28.3}}


def test_a_machine_that_cannot_confine_programs_is_told_before_a_model_is_loaded(
    every_benchmark: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from falcon_h1r.verifier.workers.sandbox import SandboxSupport

    config = with_file(every_benchmark, "humaneval", write_rows(tmp_path / "h.jsonl", [ROWS["humaneval"][0]]))
    monkeypatch.setattr(SandboxSupport, "missing", lambda self: ["network namespace"])
    with pytest.raises(InputError, match="verifier.code: programs cannot be confined here"):
        check_tasks(config)


# -----------------------------------------------------------------------------
# Groups


def test_a_groups_average_is_ours_and_says_what_is_missing() -> None:
    groups = {"math": BenchmarkGroupConfig(["a", "b"], 73.96), "code": BenchmarkGroupConfig(["c"], 33.95)}
    math, code = group_averages(groups, {"a": 0.5, "b": 0.25, "other": 1.0})
    assert (math.average, math.num_run, math.is_complete, math.reference_score) == (0.375, 2, True, 73.96)
    assert (code.average, code.num_run, code.missing, code.is_complete) == (None, 0, ("c",), False)
    (half, _) = group_averages(groups, {"a": 0.5})
    assert (half.average, half.missing, half.is_complete) == (0.5, ("b",), False)


# -----------------------------------------------------------------------------
# Real files, where there are any


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data (AIME, AMC, GSM8K)")
@pytest.mark.parametrize(
    ("name", "file", "size"), [("aime24", "aime24", 30), ("amc23", "amc23", 40), ("gsm8k", "gsm8k_test", 1319)]
)
def test_real_files_are_read_as_they_are(every_benchmark: Config, name: str, file: str, size: int) -> None:
    task = only_task(with_file(every_benchmark, name, SHARED_DATA / f"{file}.jsonl"))
    assert (len(task.problems), task.notes) == (size, ())
