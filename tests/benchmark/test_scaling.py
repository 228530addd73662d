"""suite=scaling: what is drawn online is what a replay of the whole traces says, and the page shows its figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from falcon_h1r.benchmark.scaling import check_scaling_suite, draw
from falcon_h1r.benchmark.scaling_page import render
from falcon_h1r.config import Config
from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.tasks import Task
from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.scaling.confidence import summarise
from falcon_h1r.scaling.engine import ConfidenceSettings, TraceRequest
from falcon_h1r.scaling.online import OnlineSettings
from falcon_h1r.scaling.replay import replay
from falcon_h1r.scaling.torch_engine import TorchEngine
from falcon_h1r.scaling.traces import ScoredTrace
from falcon_h1r.types import InputError, Problem
from falcon_h1r.verifier import canonical_answer

BUDGET, WINDOW = 12, 4
PROBLEMS = [Problem.from_question(f"Compute {number}+1.", str(number + 1)) for number in range(3)]
SCALING = ScalingConfig(warmup_traces=4, wave_traces=3, keep_share=0.5, window_tokens=WINDOW, measure="sampled")


@pytest.fixture
def engine(tiny_model, tokenizer) -> TorchEngine:
    return TorchEngine(tiny_model.double(), tokenizer, 7, ConfidenceSettings(top_k=5, window_tokens=WINDOW))


def test_online_draws_the_tokens_that_a_replay_of_whole_traces_counts(engine: TorchEngine) -> None:
    settings = SamplingSettings(BUDGET, 20, temperature=0.8, seed=5)
    task = Task("task", PROBLEMS, settings, "math")
    engine.submit([TraceRequest(problem, index, settings) for problem in PROBLEMS for index in range(BUDGET)])
    whole: dict[str, dict[int, ScoredTrace]] = {problem.uid: {} for problem in PROBLEMS}
    while traces := engine.advance():
        for trace in traces:
            confidence = {name: summarise(values, WINDOW, "mean") for name, values in trace.confidences.items()}
            answer = canonical_answer(trace.text, True, ())
            whole[trace.problem_uid][trace.sample_index] = ScoredTrace(
                trace.sample_index, answer, trace.num_tokens, False, confidence
            )
    results = [
        replay([traces[index] for index in range(BUDGET)], OnlineSettings.of(SCALING, BUDGET))
        for traces in whole.values()
    ]
    assert draw(engine, task, SCALING) == sum(result.tokens for result in results)
    assert sum(result.num_stopped for result in results) > 0
    everything = sum(trace.num_tokens for traces in whole.values() for trace in traces.values())
    assert draw(engine, task, None) == everything


def test_the_page_has_a_line_for_every_setting_and_judges_time_only_where_tokens_were_saved() -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    saved = {"tokens": 100.0, "saved_by_confidence": 0.2, "saved_by_consensus": 0.1}
    point = {"method": "online", "budget": 8, "measure": "sampled", "keep_share": 0.1, "accuracy": estimate}
    majority = {"method": "majority", "budget": 8, "measure": None, "keep_share": None, "accuracy": estimate}
    scores = dict.fromkeys(("mean", "bottom_10", "lowest_group", "tail"), estimate)
    sets = [
        {
            "run": 0,
            "seed": seed,
            "warmup": 4,
            "points": [majority | saved | {"against_majority": None}, point | saved | {"against_majority": estimate}],
            "auc_within": {"top_k": scores, "sampled": scores},
        }
        for seed in range(2)
    ]
    timed = {
        "tokens": {"whole": 100, "online": 60},
        "seconds": {"whole": [2.0], "online": [1.0]},
        "tokens_saved": 0.4,
        "seconds_saved": 0.5,
    }
    environment = {"hardware": "two cores", "torch": "2", "transformers": "5"}
    figures = {"sets": sets, "timed": timed, "environment": environment, "command": "command"}
    page = render(Config(), figures)
    assert "| DeepConf, keep 0.1 | sampled | 50.0% | 50.0 to 50.0 | +50.0 | 100 | 30% | 20% | 10% |" in page
    assert "Time saved: 50% (at least 20%: met)" in page
    assert "at least" not in render(Config(), figures | {"timed": timed | {"tokens_saved": 0.1}})


def test_a_folder_that_is_no_pipelines_is_refused_at_once(tmp_path) -> None:
    config = Config()
    with pytest.raises(InputError, match="benchmark.runs is empty"):
        check_scaling_suite(config)
    config.benchmark = replace(config.benchmark, runs=[str(tmp_path)])
    with pytest.raises(InputError, match="holds no grpo/model/config.json"):
        check_scaling_suite(config)
