"""Programs run by a sandbox elsewhere that speaks SandboxFusion's `POST /run_code`.

    request   {"language": "python", "code": ..., "stdin": ..., "run_timeout": ..., "compile_timeout": ...,
               "memory_limit_MB": ...}
    response  {"status": "Success" | "Failed" | "SandboxError", "message": ...,
               "run_result": {"status": "Finished" | "TimeLimitExceeded" | "Error", "return_code", "stdout", "stderr"}}

The code that is sent is harness.py, the program as a literal, and a call: the same harness as here. The expected
outputs are not sent. How strong that sandbox is, is its owner's business.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from falcon_h1r.verifier.code import harness
from falcon_h1r.verifier.code.confined import Limits
from falcon_h1r.verifier.code.local import CaseRun, RunnerLost

ATTEMPTS = 3
_PAUSE_SECONDS = 0.5  # before the second attempt; then twice as long
_GRACE_SECONDS = 30.0  # beyond the time limit, for the sandbox's own queue

# The result of a function goes to standard output, which the program itself no longer reaches under its number.
_CALL = """
if {fn_name} is not None:
    import fcntl as _fcntl
    _report = _fcntl.fcntl(1, _fcntl.F_DUPFD, 64)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
else:
    _report = 1
run({source}, {fn_name}, _report, imported_names())
"""


class _Call:
    """One request's connections, which another thread may cut: a time limit of a socket is for each of its reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._is_cut = False

    def opener(self) -> urllib.request.OpenerDirector:
        """Opens URLs with connections that `cut` knows."""

        def open_http(req: urllib.request.Request) -> http.client.HTTPResponse:
            return plain.do_open(self._watched(http.client.HTTPConnection), req)

        def open_https(req: urllib.request.Request) -> http.client.HTTPResponse:
            return secure.do_open(self._watched(http.client.HTTPSConnection), req)

        plain, secure = urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()
        plain.http_open, secure.https_open = open_http, open_https  # type: ignore[method-assign]
        return urllib.request.build_opener(plain, secure)

    def _watched(self, kind: type[http.client.HTTPConnection]) -> Any:
        call = self

        class Watched(kind):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                call._add(self.sock)

        return Watched

    def _add(self, opened: socket.socket) -> None:
        with self._lock:
            self._sockets.append(opened)
            is_cut = self._is_cut
        if is_cut:
            self.cut()

    def cut(self) -> None:
        """End what is read or written now, and at once what would be."""
        with self._lock:
            self._is_cut = True
            for opened in self._sockets:
                with contextlib.suppress(OSError):  # closed
                    socket.socket.shutdown(opened, socket.SHUT_RDWR)  # of the connection; TLS is not asked


class RemoteRunner:
    """A client of one sandbox; requests are bounded in number, time and size."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.url = url
        self.limits = limits
        self._code = ""
        self._closed = threading.Event()
        self._call = _Call()
        self._harness = Path(harness.__file__).read_text(encoding="utf-8")

    def begin(self, source: str, fn_name: str | None) -> None:
        """Wrap a program; `run` may follow until `end`."""
        program = source.encode(errors="replace").decode()
        self._code = self._harness + _CALL.format(source=ascii(program), fn_name=ascii(fn_name))

    def run(self, text: str) -> CaseRun:
        """Run the program on one input.

        Raises:
            RunnerLost: where the sandbox cannot be reached, answers nonsense or failed itself.
        """
        answer = self._ask(
            {
                "language": "python",
                "code": self._code,
                "stdin": text.encode(errors="replace").decode(),
                "run_timeout": self.limits.deadline_seconds,
                "compile_timeout": self.limits.deadline_seconds,
                "memory_limit_MB": self.limits.memory_bytes >> 20,
            }
        )
        result = answer.get("run_result")
        if answer.get("status") not in ("Success", "Failed") or not isinstance(result, dict):
            raise RunnerLost(f"the sandbox failed: {str(answer.get('message') or answer.get('status'))[:100]}")
        if result.get("status") == "TimeLimitExceeded":
            return CaseRun(b"", 0, None, stopped="time")
        code = result.get("return_code")
        if result.get("status") != "Finished" or not isinstance(code, int):
            raise RunnerLost(f"the sandbox gives no result: {str(result.get('status'))[:100]}")
        written = str(result.get("stdout") or "").encode(errors="replace")
        stopped = "output" if len(written) > self.limits.output_bytes else ""
        return CaseRun(written, code, None, stopped, _last_line(str(result.get("stderr") or "")))

    def end(self) -> None:
        """The program needs no further inputs."""
        self._code = ""

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The sandbox's answer; what may pass (no connection, status 429 or 5xx) is tried again."""
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
        )
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt and self._closed.wait(_PAUSE_SECONDS * 2 ** (attempt - 1)):
                break
            try:
                return self._answer(request)
            except urllib.error.HTTPError as error:
                error.close()
                problem = f"status {error.code}"
                if error.code != 429 and error.code < 500:
                    break
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                # no connection, half an answer, no JSON
                problem = f"{type(error).__name__}: {error}"[:100]
        raise RunnerLost(f"no answer from {self.url}: {problem or 'closed'}")

    def _answer(self, request: urllib.request.Request) -> dict[str, Any]:
        seconds = self.limits.deadline_seconds + _GRACE_SECONDS
        end = time.monotonic() + seconds
        most = 8 * self.limits.output_bytes  # as JSON, with standard error beside it
        size, parts = 0, []
        self._call = call = _Call()
        if self._closed.is_set():
            call.cut()
        watch = threading.Timer(seconds, call.cut)
        watch.daemon = True
        watch.start()
        try:
            with call.opener().open(request, timeout=seconds) as response:
                while part := response.read1(1 << 16):
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise ValueError("the answer is too long")
        finally:
            watch.cancel()
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {seconds:g} s")
        answer = json.loads(b"".join(parts))
        if not isinstance(answer, dict):
            raise ValueError("the answer is no object")
        return answer

    def interrupt(self) -> None:
        """Make no further attempt, and end the one that is made now."""
        self._closed.set()
        self._call.cut()

    def close(self) -> None:
        """There is nothing to give back: no connection outlives its request."""

    def abandon(self) -> None:
        """Nothing is shared with a forked child."""

    def process_ids(self) -> list[int]:
        """None on this machine."""
        return []


def _last_line(text: str) -> str:
    lines = text[-4096:].strip().splitlines()
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:200] if lines else ""
