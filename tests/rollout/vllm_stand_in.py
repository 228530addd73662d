"""In place of a vLLM server: a real tiny Falcon-H1 in the test's process behind vLLM's endpoints.

Real: HTTP, streaming, requests and answers as in vLLM 0.31, its rule for cutting packed weights, the model's logprobs.
Replaced: vLLM's engine, by a forward over the whole text for each token, and NCCL, by a socket (stand_in_nccl.py).
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.decode_weights import head_logits
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.rollout.vllm_worker import METHOD, held_vectors
from tests.rollout.stand_in_nccl import WorkerLink

INIT_FIELDS = {
    *("master_address", "master_port", "rank_offset", "world_size", "nccl_unique_id_b64"),
    *("packed", "packed_buffer_size_bytes", "packed_num_buffers"),
}
UPDATE_FIELDS = {"names", "dtype_names", "shapes"}


@dataclass
class StandIn:
    """A server that can be told to misbehave. `faults` holds, by path, what the next answers do instead."""

    model: FalconH1ForCausalLM
    tokenizer: Any
    dropped: Collection[str] = ()  # ends of names of weights that it does not take over
    num_workers: int = 1
    piece_tokens: int = 4  # in one piece of an answer, whatever is asked for
    piece_seconds: float = 0.0  # before each
    model_info: dict[str, Any] = field(default_factory=dict)
    weight_transfer: dict[str, Any] | None = field(default_factory=lambda: {"backend": "nccl"})
    faults: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)  # (path, body) of every POST
    most_at_once: int = 0
    received: dict[str, torch.Tensor] = field(default_factory=dict)
    cut_off: int = 0  # answers whose reader went away

    def __post_init__(self) -> None:
        self._lock, self._links, self._is_paused = threading.RLock(), [], False
        self._drawing: set[int] = set()  # threads
        self._listens = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": self}))
        self._listens.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._listens.server_address[1]}"
        threading.Thread(target=self._listens.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._listens.shutdown()
        self._listens.server_close()

    def count(self, path: str) -> int:
        return Counter(path for path, _ in self.requests)[path]

    # -------------------------------------------------------------------------
    # Weights

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        assert set(init_info) <= INIT_FIELDS and init_info["rank_offset"] == 1
        assert init_info["world_size"] == self.num_workers + 1 and init_info["packed"]
        self._init_info = {"packed_buffer_size_bytes": 2**30, **init_info}
        self._links = [WorkerLink(init_info) for _ in range(self.num_workers)]

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive as vLLM's packed consumer cuts, and load by the checkpoint's names, as its loader takes them."""
        assert set(update_info) == UPDATE_FIELDS
        announced = list(zip(*(update_info[name] for name in ("names", "dtype_names", "shapes")), strict=True))
        piece: list[tuple[str, torch.dtype, list[int], int]] = []
        for index, (name, dtype_name, shape) in enumerate(announced):
            dtype = getattr(torch, dtype_name)
            piece.append((name, dtype, shape, math.prod(shape) * dtype.itemsize))
            size = sum(entry[3] for entry in piece)
            if size > self._init_info["packed_buffer_size_bytes"] or index == len(announced) - 1:
                data = [link.receive(size) for link in self._links]
                self._unpack(piece, data[-1])
                piece = []

    def _unpack(self, piece: list[tuple[str, torch.dtype, list[int], int]], data: torch.Tensor) -> None:
        for (name, dtype, shape, _), part in zip(piece, data.split([entry[3] for entry in piece]), strict=True):
            weight = part.contiguous().view(dtype).view(*shape)
            self.received[name] = weight
            if not name.endswith(tuple(self.dropped) or ("\0",)):
                with torch.no_grad(), self._lock:
                    self.model.get_parameter(name).copy_(weight)

    def reports(self) -> list[dict[str, list[float]]]:
        """What its workers, each with its part of the heads, answer."""
        whole = held_vectors(named_as_at_vllm(self.model))
        share = self.num_workers
        return [{n: v[len(v) // share * i : len(v) // share * (i + 1)] for n, v in whole.items()} for i in range(share)]

    # -------------------------------------------------------------------------
    # Rollouts

    def drawn(self, body: dict[str, Any], prompt: list[int]) -> Iterator[dict[str, Any]]:
        """Choices, one for each piece of an answer."""
        assert body["n"] == 1 and body["min_p"] == 0.0 and body["repetition_penalty"] == 1.0
        with self._lock:
            self._drawing.add(threading.get_ident())
            self.most_at_once = max(self.most_at_once, len(self._drawing))
        try:
            yield from self._pieces(body, prompt)
        finally:
            self._drawing.discard(threading.get_ident())

    def _pieces(self, body: dict[str, Any], prompt: list[int]) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(body.get("seed"))
        tokens: list[int] = []
        pending: list[tuple[int, torch.Tensor]] = []
        reason = None
        while reason is None:
            with self._lock:
                if self._is_paused:
                    reason = "abort"
                    break
                logprobs = self._next_logprobs(prompt + tokens, body["temperature"])
            token = int(logprobs.argmax()) if body["temperature"] == 0 else _draw(logprobs, rng)
            tokens.append(token)
            pending.append((token, logprobs))
            text = self.tokenizer.decode(tokens)
            if token in (body.get("stop_token_ids") or ()) or any(stop in text for stop in body.get("stop") or ()):
                reason = "stop"
            elif len(tokens) == body["max_tokens"]:
                reason = "length"
            if len(pending) == self.piece_tokens and reason is None:
                yield _choice(pending, body["logprobs"], None)
                pending = []
        self._drawing.discard(threading.get_ident())  # before its reader knows
        yield _choice(pending, body["logprobs"], reason)

    @torch.no_grad()
    def _next_logprobs(self, ids: list[int], temperature: float) -> torch.Tensor:
        hidden = packed_hidden_states(self.model, pack_row([Document(ids, [0.0] * len(ids))]))
        return torch.log_softmax(head_logits(self.model, hidden[-1:])[0] / (temperature or 1.0), -1)

    def set_paused(self, paused: bool) -> None:
        with self._lock:
            self._is_paused = paused


def copy_of_shape(config: FalconH1Config, dtype: torch.dtype = torch.float64) -> FalconH1ForCausalLM:
    """A model with small random weights, as `--load-format dummy` gives it: none of them is the trainer's."""
    model = FalconH1ForCausalLM(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1e-3, 1e-3, generator=generator)
    return model


def named_as_at_vllm(model: FalconH1ForCausalLM) -> Any:
    """What vLLM's own model would list of its mixers: A in place of A_log, one level deeper."""
    pairs = []
    for name, parameter in model.named_parameters():
        head, _, last = name.rpartition(".mamba.")
        if last == "A_log":
            pairs.append((f"{head}.mamba.mamba.A", -parameter.exp()))
        elif last in ("D", "dt_bias"):
            pairs.append((f"{head}.mamba.mamba.{last}", parameter))
    return SimpleNamespace(named_parameters=lambda: pairs)


def _draw(logprobs: torch.Tensor, rng: np.random.Generator) -> int:
    cumulative = logprobs.double().exp().cumsum(0)
    return min(int(torch.searchsorted(cumulative, rng.random() * cumulative[-1])), len(logprobs) - 1)


def _choice(drawn: list[tuple[int, torch.Tensor]], num_top: int, reason: str | None) -> dict[str, Any]:
    tops = []
    for token, logprobs in drawn:
        best = logprobs.topk(num_top)
        pairs = [(token, logprobs[token]), *zip(best.indices.tolist(), best.values, strict=True)]
        tops.append({f"token_id:{each}": float(value) for each, value in pairs})
    names = [f"token_id:{token}" for token, _ in drawn]
    logprobs = {"tokens": names, "token_logprobs": [float(values[token]) for token, values in drawn]}
    return {
        "index": 0,
        "text": "not looked at",
        "logprobs": {**logprobs, "top_logprobs": tops},
        "finish_reason": reason,
        "token_ids": [token for token, _ in drawn],
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self._misbehaves(path):
            return
        model_config = {"logprobs_mode": "processed_logprobs", "max_model_len": 4096, **self.stand_in.model_info}
        info = {"model_config": model_config, "weight_transfer_config": self.stand_in.weight_transfer}
        answers: dict[str, Any] = {
            "/health": None,
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/server_info": {"vllm_config": info},
            "/get_world_size": {"world_size": self.stand_in.num_workers},
        }
        self._send(200, answers[path])

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(data) if data else None
        self.stand_in.requests.append((self.path, body))
        if self._misbehaves(path):
            return
        server = self.stand_in
        if path == "/v1/completions":
            return self._complete(body)
        if path == "/init_weight_transfer_engine":
            server.init_transfer(body["init_info"])
        elif path == "/update_weights":
            server.update_weights(body["update_info"])
        elif path == "/collective_rpc":
            assert body == {"method": METHOD}
            return self._send(200, {"results": server.reports()})
        elif path in ("/pause", "/resume"):
            server.set_paused(path == "/pause")
        else:
            assert path in ("/start_weight_update", "/finish_weight_update", "/reset_prefix_cache"), path
        self._send(200, {"success": True} if path == "/reset_prefix_cache" else {"message": "done"})

    def _complete(self, body: dict[str, Any]) -> None:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        try:
            if body.get("stream"):
                self._stream(self.stand_in.drawn(body, prompts[0]))
            else:
                self.stand_in.piece_tokens = 10**9  # whole answers
                choices = [
                    {**choice, "prompt_token_ids": p} for p in prompts for choice in self.stand_in.drawn(body, p)
                ]
                self._send(200, {"choices": choices})
        except (BrokenPipeError, ConnectionResetError):
            self.stand_in.cut_off += 1
            self.close_connection = True

    def _stream(self, choices: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, choice in enumerate(choices):
            if number == 1 and self._misbehaves("within an answer"):
                return
            if choice["finish_reason"] == "stop" and self._fault("no logprobs"):
                choice = {**choice, "logprobs": None}
            time.sleep(self.stand_in.piece_seconds)
            self._chunk(f"data: {json.dumps({'choices': [choice]})}\n\n")
        self._chunk("data: [DONE]\n\n")
        self._chunk("")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _fault(self, place: str) -> str | None:
        waiting = self.stand_in.faults.get(place)
        return waiting.pop(0) if waiting else None

    def _misbehaves(self, place: str) -> bool:
        fault = self._fault(place)
        if fault is None:
            return False
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "malformed":
            if place == "within an answer":
                self._chunk('data: {"choices": [{"tok\n\n')
                self._chunk("")
            else:
                self._send(200, None, b'{"choices": [{"tok')
        else:
            self._send(int(fault), {"error": {"message": f"told to fail with {fault}"}})
        return True

    def _send(self, status: int, body: Any, raw: bytes | None = None) -> None:
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
