"""Several seeds in one page: numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.pooled import pooled_page
from falcon_h1r.evaluation.summary import summarise_pipeline
from falcon_h1r.types import InputError

VERSIONS = {"processor": "Abacus", "torch": "2", "transformers": "5"}


def answer(uid: str, right: bool, leaps: bool, greedy: bool, sample_index: int = 0) -> dict[str, Any]:
    return {
        "problem_uid": uid, "family": "addition", "difficulty": "easy", "greedy": greedy, "sample_index": sample_index,
        "response": "clearly 2" if leaps else "1+1=2", "answer_key": "2" if right else "3",
        "status": "correct" if right else "wrong", "response_tokens": 5, "stop_reason": "stop",
    }  # fmt: skip


def write_run(folder: Path, seed: int) -> str:
    """SFT leaps on problem a, wrongly; GRPO works and is right. On problem b both work, and are right."""
    samples = {
        "base": [answer(uid, False, False, greedy) for uid in "ab" for greedy in (False, True)],
        "sft": [answer(uid, uid == "b", uid == "a", greedy) for uid in "ab" for greedy in (False, True)],
        "grpo": [answer(uid, True, False, greedy) for uid in "ab" for greedy in (False, True)],
    }
    for model, rows in samples.items():
        path = folder / "evaluate" / model / "samples.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summarise_pipeline(samples, {"sft": 10.0, "grpo": 5.0}, seed, ScalingConfig())
    summary |= {"peak_memory_gib": 1.5, "versions": VERSIONS}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def test_the_page_pools_seeds_and_tells_the_habit_from_the_skill(tmp_path: Path) -> None:
    page = pooled_page([write_run(tmp_path / str(seed), seed) for seed in range(2)])
    assert "| 1 | 0.0% | 50.0% | 100.0% |" in page
    assert "| 15 | 1.50 |" in page
    assert "| greedy | +50.0 |" in page
    assert "| greedy answers that leap | 50.0% | 0.0% |" in page
    assert "| greedy answers that work: right | 100.0% | 100.0% |" in page
    assert "on the 2 problems that both work out: +0.0 points" in page


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} holds no summary.json"):
        pooled_page([str(tmp_path)])
