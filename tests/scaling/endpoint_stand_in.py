"""A scripted server that speaks OpenAI's streaming protocol, and fails as it is told to. For failures; what real
servers send is tested against real ones in test_endpoint_real.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Scripted:
    """One token: the confidence by top_k is `-mean(tops)`, that by sampled is `logprob`."""

    text: str
    logprob: float
    tops: tuple[float, ...]
    is_reasoning: bool = False


def token(text: str, confidence: float, is_reasoning: bool = False) -> Scripted:
    """Its two best logprobs are apart by one, and it is the best."""
    return Scripted(text, 0.5 - confidence, (0.5 - confidence, -0.5 - confidence), is_reasoning)


@dataclass
class StandIn:
    """Answers each request with `script(body)`, or with the next of `faults`.

    A fault is "500", "401", "429 3" (with Retry-After), "drop 2" (after so many pieces), "garbage", "error", "refusal"
    (in the stream), "silent", "no end" (all of it but the last line) or "abort" (ends by another reason).
    """

    script: Callable[[dict[str, Any]], Sequence[Scripted]]
    owner: str = "someone"
    models: tuple[str, ...] = ("tiny",)
    faults: list[str] = field(default_factory=list)
    always: str = ""  # a fault of every answer
    piece_tokens: int = 1
    num_top: int = 100  # no more logprobs than that; -1: none at all
    side_by_side: bool = False  # OpenAI's own form of completions' logprobs
    parses_reasoning: bool = False
    counts: bool = True  # tokens, in `usage`
    finish_reason: str = "stop"
    hold_after: int | None = None  # pieces; then nothing until `released`
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cut_off: list[int] = field(default_factory=list)  # seeds of answers whose reader went away

    def __post_init__(self) -> None:
        self.released, self.most_at_once, self._now = threading.Event(), 0, 0
        self._lock = threading.Lock()
        self._listens = _Listens(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": self}))
        self.url = f"http://127.0.0.1:{self._listens.server_address[1]}/v1"
        threading.Thread(target=self._listens.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._listens.shutdown()
        self._listens.server_close()

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> str:
        """Note a request; the fault that answers it, or nothing."""
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return self.always or (self.faults.pop(0) if self.faults else "")

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def events(self, body: dict[str, Any], is_chat: bool) -> list[dict[str, Any]]:
        tokens = list(self.script(body))[: body["max_tokens"]]
        asked = body.get("top_logprobs", 0) if is_chat else body.get("logprobs", 0)
        found = []
        for start in range(0, len(tokens), self.piece_tokens):
            piece = tokens[start : start + self.piece_tokens]
            found.append({"choices": [{"index": 0, **self._words(piece, is_chat)}], "usage": None})
            if asked and self.num_top >= 0:
                found[-1]["choices"][0]["logprobs"] = self._logprobs(piece, min(asked, self.num_top))
        reason = "length" if len(tokens) == body["max_tokens"] else self.finish_reason
        found.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if self.counts:
            found.append({"choices": [], "usage": {"completion_tokens": len(tokens)}})
        return found

    def _words(self, piece: Sequence[Scripted], is_chat: bool) -> dict[str, Any]:
        if not is_chat:
            return {"text": "".join(each.text for each in piece)}
        reasoning = "".join(each.text for each in piece if each.is_reasoning and self.parses_reasoning)
        content = "".join(each.text for each in piece if not (each.is_reasoning and self.parses_reasoning))
        return {"delta": {"content": content or None, "reasoning_content": reasoning or None}}

    def _logprobs(self, piece: Sequence[Scripted], num_top: int) -> dict[str, Any]:
        if self.side_by_side:
            return {
                "tokens": [each.text for each in piece],
                "token_logprobs": [each.logprob for each in piece],
                "top_logprobs": [{str(i): each.tops[i] for i in range(num_top)} for each in piece],
            }
        return {
            "content": [
                {
                    "token": each.text,
                    "logprob": each.logprob,
                    "top_logprobs": [{"token": "?", "logprob": top} for top in each.tops[:num_top]],
                }
                for each in piece
            ]
        }


class _Listens(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a connection that finds no place comes again after a second


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        listed = [{"id": name, "owned_by": self.stand_in.owner} for name in self.stand_in.models]
        self._send(200, json.dumps({"data": listed}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.stand_in.take(body, dict(self.headers))
        try:
            self._answer(body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.stand_in.cut_off.append(body["seed"])
            self.close_connection = True
        finally:
            self.stand_in.leave()

    def _answer(self, body: dict[str, Any], fault: str) -> None:
        kind, _, rest = fault.partition(" ")
        if kind.isdecimal():
            said = json.dumps({"error": f"no, {self.headers.get('Authorization')}"})
            return self._send(int(kind), said, {"Retry-After": rest} if rest else {})
        if kind == "silent":
            self.stand_in.released.wait(30)
            self.close_connection = True
            return None
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for index, event in enumerate(self.stand_in.events(body, self.path == "/v1/chat/completions")):
            if (kind == "drop" and index == int(rest)) or index == self.stand_in.hold_after:
                if kind == "drop":
                    break
                self.stand_in.released.wait(30)
            if kind == "abort" and event["choices"] and event["choices"][0].get("finish_reason"):
                event["choices"][0]["finish_reason"] = "abort"
            instead = {"garbage": '{"choices": [', "error": '{"error": "out of memory"}'}
            instead["refusal"] = '{"error": {"message": "too many logprobs", "code": 400}}'
            text = instead.get(kind, json.dumps(event))
            self._write(f"data: {text}\n\n")
        else:
            self._write("" if kind == "no end" else "data: [DONE]\n\n")
        self.close_connection = True
        return None

    def _write(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
