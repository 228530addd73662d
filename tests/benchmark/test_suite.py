"""The suite through its recipe at tiny sizes; contenders that die."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.benchmark.cases import OURS, Case, Contender
from falcon_h1r.benchmark.process import ContenderProcess, Failed, Run
from falcon_h1r.benchmark.suite import _finalists, measure_case
from falcon_h1r.benchmark.workloads import Setup
from falcon_h1r.config import Config
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.distributed.world import World
from falcon_h1r.entry import CONFIGS
from recipes.benchmark import benchmark
from tests.conftest import TINY_ARCHITECTURE

SCAN = Case("scan", "one", (64,), None, (Contender(OURS),))


def setup(memory_limit_gib: float | None = None) -> Setup:
    architecture = {**TINY_ARCHITECTURE, "vocab_size": 16_384}
    return Setup(architecture, "float32", "cpu", None, num_threads=1, seed=0, memory_limit_gib=memory_limit_gib)


def run_recipe(folder: Path, *overrides: str) -> None:
    entry.store_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = ("suite=model_smoke", f"benchmark.page={folder / 'page.md'}", *overrides)
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    benchmark(config, folder, World(0, 1, torch.device("cpu")))


@pytest.mark.slow
def test_the_suite_measures_writes_and_resumes(tmp_path: Path) -> None:
    options = ("benchmark.parts=[scan]", "benchmark.scan_lengths=[128]", "benchmark.repeats=2")
    run_recipe(tmp_path, *options)
    page = (tmp_path / "page.md").read_text()
    assert "## A mixer on one long document" in page and "## Row lengths" not in page
    (case,) = json.loads((tmp_path / "page.json").read_text())["cases"]
    ours, peer = case["contenders"]
    assert len(ours["runs"]) == len(peer["runs"]) == 2
    assert ours["reason"] is None and peer["chunk_size"] == 64
    norms = [contender["runs"][0]["facts"]["grad_norm"] for contender in (ours, peer)]
    assert abs(norms[0] - norms[1]) < 1e-4 * norms[1], "both sides have the same weights and inputs"

    run_recipe(tmp_path, *options, "benchmark.resume=true")
    assert json.loads((tmp_path / "page.json").read_text())["cases"] == [case]


@pytest.mark.slow
def test_out_of_memory_costs_a_row_and_not_the_run() -> None:
    """At 8,192 tokens all logits take 0.5 GiB, and several times that on the way; ours holds a part of them."""
    case = Case("loss", "compared", (8192,), None, (Contender(OURS), Contender("naive")))
    settings = BenchmarkSuiteConfig(repeats=1, max_seconds=120)
    ours, naive = measure_case(case, setup(memory_limit_gib=1.2), settings)
    assert ours["reason"] is None and len(ours["runs"]) == 1
    assert naive["reason"] == "out of memory at 1.2 GiB" and naive["runs"] == []


def test_a_contender_that_is_killed_says_by_what() -> None:
    process = ContenderProcess(SCAN, SCAN.contenders[0], setup(), max_seconds=60)
    process._process.kill()
    assert process.run() == process.run() == Failed("killed by signal 9")
    process.close()


def test_a_contender_that_takes_too_long_is_stopped() -> None:
    process = ContenderProcess(SCAN, SCAN.contenders[0], setup(), max_seconds=0.01)
    assert process.run() == Failed("stopped after 0.01 s")
    process.close()
    assert not process._process.is_alive()


def test_of_each_path_the_fastest_chunk_size_is_compared() -> None:
    slow, fast, broken, other = (Contender(path, size) for path, size in (("a", 1), ("a", 2), ("a", 3), ("b", 1)))
    case = Case("scan", "one", (64,), None, (Contender(OURS), slow, fast, broken, other))
    runs = {contender: [] for contender in case.contenders} | {
        contender: [Run({"forward": seconds}, 0, 0, {}) for seconds in trials]
        for contender, trials in ((slow, (3.0, 2.0)), (fast, (9.0, 1.0)))
    }
    reasons = {contender: "out of memory" if contender is broken else None for contender in case.contenders}
    assert _finalists(case, runs, reasons) == [Contender(OURS), fast, other]
