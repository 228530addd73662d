"""A sandbox elsewhere: a real HTTP server that runs what it is sent, and one that misbehaves in every way."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from falcon_h1r.verifier.code import CodeVerifier, remote

DOUBLE = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}
CALL = {"fn_name": "double", "inputs": [[1], [2]], "outputs": [2, 4]}

Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


def response(source: str) -> str:
    return f"```python\n{source}\n```"


def run_code(request: dict[str, Any]) -> tuple[int, bytes]:
    """What SandboxFusion does with `POST /run_code`."""
    assert request["language"] == "python" and request["memory_limit_MB"] == 1024
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", request["code"]],
            input=request["stdin"].encode(),
            capture_output=True,
            timeout=request["run_timeout"],
        )
        result: dict[str, Any] = {
            "status": "Finished",
            "return_code": done.returncode,
            "stdout": done.stdout.decode(errors="replace"),
            "stderr": done.stderr.decode(errors="replace"),
            "execution_time": 0.1,
        }
    except subprocess.TimeoutExpired:
        result = {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": "", "execution_time": 9.0}
    status = "Success" if result["return_code"] == 0 else "Failed"
    body = {"status": status, "message": "", "compile_result": None, "run_result": result, "files": {}}
    return 200, json.dumps(body).encode()


class Sandbox:
    """A server on a port of its own."""

    def __init__(self) -> None:
        self.answer: Answer = run_code
        self.misbehave: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.requests: list[dict[str, Any]] = []
        sandbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                sandbox.requests.append(request)
                if sandbox.misbehave is not None:
                    sandbox.misbehave(self)
                    return
                status, body = sandbox.answer(request)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/run_code"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def half_an_answer(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"status": ')


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"what?\r\n\r\n")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    server = Sandbox()
    yield server
    server.close()


@pytest.fixture
def verifier(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[CodeVerifier]:
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.01)
    with CodeVerifier(num_workers=2, cpu_seconds=1.0, deadline_seconds=3.0, sandbox_url=sandbox.url) as shared:
        yield shared


@pytest.mark.parametrize(
    ("source", "tests", "status", "stage"),
    [
        ("print(2 * int(input()))", DOUBLE, "correct", "test"),
        ("print(2)", DOUBLE, "wrong", "test"),
        ("print(", DOUBLE, "wrong", "compile"),
        ("raise ValueError('no')", DOUBLE, "wrong", "runtime"),
        ("import time\ntime.sleep(9)", DOUBLE, "wrong", "time"),
        ("from __future__ import annotations\ndef double(n: List[int]): return 2 * n", CALL, "correct", "test"),
        (
            "class Solution:\n    def double(self, n):\n        print('noise')\n        return 2 * n",
            CALL,
            "correct",
            "test",
        ),
        ("def double(n): return 2", CALL, "wrong", "test"),
        ("def double(n): print(2 * n)", CALL, "wrong", "test"),
        ("x = '''\\N{snowman} \"\"\" \\\\ ☃'''\nprint(2 * int(input()))", DOUBLE, "correct", "test"),
    ],
)
def test_verdicts_are_those_of_this_machines_sandbox(
    source: str, tests: dict[str, Any], status: str, stage: str, verifier: CodeVerifier
) -> None:
    verdict = verifier.submit(response(source), tests).result(60)
    assert (verdict.status, verdict.stage) == (status, stage), verdict
    assert verifier.process_ids() == []


def test_the_expected_outputs_are_not_sent(verifier: CodeVerifier, sandbox: Sandbox) -> None:
    tests = {"inputs": ["1\n"], "outputs": ["EXPECTED\n"]}
    assert not verifier.submit(response("print(1)"), tests).result(60).correct
    assert sandbox.requests and "EXPECTED" not in json.dumps(sandbox.requests)


def ok(**result: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"status": "Success", "message": "", "run_result": result}).encode()


@pytest.mark.parametrize(
    ("answer", "attempts"),
    [
        ((500, b"oops"), 3),
        ((429, b""), 3),
        ((404, b""), 1),
        ((200, b"no json"), 3),
        ((200, b"[]"), 3),
        ((200, b"[" * 100_000), 3),
        ((200, b"{}"), 1),
        ((200, json.dumps({"status": "SandboxError", "message": "no room"}).encode()), 1),
        ((200, json.dumps({"status": "Success", "run_result": None}).encode()), 1),
        (ok(status="Error", return_code=None, stdout="2\n"), 1),
        (ok(status="Finished", return_code="0", stdout="2\n"), 1),
    ],
)
def test_a_sandbox_that_fails_makes_no_program_wrong(
    answer: tuple[int, bytes], attempts: int, verifier: CodeVerifier, sandbox: Sandbox
) -> None:
    sandbox.answer = lambda request: answer
    verdict = verifier.submit(response("print(2 * int(input()))"), DOUBLE).result(60)
    assert (verdict.status, verdict.stage) == ("undecided", "sandbox"), verdict
    assert len(sandbox.requests) == attempts and verifier.num_sandbox_failures == 1
    sandbox.answer = run_code
    assert verifier.submit(response("print(2 * int(input()))"), DOUBLE).result(60).correct  # it was not remembered


@pytest.mark.parametrize("misbehave", [half_an_answer, nonsense, lambda handler: None])
def test_an_answer_that_breaks_off_is_no_answer(
    misbehave: Callable[[BaseHTTPRequestHandler], None], verifier: CodeVerifier, sandbox: Sandbox
) -> None:
    sandbox.misbehave = misbehave
    verdict = verifier.submit(response("print(1)"), DOUBLE).result(60)
    assert (verdict.status, verdict.stage) == ("undecided", "sandbox"), verdict
    assert len(sandbox.requests) == remote.ATTEMPTS and "no answer from" in verdict.reason


def drip(*lines: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """The last of these lines again and again, faster than any read times out."""

    def misbehave(handler: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(b"".join(lines[:-1]))
            for _ in range(600):
                handler.wfile.write(lines[-1])
                time.sleep(0.05)

    return misbehave


DRIPS = {
    "a status that never ends": drip(b"H"),
    "headers that never end": drip(b"HTTP/1.1 200 OK\r\n", b"x"),
    "a body that never ends": drip(b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    "continue, continue": drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("name", DRIPS)
def test_an_answer_that_drips_is_no_answer(
    name: str, verifier: CodeVerifier, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_GRACE_SECONDS", -2.7)  # 0.3 s are left
    sandbox.misbehave = DRIPS[name]
    start = time.monotonic()
    verdict = verifier.submit(response("print(1)"), DOUBLE).result(20)
    assert (verdict.status, verdict.stage) == ("undecided", "sandbox"), verdict
    assert "no whole answer within 0.3 s" in verdict.reason and time.monotonic() - start < 10


def test_close_ends_a_request_that_is_being_answered(sandbox: Sandbox) -> None:
    sandbox.misbehave = DRIPS["continue, continue"]
    verifier = CodeVerifier(sandbox_url=sandbox.url)
    waiting = verifier.submit(response("print(1)"), DOUBLE)
    time.sleep(0.3)
    start = time.monotonic()
    verifier.close()
    assert time.monotonic() - start < 5
    assert waiting.result(1).stage == "closed"


def test_a_sandbox_that_recovers_is_asked_again(verifier: CodeVerifier, sandbox: Sandbox) -> None:
    sandbox.answer = lambda request: (503, b"") if len(sandbox.requests) == 1 else run_code(request)
    assert verifier.submit(response("print(2 * int(input()))"), DOUBLE).result(60).correct
    assert verifier.num_sandbox_failures == 0


def test_an_unreachable_sandbox_is_said_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.01)
    with CodeVerifier(sandbox_url="http://127.0.0.1:9/run_code") as verifier:
        verdicts = verifier.score([response(f"print({n})") for n in range(3)], [DOUBLE] * 3)
        assert {(v.status, v.stage) for v in verdicts} == {("undecided", "sandbox")}
        assert "http://127.0.0.1:9/run_code" in verdicts[0].reason
        assert verifier.num_sandbox_failures == 3


def test_an_answer_that_floods_is_cut_off(verifier: CodeVerifier, sandbox: Sandbox) -> None:
    sandbox.answer = lambda request: ok(status="Finished", return_code=0, stdout="x" * (9 << 20), stderr="")
    verdict = verifier.submit(response("print(1)"), DOUBLE).result(60)
    assert (verdict.status, verdict.stage) == ("wrong", "output")
    sandbox.answer = lambda request: (200, b"x" * (80 << 20))
    verdict = verifier.submit(response("print(2)"), DOUBLE).result(60)
    assert (verdict.status, verdict.stage) == ("undecided", "sandbox") and "too long" in verdict.reason


def test_close_does_not_wait_for_further_attempts(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 30.0)
    sandbox.answer = lambda request: (500, b"")
    verifier = CodeVerifier(sandbox_url=sandbox.url)
    waiting = verifier.submit(response("print(1)"), DOUBLE)
    time.sleep(0.3)
    start = time.monotonic()
    verifier.close()
    assert time.monotonic() - start < 5
    assert waiting.result(1).stage == "closed"
