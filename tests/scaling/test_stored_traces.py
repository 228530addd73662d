"""On real traces, 64 a problem with their top 20 logprobs: every figure equals the paper's formulas as plain loops.

The model is that of a small pipeline run, or of the finished one that FALCON_H1R_PIPELINE_RUN names.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from falcon_h1r.config import ModelConfig
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.sources import load_problems
from falcon_h1r.model.load import load_policy
from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.scaling.confidence import group_confidence, summarise, token_confidence
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, Stop, TraceRequest
from falcon_h1r.scaling.online import OnlineSettings
from falcon_h1r.scaling.replay import replay, stopped_below
from falcon_h1r.scaling.torch_engine import TorchEngine
from falcon_h1r.scaling.traces import MEASURES, SCORES, ScoredTrace
from falcon_h1r.scaling.voting import votes_side_by_side
from falcon_h1r.types import Problem
from falcon_h1r.verifier import canonical_answer
from tests.scaling import literal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_PROBLEMS, NUM_TRACES, WINDOW, TOP_K = 12, 64, 8, 20
SYSTEM_PROMPT = "Think first."
SETTINGS = SamplingSettings(NUM_TRACES, 80, seed=11, num_top_logprobs=TOP_K)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("FALCON_H1R_PIPELINE_RUN"):
        return Path(named)
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    command = [sys.executable, "recipes/pipeline.py", "experiment=quickstart_smoke", f"run_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def problems(run: Path) -> list[Problem]:
    return load_problems(SourceConfig(path=str(run / "curate/eval.jsonl"), curated=True))[:NUM_PROBLEMS]


@pytest.fixture(scope="module")
def engine(run: Path) -> TorchEngine:
    # In float64 nothing that shares a batch changes which token is drawn.
    settings = ModelConfig(path=str(run / "grpo/model"), local_files_only=True, dtype="float64")
    model, tokenizer = load_policy(settings, torch.device("cpu"))
    return TorchEngine(model.eval(), tokenizer, 256, ConfidenceSettings(top_k=TOP_K, window_tokens=WINDOW))


def draw(engine: TorchEngine, requests: list[TraceRequest]) -> dict[Any, DrawnTrace]:
    engine.submit(requests)
    found: dict[Any, DrawnTrace] = {}
    while traces := engine.advance():
        found.update({trace.key: trace for trace in traces})
    return found


def request(problem: Problem, index: int, stop: Stop | None = None) -> TraceRequest:
    return TraceRequest(problem, index, SETTINGS, SYSTEM_PROMPT, stop=stop)


@pytest.fixture(scope="module")
def stored(engine: TorchEngine, problems: list[Problem]) -> dict[Any, DrawnTrace]:
    return draw(engine, [request(problem, index) for problem in problems for index in range(NUM_TRACES)])


def confidences_of(trace: DrawnTrace, measure: str) -> list[float]:
    """By the paper, from what was stored."""
    if measure == "sampled":
        return trace.confidences["sampled"].tolist()
    assert trace.top_logprobs is not None
    return [literal.token_confidence(row) for row in trace.top_logprobs.astype(float).tolist()]


def scored_by_problem(stored: dict[Any, DrawnTrace], problems: list[Problem]) -> list[list[ScoredTrace]]:
    return [
        [
            ScoredTrace(
                index,
                canonical_answer(trace.text, True, ()),
                trace.num_tokens,
                False,
                {name: summarise(values, WINDOW, "mean") for name, values in trace.confidences.items()},
            )
            for index in range(NUM_TRACES)
            for trace in [stored[problem.uid, index]]
        ]
        for problem in problems
    ]


@pytest.mark.parametrize("partial_window", ["mean", "wait"])
@pytest.mark.parametrize("measure", MEASURES)
def test_confidences_equal_the_literal_ones(stored, measure: str, partial_window: str) -> None:
    assert len(stored) == NUM_PROBLEMS * NUM_TRACES
    for trace in stored.values():
        expected = confidences_of(trace, measure)
        if measure == "top_k":
            assert token_confidence(trace.top_logprobs) == pytest.approx(expected, abs=1e-9)
        values = trace.confidences[measure]
        assert values == pytest.approx(expected, abs=1e-9)
        groups = [float("nan") if g is None else g for g in literal.groups(expected, WINDOW, partial_window)]
        assert group_confidence(values, WINDOW, partial_window) == pytest.approx(groups, abs=1e-9, nan_ok=True)
        found, scores = summarise(values, WINDOW, partial_window), literal.scores(expected, WINDOW, partial_window)
        assert {name: getattr(found, name) for name in SCORES} == pytest.approx(scores, abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_votes_equal_the_literal_ones(stored, problems, measure: str) -> None:
    for traces in scored_by_problem(stored, problems):
        for name, vote in votes_side_by_side(traces, measure, 1.0).items():
            ballots = []
            for trace in traces:
                if trace.answer is not None:
                    score = 1.0 if name == "majority" else getattr(trace.confidence[measure], name)
                    is_logprob = measure == "sampled" and name != "majority"
                    ballots.append((trace.answer, math.exp(score) if is_logprob else score))
            assert dict(vote.shares) == pytest.approx(literal.votes(ballots), abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("keep_share", [0.1, 0.5, 0.9])
def test_a_replay_equals_the_literal_algorithm(stored, problems, measure: str, keep_share: float) -> None:
    settings = OnlineSettings(NUM_TRACES, keep_share=keep_share, measure=measure)
    for problem, traces in zip(problems, scored_by_problem(stored, problems), strict=True):
        full = [
            literal.FullTrace(trace.answer, stored[problem.uid, trace.sample_index].confidences[measure].tolist())
            for trace in traces
        ]
        expected, found = literal.online(full, settings, WINDOW, "mean"), replay(traces, settings)
        assert (found.tokens, found.num_traces) == (expected.tokens, expected.num_traces)
        assert {trace.sample_index: trace.num_tokens for trace in found.traces if trace.was_stopped} == expected.stops


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_stopped_in_the_batch_is_what_the_replay_stops(stored, engine, problems, measure: str) -> None:
    """A hair below the threshold: of two traces of one text, which tie, rounding would decide."""
    settings = OnlineSettings(NUM_TRACES, consensus_share=1.0, measure=measure, keep_share=0.5)
    num_stopped = 0
    for problem, traces in zip(problems, scored_by_problem(stored, problems), strict=True):
        result = replay(traces, settings)
        if result.threshold is None:
            continue
        threshold = result.threshold - 1e-9
        later = traces[settings.warmup_traces :]
        drawn = draw(engine, [request(problem, trace.sample_index, Stop(threshold, measure)) for trace in later])
        for trace in later:
            expected, found = stopped_below(trace, measure, threshold), drawn[problem.uid, trace.sample_index]
            assert found.num_tokens == expected.num_tokens
            assert (found.stop_reason == "confidence") == expected.was_stopped
            num_stopped += expected.was_stopped
    assert num_stopped > 0
