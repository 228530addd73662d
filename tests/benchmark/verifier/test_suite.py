"""The suite through its recipe on a handful of pairs: without a peer, with a stand-in, cut short, resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.benchmark.verifier.figures import VerifierFigures
from falcon_h1r.benchmark.verifier.judges import OURS, PEER
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config, not_built_yet
from falcon_h1r.distributed.world import World
from falcon_h1r.entry import CONFIGS
from falcon_h1r.types import InputError
from recipes.benchmark import benchmark, check

ROOT = Path(__file__).resolve().parents[3]

ROWS = [
    {"id": "half", "prediction": r"so \boxed{0.5}", "gold": "1/2", "expected": True, "kind": "fraction"},
    {"id": "no", "prediction": r"so \boxed{3}", "gold": "4", "expected": False, "kind": "numeric"},
    {"id": "square", "prediction": r"\boxed{(x+1)^2}", "gold": "x^2+2x+1", "expected": True, "kind": "symbolic"},
    {"id": "mislabelled", "prediction": r"\boxed{7}", "gold": "7", "expected": False, "kind": "numeric"},
    {"id": "bomb", "prediction": r"\boxed{9^{9^{9^9}}}", "gold": "1", "expected": False, "kind": "adversarial"},
    {
        "id": "long", "prediction": "{" * 9999, "gold": "1", "expected": False, "kind": "adversarial",
        "any_verdict": True,
    },
]  # fmt: skip

# Equal strings are equal, and a 4 kills.
STAND_IN = """
import os
def parse(text):
    return text.rpartition("boxed{")[2].rstrip("}")
def verify(gold, prediction):
    if gold == "4":
        os._exit(5)
    if gold == "x^2+2x+1":
        raise BaseException("timeout")
    print("chatter")
    return gold == prediction
"""
RUNS_STAND_IN = "import runpy, sys; sys.path.insert(0, {folder!r}); sys.argv = sys.argv[1:]; {run}"


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", ROWS)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An interpreter that has a math_verify of ours."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "math_verify.py").write_text(STAND_IN)
    code = RUNS_STAND_IN.format(folder=str(folder), run="runpy.run_path(sys.argv[0], run_name='__main__')")
    (tmp_path / "code.py").write_text(code)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} {tmp_path / "code.py"} "$@"\n')
    python.chmod(0o755)
    return python


def composed(folder: Path, pairs: Path, *overrides: str) -> Config:
    entry.store_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        fixed = (
            "suite=verifier", f"benchmark.pairs=[{pairs}]", f"benchmark.page={folder / 'page.md'}",
            "benchmark.repeats=1", "benchmark.grpo_problems=4", "benchmark.grpo_rollouts=2",
        )  # fmt: skip
        config = OmegaConf.to_object(compose("config", [*fixed, *overrides]))
    assert isinstance(config, Config)
    check_config(config)
    return config


def run_recipe(folder: Path, pairs: Path, *overrides: str) -> VerifierFigures:
    config = composed(folder, pairs, *overrides)
    check(config)
    benchmark(config, folder, World(0, 1, torch.device("cpu")))
    return VerifierFigures.read(folder / "page.jsonl")


def test_the_suite_runs_without_a_peer(tmp_path: Path, pairs_file: Path) -> None:
    figures = run_recipe(tmp_path, pairs_file)
    assert {name: found.judgements[OURS].verdict for name, found in figures.pairs.items() if name != "bomb"} == {
        "half": True, "no": False, "square": True, "mislabelled": True, "long": False,
    }  # fmt: skip
    assert all(found.judgements.keys() == {OURS} for found in figures.pairs.values())
    assert figures.imports is not None and not figures.imports["loads_torch"]
    assert figures.batch is not None and figures.batch["num_verdicts"] == 8
    page = (tmp_path / "page.md").read_text()
    assert "Math-Verify was **not measured**" in page
    assert "| mislabelled | numeric | wrong | correct |" in page
    assert (tmp_path / "page.svg").exists()


@pytest.mark.slow
def test_the_peer_is_judged_beside_us_and_survives_its_faults(tmp_path: Path, pairs_file: Path, stand_in: Path) -> None:
    figures = run_recipe(tmp_path, pairs_file, f"benchmark.peer_python={stand_in}")
    theirs = {name: found.judgements[PEER] for name, found in figures.pairs.items()}
    assert {name: judgement.verdict for name, judgement in theirs.items()} == {
        "half": False, "no": None, "square": None, "mislabelled": True, "bomb": False, "long": False,
    }  # fmt: skip
    assert theirs["no"].fault == "ended with status 5"
    assert (theirs["square"].note, theirs["square"].fault) == ("BaseException", None)
    assert all(found.judgements[OURS].fault is None for found in figures.pairs.values())
    page = (tmp_path / "page.md").read_text()
    assert "| fraction | 1 | 0 | 0 | 0 |" in page, "only ours is right"


@pytest.mark.slow
def test_what_was_judged_is_kept_and_the_rest_is_made_up_for(tmp_path: Path, pairs_file: Path) -> None:
    whole = run_recipe(tmp_path, pairs_file)
    cut = VerifierFigures.read(tmp_path / "page.jsonl")
    cut.pairs = {name: found for name, found in cut.pairs.items() if name not in ("no", "bomb")}
    cut.batch = None
    cut.write(tmp_path / "page.jsonl")
    corrected = [row | {"expected": True} if row["id"] == "mislabelled" else row for row in ROWS]
    resumed = run_recipe(tmp_path, write_rows(pairs_file, corrected), "benchmark.resume=true")
    assert list(resumed.pairs) == [row["id"] for row in ROWS]
    kept = [name for name in resumed.pairs if resumed.pairs[name].judgements == whole.pairs[name].judgements]
    assert kept == ["half", "square", "mislabelled", "long"]
    assert (resumed.start, resumed.imports) == (whole.start, whole.imports) and resumed.batch is not None
    assert "mislabelled" not in (tmp_path / "page.md").read_text(), "the label that counts is the file's"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["another gold", "a pair less"])
def test_verdicts_on_other_pairs_are_not_mixed_in(tmp_path: Path, pairs_file: Path, change: str) -> None:
    run_recipe(tmp_path, pairs_file)
    before = (tmp_path / "page.jsonl").read_text()
    rows = ROWS[1:] if change == "a pair less" else [ROWS[0] | {"gold": "2/4"}, *ROWS[1:]]
    with pytest.raises(InputError, match="holds verdicts on pair half"):
        run_recipe(tmp_path, write_rows(pairs_file, rows), "benchmark.resume=true")
    assert (tmp_path / "page.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        (json.dumps(ROWS[0]), "line 2: id 'half' came before"),
        (json.dumps(ROWS[1] | {"gold": 4}), "line 2: gold has to be text"),
        (json.dumps(ROWS[1] | {"expected": None}), "line 2: expected has to be true or false"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", ROWS[:1])
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(InputError, match=message):
        check(composed(tmp_path, path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmark.pairs=[]", "benchmark.pairs is empty"),
        ("benchmark.pairs=[nowhere.jsonl]", "nowhere.jsonl: no such file"),
        ("benchmark.peer_python=nowhere/python", "benchmark.peer_python=nowhere/python: cannot be started"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(tmp_path: Path, pairs_file: Path, override: str, message: str) -> None:
    arguments = ["suite=verifier", f"benchmark.pairs=[{pairs_file}]", override]
    arguments = arguments if "pairs" not in override else [arguments[0], override]
    command = [sys.executable, str(ROOT / "recipes/benchmark.py"), *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {message}") and run.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_every_setting_of_the_preset_is_acted_on(tmp_path: Path) -> None:
    config = composed(tmp_path, tmp_path / "pairs.jsonl")
    assert config.benchmark.kind == "verifier" and not_built_yet(config, "benchmark") == []
