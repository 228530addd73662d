"""Traces from servers that speak OpenAI's protocol: what is asked, what is read, what is stopped, and every failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from falcon_h1r.config_evaluate import EndpointConfig
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.rollout.http_server import Cut
from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.scaling import endpoint_streams
from falcon_h1r.scaling.confidence import group_confidence, summarise, token_confidence
from falcon_h1r.scaling.endpoint import EndpointEngine, open_endpoint
from falcon_h1r.scaling.endpoint_draft import TraceDraft
from falcon_h1r.scaling.endpoint_protocol import Piece, ServedModel, Token, trace_payload, trace_seed
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, Stop, TraceRequest
from falcon_h1r.types import InputError, Problem
from tests.scaling.endpoint_stand_in import Scripted, StandIn, token

CONFIDENCES = (4.0, 3.0, 5.0, 1.0, 1.5, 6.0, 2.0)
TEXTS = ("<think>", "so ", "then", "</think>", "it ", "is ", "7")
MEASURED = ConfidenceSettings(top_k=2, window_tokens=2)
Starts = Callable[..., StandIn]
Opens = Callable[..., EndpointEngine]


def story(body: dict[str, Any]) -> list[Scripted]:
    return [token(text, confidence) for text, confidence in zip(TEXTS, CONFIDENCES, strict=True)]


@pytest.fixture
def start() -> Iterator[Starts]:
    started: list[StandIn] = []

    def run(script: Any = story, **settings: Any) -> StandIn:
        started.append(StandIn(script, **settings))
        return started[-1]

    yield run
    for server in started:
        server.close()


@pytest.fixture
def opens(tokenizer) -> Iterator[Opens]:
    opened: list[EndpointEngine] = []

    def run(*servers: StandIn, confidence: Any = MEASURED, watch: Watch | None = None, **settings: Any) -> Any:
        config = EndpointConfig(
            **{
                "urls": [server.url for server in servers],
                "first_pause_seconds": 0.0,
                "silent_seconds": 20.0,
                **settings,
            }
        )
        opened.append(open_endpoint(config, confidence, tokenizer, watch or Watch()))
        return opened[-1]

    yield run
    for engine in opened:
        engine.close()


def ask(sample: int = 0, question: str = "3 + 4?", stop: Stop | None = None, **settings: Any) -> TraceRequest:
    sampling = SamplingSettings(
        **{"num_samples": 1, "max_response_tokens": 50, "temperature": 0.6, "seed": 3, **settings}
    )
    return TraceRequest(Problem.from_question(question, "7"), sample, sampling, system_prompt="Think.", stop=stop)


def drawn(engine: EndpointEngine, *requests: TraceRequest) -> list[DrawnTrace]:
    engine.submit(requests)
    found: list[DrawnTrace] = []
    while ended := engine.advance():
        found += ended
    return sorted(found, key=lambda trace: trace.sample_index)


# -------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("piece_tokens", [1, 3, 100])
def test_a_trace_is_its_text_its_tokens_and_their_confidences(
    start: Starts, opens: Opens, api: str, side_by_side: bool, piece_tokens: int
) -> None:
    server = start(side_by_side=side_by_side, piece_tokens=piece_tokens)
    (trace,) = drawn(opens(server, api=api), ask(2, num_top_logprobs=1))
    assert trace.key == (ask().problem.uid, 2)
    assert (trace.text, trace.num_tokens, trace.stop_reason) == ("".join(TEXTS), 7, "stop")
    assert trace.confidences["top_k"].tolist() == list(CONFIDENCES)
    assert trace.confidences["sampled"].tolist() == [0.5 - each for each in CONFIDENCES]
    assert trace.top_logprobs is not None
    assert trace.top_logprobs.tolist() == [[0.5 - each] for each in CONFIDENCES]


def test_reasoning_that_a_server_takes_apart_is_put_together_again(start: Starts, opens: Opens) -> None:
    def script(body: dict[str, Any]) -> list[Scripted]:
        return [token("so ", 3, True), token("then", 3, True), token("it is ", 3), token("7", 3)]

    server = start(script, parses_reasoning=True)
    (trace,) = drawn(opens(server), ask())
    assert trace.text == "<think>so then</think>it is 7"
    (cut,) = drawn(opens(server), ask(max_response_tokens=2))
    assert (cut.text, cut.num_tokens, cut.stop_reason) == ("<think>so then", 2, "length")


def test_tokens_are_counted_by_the_server_where_nothing_is_measured(start: Starts, opens: Opens) -> None:
    server = start()
    (trace,) = drawn(opens(server, confidence=None), ask())
    assert (trace.num_tokens, trace.confidences) == (7, {})
    assert not {"logprobs", "top_logprobs"} & set(server.requests[0])


def test_a_stop_token_without_logprobs_is_counted(start: Starts, opens: Opens) -> None:
    """As llama.cpp's chat does."""

    class Uncounted(StandIn):
        def events(self, body: dict[str, Any], is_chat: bool) -> list[dict[str, Any]]:
            events = super().events(body, is_chat)
            events[-1]["usage"]["completion_tokens"] += 1
            return events

    server = Uncounted(story)
    (trace,) = drawn(opens(server), ask())
    server.close()
    assert (trace.num_tokens, len(trace.confidences["top_k"])) == (8, 7)


# -------------------------------------------------------------------------
# What is asked


def test_seeds_depend_on_run_problem_and_sample_alone(start: Starts, opens: Opens) -> None:
    server = start()
    drawn(opens(server), ask(0), ask(1), ask(2, seed=4))
    seeds = {body["seed"] for body in server.requests}
    assert seeds == {trace_seed(ask(0)), trace_seed(ask(1)), trace_seed(ask(2, seed=4))}
    assert len(seeds | {trace_seed(ask(0, "5 + 5?")), trace_seed(ask(0, seed=4))}) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_chat_is_asked_with_system_and_question(start: Starts, opens: Opens) -> None:
    server = start()
    drawn(opens(server), ask(temperature=0.0, top_p=0.9))
    (body,) = server.requests
    assert [(turn["role"], turn["content"]) for turn in body["messages"]] == [("system", "Think."), ("user", "3 + 4?")]
    expected = {"temperature": 0.0, "top_p": 0.9, "max_tokens": 50, "logprobs": True, "top_logprobs": 2, "stream": True}
    assert {name: body[name] for name in expected} == expected
    assert not {"top_k", "min_p", "samplers"} & set(body)  # a server of OpenAI's would refuse them


def test_completions_are_asked_with_our_template_and_ids_where_they_are_understood(
    start: Starts, opens: Opens, tokenizer
) -> None:
    plain, llama = start(), start(owner="llamacpp")
    for server in (plain, llama):
        drawn(opens(server, api="completions"), ask())
    text, ids = plain.requests[0]["prompt"], llama.requests[0]["prompt"]
    assert "Think." in text and "3 + 4?" in text and text.endswith("assistant\n")
    assert tokenizer.decode(ids) == text
    assert plain.requests[0]["logprobs"] == 2


@pytest.mark.parametrize("dialect", ["vllm", "llamacpp"])
def test_a_server_with_defaults_of_its_own_is_told_to_draw_from_all_tokens(dialect: str) -> None:
    payload = trace_payload(ask(), ServedModel("tiny", dialect), None, 20)
    assert (payload["top_k"], payload["min_p"]) == (0, 0.0) and "ignore_eos" not in payload


def test_traces_run_to_their_limits_at_servers_that_know_a_word_for_it() -> None:
    asked = {dialect: ServedModel("tiny", dialect, ignore_stop_tokens=True) for dialect in ("vllm", "llamacpp", "")}
    payloads = {dialect: trace_payload(ask(), served, None, 0) for dialect, served in asked.items()}
    assert payloads["vllm"]["ignore_eos"] is payloads["llamacpp"]["ignore_eos"] is True
    assert "ignore_eos" not in payloads[""]


def test_what_a_server_has_no_word_for_is_refused(start: Starts, opens: Opens) -> None:
    with pytest.raises(InputError, match="top_k=5: OpenAI's protocol has no word for it"):
        drawn(opens(start()), ask(top_k=5))
    with pytest.raises(InputError, match="stop strings"):
        drawn(opens(start()), ask(stop_strings=("x",)))
    with pytest.raises(InputError, match="a stop by top_k, which this engine was not opened to measure"):
        drawn(opens(start(), confidence=None), ask(stop=Stop(1.0)))


# -------------------------------------------------------------------------
# Stops


@pytest.mark.parametrize("measure", ["top_k", "sampled"])
@pytest.mark.parametrize("partial_window", ["mean", "wait"])
@pytest.mark.parametrize("window_tokens", [1, 2, 4, 20])
@pytest.mark.parametrize("piece_tokens", [1, 4])
def test_a_trace_stops_where_the_whole_trace_says_and_no_later_token_counts(
    start: Starts, opens: Opens, measure: str, partial_window: str, window_tokens: int, piece_tokens: int
) -> None:
    settings = ConfidenceSettings(("top_k", "sampled"), 2, window_tokens, partial_window)
    engine = opens(start(piece_tokens=piece_tokens), confidence=settings)
    (whole,) = drawn(engine, ask())
    values = whole.confidences[measure]
    groups = group_confidence(values, window_tokens, partial_window)
    thresholds = sorted({*groups[~np.isnan(groups)].tolist(), -99.0, 99.0})  # at a group's value: not below it
    traces = drawn(engine, *(ask(sample, stop=Stop(each, measure)) for sample, each in enumerate(thresholds)))
    for trace, threshold in zip(traces, thresholds, strict=True):
        ends = summarise(values, window_tokens, partial_window).tokens_until_below(threshold)
        assert trace.num_tokens == (ends or 7)
        assert trace.stop_reason == ("confidence" if ends else "stop")
        assert trace.confidences[measure].tolist() == values[: trace.num_tokens].tolist()
        assert trace.text == "".join(TEXTS[: trace.num_tokens])


@pytest.mark.parametrize("measure", ["top_k", "sampled"])
@pytest.mark.parametrize("partial_window", ["mean", "wait"])
def test_the_stream_is_watched_with_the_bits_of_the_whole(measure: str, partial_window: str) -> None:
    random = np.random.default_rng(0)
    settings = ConfidenceSettings(("top_k", "sampled"), 20, 7, partial_window)
    for _ in range(20):
        tops = -np.sort(random.exponential(3.0, (60, 20)), axis=1)
        tops[random.random((60, 20)) < 0.05] = -9999.0
        values = token_confidence(tops) if measure == "top_k" else tops[:, 3]
        groups = group_confidence(values, 7, partial_window)
        for threshold in groups[~np.isnan(groups)]:  # any other bit, and it stops elsewhere
            draft = TraceDraft(ask(stop=Stop(float(threshold), measure)), settings)
            tokens = [Token("a", None, float(each[3]), each.tolist()) for each in tops]
            draft.add(Piece(text="a" * 60, tokens=tokens))
            ends = summarise(values, 7, partial_window).tokens_until_below(float(threshold))
            assert len(draft.tokens) == (ends or 60)


def test_a_stop_drops_the_connection_and_makes_room(start: Starts, opens: Opens) -> None:
    def script(body: dict[str, Any]) -> list[Scripted]:
        return [token("a", 5.0), token("b", 0.0), *[token("c" * 100_000, 5.0)] * 300]  # more than sockets hold

    server = start(script)
    engine = opens(server, max_in_flight=1)
    first, second = drawn(engine, *(ask(sample, stop=Stop(3.0), max_response_tokens=1000) for sample in range(2)))
    assert (first.num_tokens, second.num_tokens) == (2, 2)
    engine.close()
    deadline = endpoint_streams.time.monotonic() + 20
    while len(server.cut_off) < 2 and endpoint_streams.time.monotonic() < deadline:
        server.released.wait(0.01)
    assert sorted(server.cut_off) == sorted(trace_seed(ask(sample)) for sample in range(2))
    assert server.most_at_once <= 2  # the second is asked while the server still learns that the first has gone


def test_text_behind_a_stop_that_cannot_be_told_apart_is_left_out(start: Starts, opens: Opens) -> None:
    class Blurred(StandIn):
        def _words(self, piece: Any, is_chat: bool) -> dict[str, Any]:
            return {"delta": {"content": "all of it"}}

    server = Blurred(story, piece_tokens=7)
    (trace,) = drawn(opens(server), ask(stop=Stop(3.6)))
    server.close()
    assert (trace.num_tokens, trace.text) == (2, "")


# -------------------------------------------------------------------------
# Slots, aborts, keys


def test_traces_go_to_the_server_with_the_fewest_under_way(start: Starts, opens: Opens) -> None:
    servers = [start(hold_after=1) for _ in range(3)]
    engine = opens(*servers, max_in_flight=2)
    assert engine.free_slots == 6
    engine.submit(ask(sample) for sample in range(9))
    deadline = endpoint_streams.time.monotonic() + 20
    while sum(len(server.requests) for server in servers) < 6 and endpoint_streams.time.monotonic() < deadline:
        servers[0].released.wait(0.01)
    assert [len(server.requests) for server in servers] == [2, 2, 2]
    assert engine.free_slots == 0
    for server in servers:
        server.released.set()
    found: list[DrawnTrace] = []
    while ended := engine.advance():
        found += ended
    assert sorted(trace.sample_index for trace in found) == list(range(9))


def test_an_aborted_trace_comes_with_what_it_has_and_never_again(start: Starts, opens: Opens) -> None:
    server = start(hold_after=2)
    engine = opens(server, max_in_flight=1)
    engine.submit([ask(0), ask(1), ask(2)])
    streams = engine._streams
    deadline = endpoint_streams.time.monotonic() + 20
    while endpoint_streams.time.monotonic() < deadline:
        flight = streams._flights.get(ask(0).key)
        if flight is not None and len(flight.draft.tokens) == 2:
            break
        server.released.wait(0.01)
    under_way, waiting = engine.abort([ask(0).key, ask(2).key, ("unknown", 7)])
    assert (under_way.stop_reason, under_way.num_tokens, under_way.text) == ("abort", 2, "<think>so ")
    assert (waiting.stop_reason, waiting.num_tokens, waiting.text) == ("abort", 0, "")
    assert waiting.confidences["top_k"].shape == (0,)
    server.released.set()
    assert [trace.sample_index for trace in engine.advance()] == [1]
    assert engine.advance() == []
    assert engine.abort() == []


def test_a_trace_that_ended_before_its_abort_comes_with_the_abort(start: Starts, opens: Opens) -> None:
    engine = opens(start())
    engine.submit([ask()])
    streams = engine._streams
    with streams._changed:
        streams._changed.wait_for(lambda: streams._ended, timeout=20)
    assert [trace.stop_reason for trace in engine.abort([ask().key])] == ["stop"]
    assert engine.advance() == []


def test_a_key_is_taken_once(start: Starts, opens: Opens) -> None:
    engine = opens(start(hold_after=0))
    engine.submit([ask()])
    for again in ([ask()], [ask(1), ask(1)]):
        with pytest.raises(ValueError, match="is under way already"):
            engine.submit(again)
    assert len(engine.abort()) == 1


def test_a_stopped_run_drops_everything(start: Starts, opens: Opens) -> None:
    class Stopped(Watch):
        asked = False

        @property
        def stop_requested(self) -> bool:
            return self.asked

    watch = Stopped()
    engine = opens(start(hold_after=0), watch=watch)
    engine.submit([ask(0), ask(1)])
    watch.asked = True
    with pytest.raises(StopRequested):
        engine.advance()
    watch.asked = False
    assert engine.advance() == []


# -------------------------------------------------------------------------
# Failures that pass


@pytest.mark.parametrize(
    "fault", ["500", "503", "408", "429", "drop 0", "drop 3", "drop 7", "garbage", "error", "abort"]
)
def test_a_lost_trace_is_begun_anew_with_its_seed(start: Starts, opens: Opens, fault: str) -> None:
    server = start(faults=[fault] * 3)
    (trace,) = drawn(opens(server), ask())
    assert (trace.text, trace.num_tokens) == ("".join(TEXTS), 7)
    assert trace.confidences["top_k"].tolist() == list(CONFIDENCES)
    assert len(server.requests) == 4
    assert all(body == server.requests[0] for body in server.requests)


def test_a_server_that_is_silent_counts_as_lost(start: Starts, opens: Opens) -> None:
    server = start(faults=["silent"])
    (trace,) = drawn(opens(server, silent_seconds=0.2), ask())
    assert (trace.num_tokens, len(server.requests)) == (7, 2)


def test_an_answer_that_lacks_only_its_last_line_is_whole(start: Starts, opens: Opens) -> None:
    server = start(always="no end")
    (trace,) = drawn(opens(server), ask())
    assert (trace.num_tokens, len(server.requests)) == (7, 1)


@pytest.mark.parametrize("max_losses", [1, 4])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500", "/chat/completions: status 500"),
        ("garbage", "/chat/completions: no JSON"),
        ("drop 2", "/chat/completions: the connection was lost within an answer"),
        ("error", "/chat/completions: .*out of memory"),
        ("abort", "ended by abort after 7 tokens"),
    ],
)
def test_after_so_many_losses_in_a_row_one_line_says_where_and_why(
    start: Starts, opens: Opens, fault: str, said: str, max_losses: int
) -> None:
    server = start(always=fault)
    engine = opens(server, max_losses=max_losses)
    lost = (
        f"evaluate.endpoint.urls: a trace was lost {max_losses} times in a row, the last time at {server.url}: {said}"
    )
    with pytest.raises(InputError, match=lost) as caught:
        drawn(engine, ask())
    assert len(server.requests) == max_losses
    assert "\n" not in str(caught.value)
    assert engine.advance() == []


def test_pauses_double_and_a_server_may_ask_for_longer(
    start: Starts, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Cut, "wait", lambda self, seconds: pauses.append(seconds))
    server = start(faults=["500", "429 7", "429 1", "429 1000", "429 soon"])
    drawn(opens(server, first_pause_seconds=1.0, max_losses=6), ask())
    assert pauses == [1.0, 7.0, 4.0, 20.0, 16.0]  # and never for longer than it may be silent


def test_what_ended_before_the_error_is_returned_first(start: Starts, opens: Opens) -> None:
    server = start(faults=["", "", "401"])
    engine = opens(server, max_in_flight=1)
    engine.submit(ask(sample) for sample in range(5))
    streams = engine._streams
    with streams._changed:
        assert streams._changed.wait_for(lambda: streams._failure is not None, timeout=20)
    assert [trace.sample_index for trace in engine.advance()] == [0, 1]
    with pytest.raises(InputError, match="status 401"):
        engine.advance()
    assert len(server.requests) == 3


# -------------------------------------------------------------------------
# Servers of which some fail


def test_a_server_that_dies_is_left_to_rest_while_the_other_works(start: Starts, opens: Opens) -> None:
    dead, alive = start(always="500"), start()
    engine = opens(dead, alive, max_in_flight=8)
    traces = drawn(engine, *(ask(sample) for sample in range(40)))
    assert [trace.num_tokens for trace in traces] == [7] * 40
    assert 4 <= len(dead.requests) <= 8 + 3  # those under way when the fourth was lost
    assert engine.free_slots == 8


def test_a_lone_trace_goes_to_the_other_server_at_once(start: Starts, opens: Opens) -> None:
    dead, alive = start(always="drop 1"), start()
    (trace,) = drawn(opens(dead, alive), ask())
    assert (trace.num_tokens, len(dead.requests), len(alive.requests)) == (7, 1, 1)


def test_a_server_that_rested_is_tried_with_one_trace(
    start: Starts, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_streams, "REST_SECONDS", 0.0)
    ill, well = start(faults=["500"] * 4), start()
    engine = opens(ill, well, max_in_flight=3)
    station = engine._streams.stations[0]
    station.losses = 4
    assert engine.free_slots == 1 + 3
    traces = drawn(engine, *(ask(sample) for sample in range(40)))
    assert len(traces) == 40
    assert ill.faults == [] and station.losses == 0  # each loss was one trace's; then it was well again
    assert engine.free_slots == 6


def test_where_all_servers_fail_the_bound_is_that_of_a_trace(start: Starts, opens: Opens) -> None:
    servers = [start(always="500"), start(always="drop 0")]
    with pytest.raises(InputError, match="evaluate.endpoint.urls: a trace was lost 4 times in a row"):
        drawn(opens(*servers), ask())
    assert [len(server.requests) for server in servers] == [2, 2]


# -------------------------------------------------------------------------
# Failures that do not pass


@pytest.mark.parametrize(
    ("status", "setting"), [("401", "api_key_variable"), ("403", "api_key_variable"), ("404", "model"), ("400", "urls")]
)
def test_a_refusal_is_not_repeated(start: Starts, opens: Opens, status: str, setting: str) -> None:
    server = start(always=status)
    with pytest.raises(InputError, match=f"evaluate.endpoint.{setting}: {server.url}/chat.*status {status}"):
        drawn(opens(server), ask())
    assert len(server.requests) == 1


def test_a_refusal_within_an_answer_is_not_repeated_either(start: Starts, opens: Opens) -> None:
    """As vLLM's, after its status of 200."""
    server = start(always="refusal")
    with pytest.raises(InputError, match=f"evaluate.endpoint.urls: {server.url}/chat.*too many logprobs"):
        drawn(opens(server), ask())
    assert len(server.requests) == 1


def test_the_key_is_sent_and_never_shown(start: Starts, opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "s3cret")
    server = start(always="401")
    with pytest.raises(InputError, match=r"status 401.*Bearer \*\*\*") as caught:
        drawn(opens(server, api_key_variable="THE_KEY"), ask())
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value)
    with pytest.raises(InputError, match="the variable NO_KEY is not set"):
        opens(server, api_key_variable="NO_KEY")


@pytest.mark.parametrize(
    ("lack", "said"),
    [
        ({"num_top": -1}, "it streams no logprobs, which confidence is measured by"),
        ({"num_top": 1}, r"it gives 1 logprobs at a token instead of the best 2 \(scaling.top_k\)"),
    ],
)
def test_a_server_without_the_logprobs_is_named_at_once(
    start: Starts, opens: Opens, lack: dict[str, int], said: str
) -> None:
    server = start(**lack)
    with pytest.raises(InputError, match=f"evaluate.endpoint.urls: {server.url}: {said}"):
        drawn(opens(server), ask())
    assert len(server.requests) == 1


def test_a_missing_logprob_is_noticed_before_the_answer_is_whole(start: Starts, opens: Opens) -> None:
    server = start(lambda body: [token("a", 1.0)] * 40, num_top=-1, hold_after=10)
    with pytest.raises(InputError, match="it streams no logprobs"):
        drawn(opens(server), ask())


def test_logprobs_of_a_part_of_the_tokens_are_refused(start: Starts, opens: Opens) -> None:
    class Partial(StandIn):
        def events(self, body: dict[str, Any], is_chat: bool) -> list[dict[str, Any]]:
            events = super().events(body, is_chat)
            for event in events[19:-2]:
                del event["choices"][0]["logprobs"]
            return events

    server = Partial(lambda body: [token("a", 1.0)] * 40)
    with pytest.raises(InputError, match="it gave logprobs of 19 of 40 tokens"):
        drawn(opens(server), ask())
    server.close()


def test_a_server_that_counts_nothing_is_refused_only_where_nothing_else_counts(start: Starts, opens: Opens) -> None:
    server = start(counts=False)
    assert drawn(opens(server), ask())[0].num_tokens == 7
    with pytest.raises(InputError, match="it counts no tokens"):
        drawn(opens(server, confidence=None), ask())


def test_a_server_whose_context_is_too_short_is_refused(start: Starts, opens: Opens) -> None:
    with pytest.raises(InputError, match="it cut a response off after 7 tokens, below its limit of 50"):
        drawn(opens(start(finish_reason="length")), ask())


def test_logprobs_that_are_no_numbers_are_a_lost_answer(start: Starts, opens: Opens) -> None:
    wrong = [Scripted("a", float("nan"), (-1.0, -2.0)), Scripted("a", -1.0, (-1.0, float("nan")))]
    for each in wrong:
        server = start(lambda body, each=each: [each])
        with pytest.raises(InputError, match="a trace was lost 2 times in a row.*nan"):
            drawn(opens(server, max_losses=2), ask())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"urls": []}, "urls is not set"),
        ({"urls": ["localhost:8000"]}, "urls: localhost:8000 is no address"),
        ({"urls": ["http://localhost:8000x/v1"]}, "urls: http://localhost:8000x/v1 is no address"),
        ({"urls": ["http:///v1"]}, "urls: http:///v1 is no address"),
        ({"urls": ["http://127.0.0.1:9/v1"]}, "urls: a server is not up: http://127.0.0.1:9/v1/models"),
        ({"api": "responses"}, "api=responses"),
        ({"max_in_flight": 0}, "max_in_flight=0"),
        ({"max_losses": 0}, "max_losses=0"),
        ({"silent_seconds": 0.0}, "silent_seconds has to be above 0"),
    ],
)
def test_settings_that_cannot_be_are_named(start: Starts, opens: Opens, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"evaluate.endpoint.*{said}"):
        opens(start(), **settings)


def test_the_model_is_the_only_one_or_the_one_named(start: Starts, opens: Opens) -> None:
    assert "tiny at http" in opens(start()).description
    several = start(models=("a", "b"), owner="vllm")
    with pytest.raises(InputError, match="evaluate.endpoint.model is not set, and .* has 2 models: a, b"):
        opens(several)
    with pytest.raises(InputError, match="evaluate.endpoint.model=c: .* has a, b"):
        opens(several, model="c")
    assert "b at http" in opens(several, model="b").description
    with pytest.raises(InputError, match="these servers have different models: other, tiny"):
        opens(start(), start(models=("other",)))
