"""suite=checkpoint in a few seconds: every interval is measured, and the page says what was."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from falcon_h1r.benchmark.checkpoint import MODES, page_lines, run_checkpoint_suite
from falcon_h1r.config import Config
from falcon_h1r.distributed.world import World
from tests.conftest import ONE_LAYER


def test_every_kind_of_save_is_measured_in_turn(tmp_path: Path) -> None:
    config = Config()
    config.model.architecture = {**ONE_LAYER, "vocab_size": 64}
    config.benchmark.page = str(tmp_path / "page.md")
    config.benchmark.repeats, config.benchmark.checkpoint_steps, config.benchmark.checkpoint_row_tokens = 2, 3, 16
    run_checkpoint_suite(config, tmp_path / "run", World(0, 1, torch.device("cpu")))
    figures = json.loads((tmp_path / "page.json").read_text())
    assert figures["intervals"].keys() == set(MODES)
    for mode in MODES:
        assert len(figures["intervals"][mode]) == 2  # the first round warms up
        for interval in figures["intervals"][mode]:
            assert 0 <= interval["held_up_seconds"] <= interval["seconds"]
            assert (interval["thread_cpu_seconds"] > 0) == (mode != "none")
            assert interval["thread_cpu_seconds"] < interval["cpu_seconds"]
    assert figures["checkpoint_bytes"] > 12 * 64 * 32  # weight and moments of the embedding alone
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert (tmp_path / "page.md").read_text() == "\n".join(page_lines(figures)) + "\n"


def test_the_bar_is_held_against_the_time_that_training_stood_still() -> None:
    def intervals(held_up: float, *spent: float) -> list[dict[str, float]]:
        rest = {"held_up_seconds": held_up, "cpu_seconds": 10.0, "thread_cpu_seconds": 0.3}
        return [{"seconds": seconds, **rest} for seconds in spent]

    figures = {
        "environment": {"hardware": "a machine", "torch": "2", "transformers": "5"},
        **{"revision": "r", "command": "c", "model": "m", "checkpoint_bytes": 2**20, "steps": 1, "row_tokens": 1},
        "intervals": {
            "none": intervals(0.0, 10, 10, 10),
            "asynchronous": intervals(0.7, 10.2, 10.4, 11.0),
            "synchronous": intervals(2.0, 12, 12, 12),
        },
    }
    (line,) = (line for line in page_lines(figures) if line.startswith("| asynchronous"))
    assert line.endswith("| 0.700 | 6.7% (at most 5%: **missed**) | 0.30 | 3.0% | 4% |")
