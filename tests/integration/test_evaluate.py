"""The evaluation recipe on a tiny model: killed, shared and repeated, it ends with the same files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import publish_random_base
from falcon_h1r.config import Config
from falcon_h1r.distributed.world import World
from falcon_h1r.types import InputError
from recipes.evaluate import check, evaluate
from tests.conftest import TINY_ARCHITECTURE
from tests.integration.conftest import configured

ROOT = Path(__file__).parents[2]
# Float64: what shares a batch does not show then.
SETTINGS = [
    *("model.dtype=float64", "evaluate.data.question_field=question", "evaluate.data.answer_after='####'"),
    "evaluate.limits={prompt_tokens: 64, response_tokens: 24, row_tokens: 96}",
    *("evaluate.num_problems=6", "evaluate.num_samples=4", "evaluate.max_slots=8"),
    *("scaling.num_traces=6", "scaling.warmup_traces=2", "scaling.wave_traces=2", "scaling.keep_share=0.5"),
    *("scaling.window_tokens=4", "scaling.budgets=[2,4]", "evaluate.work.claim_traces=2"),
]
ROW_FILES = ("samples.jsonl", "online.jsonl", "online_summary.jsonl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config()
    config.model.architecture, config.model.dtype = dict(TINY_ARCHITECTURE), "float64"
    return publish_random_base(config, ["0 + 1 = ?"] * 10, tmp_path_factory.mktemp("base") / "model")


def settings(coins: Path, model: Path, *overrides: str) -> list[str]:
    return [*SETTINGS, f"evaluate.data.path={coins}", f"model.path={model}", *overrides]


def run(folder: Path, coins: Path, model: Path, *overrides: str) -> Config:
    config = configured(coins, *settings(coins, model, *overrides))
    config.run_dir = str(folder)
    folder.mkdir(exist_ok=True)
    check(config)
    evaluate(config, folder, World(0, 1, torch.device("cpu")))
    return config


def left_behind(folder: Path) -> dict[str, Any]:
    return {name: [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ROW_FILES} | {
        "summary.json": json.loads((folder / "summary.json").read_text())
    }


def assert_same(found: Any, wanted: Any) -> None:
    """All of it, texts and tokens and verdicts; confidences up to what a batch's company does to the last digits."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted:
            assert_same(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            assert_same(left, right)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    else:
        assert found == wanted


@pytest.fixture(scope="module")
def once(coins: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "once"
    run(folder, coins, model)
    return folder


def test_an_evaluation_leaves_rows_of_all_answers_and_their_costs(once: Path) -> None:
    samples = [json.loads(line) for line in (once / "samples.jsonl").read_text().splitlines()]
    online = [json.loads(line) for line in (once / "online.jsonl").read_text().splitlines()]
    summary = json.loads((once / "summary.json").read_text())
    assert len(samples) == 6 * (4 + 1)
    assert summary["num_problems"] == 6 and summary["num_samples"] == 24
    assert summary["tokens_generated"] == sum(row["response_tokens"] for row in samples)
    assert 6 * 2 < len(online) <= 6 * 6 and any(row["was_stopped"] for row in online)
    assert {row["method"] for row in summary["scaling"]["points"]} >= {"single", "majority", "online"}
    assert "<html" in (once / "page.html").read_text()
    assert not (once / "parts").exists()


@pytest.mark.slow
def test_stopped_traces_of_the_online_run_begin_as_the_samples_of_the_same_seed(
    once: Path, coins: Path, model: Path, tmp_path: Path
) -> None:
    """At one temperature, so that a replay of the samples is what the online run did."""
    run(tmp_path / "same", coins, model, "scaling.temperature=1.0", "scaling.top_p=1.0", "evaluate.num_samples=6")
    rows = [json.loads(line) for line in (tmp_path / "same" / "samples.jsonl").read_text().splitlines()]
    samples = {(row["problem_uid"], row["sample_index"]): row for row in rows if not row["greedy"]}
    for line in (tmp_path / "same" / "online.jsonl").read_text().splitlines():
        row = json.loads(line)
        sample = samples[row["problem_uid"], row["sample_index"]]
        minima = sample["confidence"]["top_k"]["minima"]
        below = [token for token, lowest in minima if row["threshold"] is not None and lowest < row["threshold"]]
        assert row["was_stopped"] == bool(below)
        assert row["response_tokens"] == (below[0] + 1 if below else sample["response_tokens"])
        assert sample["response"].startswith(row["response"].removesuffix("\ufffd"))


def test_an_evaluation_that_has_ended_is_not_repeated(once: Path, coins: Path, model: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in once.iterdir()}
    run(once, coins, model, "resume=true")
    after = {path.name: path.stat().st_mtime_ns for path in once.iterdir()}
    assert all(after[name] == before[name] for name in (*ROW_FILES, "summary.json"))


@pytest.mark.slow
def test_differences_to_another_evaluation_are_paired(once: Path, coins: Path, model: Path, tmp_path: Path) -> None:
    run(tmp_path / "again", coins, model, f"evaluate.compare_with={once}")
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert {found["value"] for found in summary["differences"].values()} == {0.0}
    with pytest.raises(InputError, match=r"compare_with=.*has 5 problems, 5 of them among the 6 there"):
        run(tmp_path / "fewer", coins, model, f"evaluate.compare_with={once}", "evaluate.num_problems=5")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"compare_with=.*pipeline holds no samples\.jsonl"):
        run(tmp_path / "of_one", coins, model, f"evaluate.compare_with={tmp_path / 'pipeline'}")


def test_benchmarks_have_folders_and_a_summary_over_all(once: Path, coins: Path, model: Path, tmp_path: Path) -> None:
    one = f"{{data: {{path: {coins}, answer_after: '####'}}, num_samples: 2, max_response_tokens: 8, num_traces: 0}}"
    other = (
        f"{{data: {{path: {coins}, answer_after: '####'}}, num_samples: 1, max_response_tokens: 8, num_problems: 3, "
        "reference_score: 88.1}"
    )
    groups = "{whole: {benchmarks: [one], reference_score: 50}, cut: {benchmarks: [one, other], reference_score: 60}}"
    benchmarks = f"+evaluate.benchmarks={{one: {one}, other: {other}}}"
    config = run(tmp_path, coins, model, benchmarks, f"+evaluate.groups={groups}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["benchmarks"]) == ["one", "other"] == list(config.evaluate.benchmarks)
    assert [(tmp_path / name / "online.jsonl").exists() for name in ("one", "other")] == [False, True]
    assert json.loads((tmp_path / "other" / "summary.json").read_text())["num_problems"] == 3
    assert (tmp_path / "page.html").is_file() and (tmp_path / "one" / "page.html").is_file()
    # What is published stands in the summary alone, and beside no score of a few problems.
    assert summary["benchmarks"]["other"]["reference_score"] == 88.1
    assert "reference" not in (tmp_path / "metrics.jsonl").read_text()
    assert any(note.startswith("the first 3 of ") for note in summary["benchmarks"]["other"]["notes"])
    whole, cut = summary["groups"]
    assert whole["ours"] == 100 * summary["benchmarks"]["one"]["pass_at_1"] and whole["reference"] == 50
    assert (cut["ours"], cut["num_run"], cut["num_all"]) == (None, 1, 2)
    assert str(model) in summary["engine"]


def test_a_prompt_beyond_the_limit_is_refused_before_anything_is_drawn(
    coins: Path, model: Path, tmp_path: Path
) -> None:
    limits = "evaluate.limits={prompt_tokens: 8, response_tokens: 24, row_tokens: 96}"
    with pytest.raises(InputError, match=r"evaluate.limits.prompt_tokens=8: problem \w+ of coins has"):
        run(tmp_path, coins, model, limits)
    assert not (tmp_path / "parts").exists()


# -----------------------------------------------------------------------------
# Processes of their own


def start(folder: Path, coins: Path, model: Path, *overrides: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = ["data=gsm8k", "system_prompt=Think.", *settings(coins, model, *overrides)]
    command = [sys.executable, "recipes/evaluate.py", *arguments, f"run_dir={folder}", "resume=true"]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    assert process.wait(timeout=280) == 0, (folder.parent / f"{folder.name}.log").read_text()[-4000:]


def num_rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "parts").glob("rows-*.jsonl"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_kills_leave_no_trace(num_ranks: int, once: Path, coins: Path, model: Path, tmp_path: Path) -> None:
    folder, rng = tmp_path / "killed", random.Random(num_ranks)
    for wanted in (1, 12, 25, 40):
        process = start(folder, coins, model, f"launch.num_processes={num_ranks}")
        deadline = time.monotonic() + 120
        while process.poll() is None and num_rows(folder) < wanted:
            assert time.monotonic() < deadline, "the evaluation does not come on"
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.05))
        os.killpg(process.pid, 9)
        process.wait()
    finish(start(folder, coins, model, f"launch.num_processes={num_ranks}"), folder)
    assert_same(left_behind(folder), left_behind(once))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_and_one_that_merges_share_a_folder(once: Path, coins: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    workers = [start(folder, coins, model, f"evaluate.work.merge={merge}") for merge in ("false", "false", "true")]
    for process in workers:
        finish(process, folder)
    assert_same(left_behind(folder), left_behind(once))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_terminated_evaluation_goes_on_where_it_stopped(once: Path, coins: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(folder, coins, model)
    while process.poll() is None and num_rows(folder) < 10:
        time.sleep(0.002)
    process.terminate()
    assert process.wait(timeout=60) == 75
    drawn = num_rows(folder)
    assert drawn >= 10 and not list((folder / "parts" / "owners").iterdir())
    finish(start(folder, coins, model), folder)
    assert_same(left_behind(folder), left_behind(once))
