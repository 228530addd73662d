"""Which work is measured, and what a preset or an override asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.benchmark.cases import equal_lengths, mixed_lengths, suite_cases
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config, not_built_yet
from falcon_h1r.config_checks_tools import BENCHMARK_PARTS
from falcon_h1r.entry import CONFIGS

ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides: str) -> Config:
    entry.store_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    check_config(config)
    return config


@given(num_tokens=st.integers(64, 5000), num_documents=st.integers(1, 16))
def test_documents_fill_their_row(num_tokens: int, num_documents: int) -> None:
    for lengths in (equal_lengths(num_tokens, num_documents), mixed_lengths(num_tokens, num_documents)):
        assert len(lengths) == num_documents
        assert sum(lengths) == num_tokens
        assert min(lengths) >= 2


@pytest.mark.parametrize("suite", ["model", "model_smoke", "model_gpu"])
def test_every_preset_measures_every_part(suite: str) -> None:
    config = composed(f"suite={suite}")
    assert {case.part for case in suite_cases(config.benchmark)} == set(BENCHMARK_PARTS)
    assert not_built_yet(config, "benchmark") == []
    keys = [case.key for case in suite_cases(config.benchmark)]
    assert len(set(keys)) == len(keys)


def test_a_suite_brings_its_model_and_leaves_the_choice_to_the_command_line() -> None:
    assert composed("suite=model").model.architecture["hidden_size"] == 256
    assert composed("suite=model_gpu").model.architecture["hidden_size"] == 3072
    assert composed("suite=model", "model=tiny").model.architecture["hidden_size"] == 96


def test_the_peer_is_skipped_by_the_rule_that_the_row_names() -> None:
    cases = suite_cases(composed("suite=model", "benchmark.peer_max_tokens.lengths=1000").benchmark)
    peers = {
        case.num_tokens: case.contenders[1:] for case in cases if case.part == "lengths" and case.layout == "eight"
    }
    assert [peer.chunk_size for peer in peers[512]] == [32, 64, 128, 256]
    assert [peer.skipped for peer in peers[1024]] == ["above benchmark.peer_max_tokens.lengths=1000"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "suite=nope",
            "suite=nope: no such suite (there are: ",
        ),
        ("benchmark.parts=[scan,speed]", "benchmark.parts=speed: not one of scan, "),
        ("+benchmark.peer_max_tokens={row2: 3}", "benchmark.peer_max_tokens=row2: not one of scan, "),
        ("suite=quickstart", "benchmark.runs is empty: "),
    ],
)
def test_a_mistake_is_one_line(override: str, message: str, tmp_path: Path) -> None:
    arguments = [sys.executable, str(ROOT / "recipes/benchmark.py"), override]
    run = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {message}") and run.stderr.count("\n") == 1
