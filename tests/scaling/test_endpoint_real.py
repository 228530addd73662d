"""Against real servers, on this machine: docs/endpoint.md says how to get them, and what each was seen to do.

FALCON_H1R_LLAMA_CPP        what launch/build_llama_server.sh was given: llama.cpp's server and its converter
FALCON_H1R_SERVER_PYTHON    a Python with transformers and its extra `serving`
"""

from __future__ import annotations

import os
import re
import signal
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
VLLM_PYTHON = os.environ.get("FALCON_H1R_VLLM_PYTHON")
SLOTS, SLOT_TOKENS = 16, 1024
MEASURED = ConfidenceSettings(top_k=20, window_tokens=16)
NUM_TRACES = 32

pytestmark = pytest.mark.slow
# As small as vLLM's attention on a CPU takes: heads of 64.
ARCHITECTURE = TINY_ARCHITECTURE | {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
GREEDY, DRAWN, TRUNCATED = {"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.95}
needs_transformers = pytest.mark.skipif(
    SERVER_PYTHON is None, reason="FALCON_H1R_SERVER_PYTHON names no Python with transformers' serving extra"
)


@pytest.fixture(scope="module")
def model(tokenizer) -> Any:
    """In float32, which is what the server computes in. It has learnt to write characters, whichever: of a token that
    is half of one, llama.cpp's server sends no logprob.
    """
    policy = random_policy(ModelConfig(dtype="float32", architecture=ARCHITECTURE), tokenizer, seed=0)
    texts = tokenizer.batch_decode([[each] for each in range(len(tokenizer))])
    whole = [each for each, text in enumerate(texts) if "\ufffd" not in text and each not in tokenizer.all_special_ids]
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
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
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # llama.cpp's server was seen to wait forever when asked
        process.wait(30)


@pytest.fixture(scope="module", params=["llama.cpp", "vllm"])
def server(request, folder: Path) -> Iterator[str]:
    """A server of the same weights, all of it in float32."""
    port = free_port()
    log, tokens = folder / f"{request.param}.log", SLOTS * SLOT_TOKENS
    if request.param == "vllm":
        if VLLM_PYTHON is None:
            pytest.skip("FALCON_H1R_VLLM_PYTHON names no Python with vLLM; docs/endpoint.md")
        command = [VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--enforce-eager"]
        command += f"--port {port} --dtype float32 --max-model-len {SLOT_TOKENS} --max-num-seqs {SLOTS}".split()
        yield from served(command, port, log, VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
        return
    if LLAMA_CPP is None:
        pytest.skip("FALCON_H1R_LLAMA_CPP names no llama.cpp; docs/endpoint.md")
    script, file = Path(__file__).with_name("to_gguf.py"), folder / "model.gguf"
    subprocess.run([sys.executable, script, f"{LLAMA_CPP}/llama.cpp", folder, file], check=True, capture_output=True)
    command = [f"{LLAMA_CPP}/bin/llama-server", "-m", str(file), "--jinja", "--metrics"]
    command += f"--port {port} -np {SLOTS} -c {tokens} -t 1 -ctk f32 -ctv f32 -fa off".split()
    yield from served(command, port, log)


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
    """That the server has drawn since its start, once it draws no more."""
    while True:
        with urlopen(f"{address}/metrics", timeout=10) as answer:
            said = re.findall(r"^(?:llamacpp|vllm):(\w+)\S* ([0-9.e+]+)$", answer.read().decode(), re.MULTILINE)
        counted = {name: float(number) for name, number in said}
        names = ("requests_processing", "requests_deferred", "num_requests_running", "num_requests_waiting")
        if not any(counted.get(name, 0.0) for name in names):
            return int(counted.get("tokens_predicted_total", counted.get("generation_tokens_total", -1)))
        time.sleep(0.05)


@pytest.mark.parametrize("settings", [DRAWN, TRUNCATED, GREEDY], ids=["drawn", "truncated", "greedy"])
def test_confidences_of_a_server_are_those_of_its_weights(model, tokenizer, server: str, settings: Any) -> None:
    asked = requests(**settings)
    traces = drawn(opened(server, tokenizer, "completions"), asked)
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
        assert trace.text == tokenizer.decode(ids[:-1] if trace.stop_reason == "stop" else ids)
    print(f"{settings}: {sum(trace.num_tokens for trace in traces)} tokens, largest difference {worst:.1e}")
    assert worst < 1e-4
    assert (rare > 0) == (settings == DRAWN)  # llama.cpp's own defaults, top-k 40 and min-p 0.05, would draw none


def test_a_chat_draws_what_completions_draw(tokenizer, server: str) -> None:
    """llama.cpp sends no logprob with a chat's stop token, and vLLM the logprob of a token drawn in place of the k-th
    best, where it is not among them.
    """
    chats = drawn(opened(server, tokenizer, "chat"), requests(num_top_logprobs=20))
    completions = drawn(opened(server, tokenizer, "completions"), requests(num_top_logprobs=20))
    pairs = [pair for pair in zip(chats, completions, strict=True) if pair[0].text == pair[1].text]
    assert len(pairs) >= NUM_TRACES * 0.9  # the order of a batch's sums may tip a draw
    for chat, completion in pairs:
        assert chat.num_tokens == completion.num_tokens
        given = len(chat.confidences["top_k"])
        assert given >= chat.num_tokens - (chat.stop_reason == "stop")
        assert completion.top_logprobs is not None
        sampled = completion.confidences["sampled"][:given]
        among_best = sampled >= completion.top_logprobs[:given, -1] - 1e-6
        assert among_best.mean() > 0.5
        np.testing.assert_allclose(chat.confidences["sampled"], sampled, atol=1e-4)
        best, expected = chat.confidences["top_k"], completion.confidences["top_k"][:given]
        np.testing.assert_allclose(best[among_best], expected[among_best], atol=1e-4)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_dropped_connection_ends_the_drawing_at_the_server(tokenizer, server: str, api: str) -> None:
    engine = opened(server, tokenizer, api)
    before, began = predicted_tokens(server), time.monotonic()
    whole = drawn(engine, requests())
    drawn_whole, seconds = predicted_tokens(server) - before, time.monotonic() - began
    assert drawn_whole == sum(trace.num_tokens for trace in whole)

    lowest = [summarise(trace.confidences["top_k"], 16, "mean").lowest_group for trace in whole]
    stop, began = Stop(float(np.percentile(lowest, 75))), time.monotonic()
    stopped = drawn(engine, requests(stop))
    drawn_stopped, seconds_stopped = predicted_tokens(server) - before - drawn_whole, time.monotonic() - began
    num_stopped = sum(trace.stop_reason == "confidence" for trace in stopped)
    counted = sum(trace.num_tokens for trace in stopped)
    print(
        f"{api}: {drawn_whole} tokens in {seconds:.1f} s; {num_stopped} of {NUM_TRACES} traces stopped: {counted} "
        f"(the server drew {drawn_stopped}) in {seconds_stopped:.1f} s"
    )
    assert NUM_TRACES // 2 <= num_stopped < NUM_TRACES
    # A server goes on until it hears of it, and is read late where both share few cores.
    assert 0 <= drawn_stopped - counted < (drawn_whole - counted) / 2
    for one, other in zip(whole, stopped, strict=True):
        if other.stop_reason == "confidence" and one.text.startswith(other.text):
            ends = summarise(one.confidences["top_k"], 16, "mean").tokens_until_below(stop.threshold)
            assert ends == other.num_tokens


def test_a_server_that_gives_too_few_logprobs_is_named(tokenizer, server: str) -> None:
    settings = ConfidenceSettings(top_k=10_000, window_tokens=16)
    said = (
        f"{server}/v1(: it gives .* logprobs at a token instead of the best 10000|/chat.*greater than max allowed: 20)"
    )
    with pytest.raises(InputError, match=f"evaluate.endpoint.urls: {said}"):
        drawn(opened(server, tokenizer, "chat", settings), requests(max_response_tokens=5)[:1])


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
