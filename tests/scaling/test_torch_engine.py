"""Traces stopped inside the running batch are those that a replay of the whole traces would stop, to the token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.scaling.confidence import group_confidence, summarise, token_confidence
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, Stop, TraceEngine, TraceRequest
from falcon_h1r.scaling.torch_engine import TorchEngine
from falcon_h1r.types import Problem

WINDOW, LIMIT = 6, 40
PROBLEMS = [Problem.from_question(f"Compute {number}+{number}.", str(2 * number)) for number in range(3)]
SETTINGS = SamplingSettings(num_samples=1, max_response_tokens=LIMIT, temperature=0.9, top_p=0.95, seed=3)


def engine_of(model: Any, tokenizer: Any, burst: int = 1, partial_window: str = "mean", **options: Any) -> TorchEngine:
    confidence = ConfidenceSettings(top_k=5, window_tokens=WINDOW, partial_window=partial_window)
    engine = TorchEngine(model, tokenizer, 4, confidence, **options)
    engine.sampler.burst_steps = burst
    return engine


def requests(stop: Stop | None, num_top: int = 0) -> list[TraceRequest]:
    settings = SamplingSettings(**{**vars_of(SETTINGS), "num_top_logprobs": num_top})
    return [TraceRequest(problem, sample, settings, stop=stop) for problem in PROBLEMS for sample in range(3)]


def vars_of(settings: SamplingSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__slots__}


def drawn(engine: TraceEngine, wanted: list[TraceRequest]) -> dict[Any, DrawnTrace]:
    engine.submit(wanted)
    found: dict[Any, DrawnTrace] = {}
    while traces := engine.advance():
        assert not found.keys() & {trace.key for trace in traces}
        found.update({trace.key: trace for trace in traces})
    assert found.keys() == {request.key for request in wanted}
    return found


@pytest.fixture
def whole(tiny_model, tokenizer) -> dict[Any, DrawnTrace]:
    return drawn(engine_of(tiny_model, tokenizer), requests(None, num_top=5))


def test_confidences_are_those_of_the_whole_trace_bit_by_bit(whole: dict[Any, DrawnTrace]) -> None:
    for trace in whole.values():
        assert trace.top_logprobs is not None and len(trace.top_logprobs) == trace.num_tokens
        assert np.array_equal(trace.confidences["top_k"], token_confidence(trace.top_logprobs))
        assert len(trace.confidences["sampled"]) == trace.num_tokens and (trace.confidences["sampled"] < 0).all()


@pytest.mark.parametrize("burst", [1, 4])
@pytest.mark.parametrize("partial_window", ["mean", "wait"])
@pytest.mark.parametrize("measure", ["top_k", "sampled"])
def test_a_trace_is_stopped_where_its_replay_would_be(
    whole, tiny_model, tokenizer, measure: str, partial_window: str, burst: int
) -> None:
    lowest = [summarise(trace.confidences[measure], WINDOW, partial_window).lowest_group for trace in whole.values()]
    stop = Stop(float(np.median(lowest)), measure)
    engine = engine_of(tiny_model, tokenizer, burst, partial_window)
    found = drawn(engine, requests(stop))
    num_stopped = 0
    for key, trace in found.items():
        full = whole[key]
        groups = group_confidence(full.confidences[measure], WINDOW, partial_window)
        below = np.flatnonzero(groups < stop.threshold)
        expected = int(below[0]) + 1 if len(below) else full.num_tokens
        was_stopped = len(below) > 0
        assert (trace.num_tokens, trace.stop_reason == "confidence") == (expected, was_stopped)
        assert trace.response_ids == full.response_ids[:expected]
        same = full.confidences[measure][:expected]  # other company in the batch rounds otherwise
        assert trace.confidences[measure] == pytest.approx(same, abs=1e-5)
        num_stopped += was_stopped
    assert 0 < num_stopped < len(found)


def test_a_trace_that_falls_at_its_last_token_counts_as_stopped(tiny_model, tokenizer) -> None:
    """So does its replay, which knows the lowest group alone."""
    short = SamplingSettings(num_samples=1, max_response_tokens=1)
    for stop, reason in ((Stop(np.inf), "confidence"), (None, "length")):
        request = TraceRequest(PROBLEMS[0], 0, short, stop=stop)
        trace = drawn(engine_of(tiny_model, tokenizer), [request])[request.key]
        assert (trace.num_tokens, trace.stop_reason) == (1, reason)


def test_a_stopped_trace_leaves_the_others_alone(whole, tiny_model, tokenizer) -> None:
    wanted = requests(None)
    wanted[4] = TraceRequest(wanted[4].problem, wanted[4].sample_index, SETTINGS, stop=Stop(np.inf))
    found = drawn(engine_of(tiny_model, tokenizer), wanted)
    assert found[wanted[4].key].num_tokens == 1
    for key, trace in found.items():
        if key != wanted[4].key:
            assert trace.response_ids == whole[key].response_ids


def test_traces_taken_out_keep_their_confidences(tiny_model, tokenizer) -> None:
    engine = engine_of(tiny_model, tokenizer)
    engine.submit(requests(None))
    for _ in range(3):
        engine.sampler.advance(1)
    taken = engine.abort()
    assert {trace.stop_reason for trace in taken} == {"abort"}
    assert all(len(trace.confidences["top_k"]) == trace.num_tokens for trace in taken)
    assert engine.advance() == []


def test_what_the_engine_cannot_do_is_refused(tiny_model, tokenizer) -> None:
    blind = TorchEngine(tiny_model, tokenizer, 4)
    with pytest.raises(ValueError, match="does not measure 'top_k'"):
        blind.submit(requests(Stop(1.0)))
    assert drawn(blind, requests(None)[:1])[requests(None)[0].key].confidences == {}


def test_a_key_that_is_there_is_refused_and_what_was_under_way_ends(whole, tiny_model, tokenizer) -> None:
    engine = engine_of(tiny_model, tokenizer)
    wanted = requests(None)
    engine.submit(wanted[:2])
    with pytest.raises(ValueError, match="is being drawn already"):
        engine.submit([wanted[2], wanted[0]])
    found = {}
    while ended := engine.advance():
        found |= {trace.key: trace for trace in ended}
    assert {key: trace.text for key, trace in found.items()} == {
        request.key: whole[request.key].text for request in wanted[:2]
    }


def test_after_a_stop_of_the_run_nothing_is_under_way(tiny_model, tokenizer) -> None:
    class Stopping(Watch):
        def check(self) -> None:
            raise StopRequested("stopped")

    engine = engine_of(tiny_model, tokenizer, watch=Stopping())
    engine.submit(requests(None))
    with pytest.raises(StopRequested):
        engine.advance()
    assert engine.advance() == []
