"""Against real servers, on this machine: docs/endpoint.md says how to get them, and what each was seen to do.

FALCON_H1R_LLAMA_CPP        what launch/build_llama_server.sh was given: llama.cpp's server and its converter
FALCON_H1R_SERVER_PYTHON    a Python with transformers and its extra `serving`
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from falcon_h1r.config import ModelConfig
from falcon_h1r.config_evaluate import EndpointConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.data.tokenisation import prompt_text, stop_token_ids
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.model.decode_weights import head_logits
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.load import random_policy
from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.scaling.confidence import summarise, token_confidence
from falcon_h1r.scaling.endpoint import EndpointEngine, open_endpoint
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, Stop, TraceRequest
from falcon_h1r.types import InputError, Problem
from tests.conftest import TINY_ARCHITECTURE

LLAMA_CPP = os.environ.get("FALCON_H1R_LLAMA_CPP")
SERVER_PYTHON = os.environ.get("FALCON_H1R_SERVER_PYTHON")
SLOTS, SLOT_TOKENS = 16, 1024
MEASURED = ConfidenceSettings(top_k=20, window_tokens=16)
NUM_TRACES = 32

pytestmark = pytest.mark.slow
needs_llama = pytest.mark.skipif(LLAMA_CPP is None, reason="FALCON_H1R_LLAMA_CPP names no llama.cpp; docs/endpoint.md")
needs_transformers = pytest.mark.skipif(
    SERVER_PYTHON is None, reason="FALCON_H1R_SERVER_PYTHON names no Python with transformers' serving extra"
)


@pytest.fixture(scope="module")
def model(tokenizer) -> Any:
    """In float32, which is what the server computes in. It has learnt to write characters, whichever: of a token that
    is half of one, llama.cpp's server sends no logprob.
    """
    policy = random_policy(ModelConfig(dtype="float32", architecture=dict(TINY_ARCHITECTURE)), tokenizer, seed=0)
    texts = tokenizer.batch_decode([[each] for each in range(len(tokenizer))])
    whole = [each for each, text in enumerate(texts) if "\ufffd" not in text and each not in tokenizer.all_special_ids]
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    drawing = torch.Generator().manual_seed(0)
    for _ in range(120):
        ids = torch.tensor(whole)[torch.randint(len(whole), (4, 64), generator=drawing)]
        logprobs = torch.log_softmax(policy(ids).logits, -1)
        goes_on, ends = logprobs[..., whole].logsumexp(-1), logprobs[..., stop_token_ids(tokenizer)].logsumexp(-1)
        optimizer.zero_grad()
        (-(goes_on + 0.004 * ends).mean()).backward()
        optimizer.step()
    spilt = 1 - float((goes_on.exp() + ends.exp()).detach().mean())
    print(f"ends with {float(ends.detach().exp().mean()):.4f} a token; {spilt:.0e} is on half characters")
    return policy.eval()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("served")
    model.generation_config.do_sample = True  # transformers' server draws greedily otherwise
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def served(command: list[str], port: int, log: Path, **environment: str) -> Iterator[str]:
    """The address of a server, once it is up."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()  # llama.cpp's server was seen to wait forever when asked
        process.wait(30)


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[str]:
    """llama.cpp's server with the same weights, its caches in float32 as well."""
    home, file, port = Path(str(LLAMA_CPP)), folder / "model.gguf", free_port()
    script = Path(__file__).with_name("to_gguf.py")
    subprocess.run([sys.executable, script, home / "llama.cpp", folder, file], check=True, capture_output=True)
    command = [str(home / "bin" / "llama-server"), "-m", str(file), "--port", str(port), "--jinja", "--metrics"]
    command += f"-np {SLOTS} -c {SLOTS * SLOT_TOKENS} -t 1 -ctk f32 -ctv f32 -fa off".split()
    yield from served(command, port, folder / "llama.log")


@pytest.fixture(scope="module")
def transformers_server(folder: Path) -> Iterator[str]:
    port, hub = free_port(), folder / "hub"
    hub.mkdir()
    command = [str(SERVER_PYTHON), "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    yield from served(command, port, folder / "transformers.log", HF_HUB_CACHE=str(hub))


def opened(address: str, tokenizer: Any, api: str, confidence: Any = MEASURED, **settings: Any) -> EndpointEngine:
    config = EndpointConfig(urls=[f"{address}/v1"], api=api, max_in_flight=SLOTS, first_pause_seconds=0.1, **settings)
    return open_endpoint(config, confidence, tokenizer, Watch())


def requests(stop: Stop | None = None, **settings: Any) -> list[TraceRequest]:
    sampling = SamplingSettings(**{"num_samples": 1, "max_response_tokens": 600, "seed": 1, **settings})
    problems = [Problem.from_question(f"Compute {each}+{each}.", "") for each in range(2)]
    per_problem = range(NUM_TRACES // len(problems))
    return [TraceRequest(problem, i, sampling, "Think.", stop=stop) for problem in problems for i in per_problem]


def drawn(engine: EndpointEngine, asked: list[TraceRequest]) -> list[DrawnTrace]:
    engine.submit(asked)
    found: list[DrawnTrace] = []
    while ended := engine.advance():
        found += ended
    order = [request.key for request in asked]
    return sorted(found, key=lambda trace: order.index(trace.key))


def raw_logprobs(model: Any, prompt_ids: list[int], response_ids: list[int]) -> torch.Tensor:
    """(response, vocabulary), at temperature 1, of the weights themselves."""
    ids = prompt_ids + response_ids
    row = pack_row([Document(ids, [0.0] + [1.0] * (len(ids) - 1))])
    with torch.no_grad():
        hidden = packed_hidden_states(model, row)
        logits = head_logits(model, hidden).double().reshape(-1, model.config.vocab_size)
    return torch.log_softmax(logits, -1)[len(prompt_ids) - 1 : -1]


def assert_drawn_as_asked(raw: torch.Tensor, ids: torch.Tensor, settings: SamplingSettings) -> int:
    """Each token is one that truncation after the temperature leaves. Returns how many are rare at temperature 1."""
    if settings.temperature:
        ordered, order = torch.softmax(raw / settings.temperature, -1).sort(-1, descending=True)
        place = (order == ids[:, None]).int().argmax(-1, keepdim=True)
        better = (ordered.cumsum(-1) - ordered).gather(-1, place)
        assert (better < settings.top_p + 1e-5).all()
        drawn_share = ordered.gather(-1, place)[:, 0] / ordered[:, 0]
        return int(((place[:, 0] >= 40) & (drawn_share < 0.05)).sum()) if settings.temperature == 1.0 else 0
    assert (raw.argmax(-1) == ids).all()
    return 0


def predicted_tokens(address: str) -> int:
    """That llama.cpp's server has drawn since its start, once it draws no more."""
    while True:
        with urlopen(f"{address}/metrics", timeout=10) as answer:
            counted = dict(re.findall(r"^llamacpp:(\w+) (\d+)", answer.read().decode(), re.MULTILINE))
        if counted["requests_processing"] == counted["requests_deferred"] == "0":
            return int(counted["tokens_predicted_total"])
        time.sleep(0.02)


@needs_llama
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_p": 0.95}, {"temperature": 0.0}])
def test_confidences_of_a_server_are_those_of_the_weights_it_serves(
    model, tokenizer, llama: str, settings: Any
) -> None:
    asked = requests(**settings)
    traces = drawn(opened(llama, tokenizer, "completions"), asked)
    assert len(traces) == NUM_TRACES
    worst, rare = 0.0, 0
    for request, trace in zip(asked, traces, strict=True):
        ids = trace.response_ids
        assert ids is not None and len(ids) == trace.num_tokens == len(trace.confidences["top_k"])
        assert (trace.stop_reason == "length") == (trace.num_tokens == 600)
        prompt = tokenizer(prompt_text(tokenizer, request.question, "Think."), add_special_tokens=False)["input_ids"]
        raw = raw_logprobs(model, prompt, ids)
        best = token_confidence(raw.topk(MEASURED.top_k, -1).values.numpy())
        sampled = raw[range(len(ids)), ids].numpy()
        for measure, expected in (("top_k", best), ("sampled", sampled)):
            worst = max(worst, float(abs(trace.confidences[measure] - expected).max()))
        rare += assert_drawn_as_asked(raw, torch.tensor(ids), request.settings)
        ends = trace.stop_reason == "stop"
        assert trace.text == tokenizer.decode(ids[:-1] if ends else ids)
    print(f"{settings}: {sum(trace.num_tokens for trace in traces)} tokens, largest difference {worst:.1e}")
    assert worst < 1e-4
    assert (rare > 0) == (not settings)  # the server's own defaults, top-k 40 and min-p 0.05, would draw none


@needs_llama
def test_a_chat_draws_what_completions_draw(tokenizer, llama: str) -> None:
    """Its stop token comes without a logprob, but is counted."""
    chats = drawn(opened(llama, tokenizer, "chat"), requests())
    completions = drawn(opened(llama, tokenizer, "completions"), requests())
    same = [one.text == other.text for one, other in zip(chats, completions, strict=True)]
    assert sum(same) >= NUM_TRACES * 0.9  # the order of a batch's sums may tip a draw
    for one, other in zip(chats, completions, strict=True):
        if one.text == other.text:
            assert one.num_tokens == other.num_tokens
            most = len(one.confidences["top_k"])
            assert one.num_tokens - most <= 8
            if most == one.num_tokens - (one.stop_reason == "stop"):
                np.testing.assert_allclose(one.confidences["top_k"], other.confidences["top_k"][:most], atol=1e-4)


@needs_llama
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_dropped_connection_ends_the_drawing_at_the_server(tokenizer, llama: str, api: str) -> None:
    engine = opened(llama, tokenizer, api)
    before = predicted_tokens(llama)
    whole = drawn(engine, requests())
    drawn_whole = predicted_tokens(llama) - before
    assert drawn_whole == sum(trace.num_tokens for trace in whole)

    lowest = [summarise(trace.confidences["top_k"], 16, "mean").lowest_group for trace in whole]
    stop = Stop(float(np.percentile(lowest, 75)))
    stopped = drawn(engine, requests(stop))
    drawn_stopped = predicted_tokens(llama) - before - drawn_whole
    num_stopped = sum(trace.stop_reason == "confidence" for trace in stopped)
    counted = sum(trace.num_tokens for trace in stopped)
    print(
        f"{api}: {drawn_whole} tokens whole; {num_stopped} of {NUM_TRACES} stopped: {counted}, server {drawn_stopped}"
    )
    assert NUM_TRACES // 2 <= num_stopped < NUM_TRACES
    assert counted <= drawn_stopped < drawn_whole
    assert drawn_stopped - counted <= 16 * num_stopped  # what was under way when the connection was dropped
    for one, other in zip(whole, stopped, strict=True):
        if other.stop_reason == "confidence" and one.text.startswith(other.text):
            ends = summarise(one.confidences["top_k"], 16, "mean").tokens_until_below(stop.threshold)
            assert ends == other.num_tokens


@needs_llama
def test_a_server_with_too_small_a_vocabulary_or_context_is_named(tokenizer, llama: str) -> None:
    settings = ConfidenceSettings(top_k=10_000, window_tokens=16)
    with pytest.raises(
        InputError, match=rf"urls: {llama}/v1: it gives \d+ logprobs at a token instead of the best 10000"
    ):
        drawn(opened(llama, tokenizer, "chat", settings), requests(max_response_tokens=5)[:1])


@needs_transformers
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_server_without_logprobs_draws_and_is_refused_where_confidence_is_asked_for(
    folder: Path, tokenizer, transformers_server: str, api: str
) -> None:
    engine = opened(transformers_server, tokenizer, api, None, model=str(folder))
    traces = drawn(engine, requests(max_response_tokens=20)[:4])
    assert all(0 < trace.num_tokens <= 20 and trace.confidences == {} for trace in traces)
    engine = opened(transformers_server, tokenizer, api, model=str(folder))
    with pytest.raises(InputError, match=f"evaluate.endpoint.urls: {transformers_server}/v1: it streams no logprobs"):
        drawn(engine, requests(max_response_tokens=20)[:4])
