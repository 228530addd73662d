"""Curation from the command line: killed, divided over jobs, and given what cannot be read."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from falcon_h1r.benchmark.corpus import evaluation_rows, write_corpus
from falcon_h1r.data.jsonl import write_jsonl

ROOT = Path(__file__).parent.parent.parent
OUTPUTS = ("traces.jsonl", "dropped.jsonl", "summary.json", "data_report.html", "dropped_examples.json")
SHARED = ROOT.parent / "shared" / "data"
NEEDS_SHARED = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the project")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a corpus of 3,000 rows in small chunks."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "corpus.jsonl", 3000, seed=0)
    write_jsonl(folder / "held_out.jsonl", evaluation_rows())
    return [
        "data/source=reasoning",
        f"curate.sources.reasoning.path={folder / 'corpus.jsonl'}",
        "curate.sources.reasoning.teacher_field=teacher",
        "curate.sources.reasoning.domain_field=domain",
        f"+curate.decontamination.sets={{held_out:{{path:{folder / 'held_out.jsonl'}}}}}",
        "curate.work.chunk_megabytes=0.5",
        "curate.keep_teacher=by_coverage",
        "curate.duplicates.of=trace",
        "+curate.mix.domain_token_shares={math:0.65,science:0.25,other:0.1}",
    ]


def curate(*options: str, wait: bool = True) -> subprocess.Popen[str]:
    line = [sys.executable, "recipes/curate.py", *options]
    process = subprocess.Popen(line, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if wait:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return process


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.mark.slow
def test_killed_at_any_moment_and_begun_again_the_same_bytes_come_out(corpus: list[str], tmp_path: Path) -> None:
    curate(*corpus, f"run_dir={tmp_path / 'whole'}")
    rng, options = random.Random(0), [*corpus, f"run_dir={tmp_path / 'killed'}", "curate.work.num_workers=2"]
    for _ in range(6):
        process = curate(*options, "resume=true", wait=False)
        time.sleep(rng.uniform(1.0, 6.0))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "processes of a killed run go on"
        if process.returncode == 0:
            break
    curate(*options, "resume=true")
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_which_goes_on_later(corpus: list[str], tmp_path: Path) -> None:
    options = [*corpus, f"run_dir={tmp_path / 'run'}", "curate.work.num_workers=2"]
    process = curate(*options, wait=False)
    while not list((tmp_path / "run").glob("work/0*.json")):
        time.sleep(0.05)
    workers = [one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode not in (0, None) and "a process of curation was killed" in errors
    curate(*options, "resume=true")
    curate(*corpus, f"run_dir={tmp_path / 'whole'}")
    assert outputs(tmp_path / "run") == outputs(tmp_path / "whole")


@pytest.mark.slow
def test_an_array_of_jobs_and_its_merge_are_the_whole(corpus: list[str], tmp_path: Path) -> None:
    curate(*corpus, f"run_dir={tmp_path / 'whole'}")
    line = ["launch/slurm_curate.sbatch", *corpus, f"run_dir={tmp_path / 'run'}"]
    for shard in range(3):
        task = {"SLURM_ARRAY_TASK_ID": str(shard), "SLURM_ARRAY_TASK_COUNT": "3"}
        subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable, **task}, check=True, timeout=200)
        assert not (tmp_path / f"run-shard-{shard}" / "traces.jsonl").exists()
    subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, check=True, timeout=200)
    assert outputs(tmp_path / "run") == outputs(tmp_path / "whole")


@pytest.mark.slow
@NEEDS_SHARED
def test_verdicts_on_four_models_solutions_are_their_authors(tmp_path: Path) -> None:
    curate(
        "data/source=gsm8k_model_solutions",
        f"curate.sources.gsm8k_model_solutions.path={SHARED / 'gsm8k_model_solutions.jsonl'}",
        "data/evaluation_set=gsm8k_test",
        f"curate.decontamination.sets.gsm8k_test.path={SHARED / 'gsm8k_test.jsonl'}",
        "curate.decontamination.switched_off=[gsm8k_test]",
        "curate.weights.measured_by=pass_rate",
        "curate.keep_teacher=by_coverage",
        f"run_dir={tmp_path / 'run'}",
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["verdicts"]["given_by_source"] == summary["verdicts"]["agreeing"] == 5276
    assert not (tmp_path / "run" / "disagreements.jsonl").exists()
    assert summary["kept_by_teacher"] == {"175b_verification": 742}
    assert set(summary["kept_by_difficulty"]) == {"easy", "medium", "hard"}
    assert summary["evaluation_sets"] == {"checked": [], "switched_off": ["gsm8k_test"]}


@pytest.mark.slow
@NEEDS_SHARED
def test_without_being_switched_off_the_evaluation_set_takes_all_of_its_own_questions(tmp_path: Path) -> None:
    curate(
        "data/source=gsm8k",
        f"curate.sources.gsm8k.path={SHARED / 'gsm8k_test.jsonl'}",
        "data/evaluation_set=gsm8k_test",
        f"curate.decontamination.sets.gsm8k_test.path={SHARED / 'gsm8k_test.jsonl'}",
        f"run_dir={tmp_path / 'run'}",
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dropped_by_reason"] == {"contaminated": 1319}
