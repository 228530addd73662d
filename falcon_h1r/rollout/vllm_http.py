"""A vLLM server as seen over HTTP: JSON there and back, and answers that come piece by piece and can be cut off.

TRL's client speaks to the same endpoints, but cannot be made where vLLM is not installed, asks again for up to a minute
without looking up, and has no way to let go of a request. So this is a client of our own, on the standard library's.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from falcon_h1r.rollout.vllm_draft import LostAnswer
from falcon_h1r.types import InputError

LONGEST_SHOWN = 300  # characters of a server's own words in a message


class Cut:
    """Cuts one answer off, from any thread: whoever reads it gets LostAnswer at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._made = threading.Event()

    def watch(self, connection: HTTPConnection) -> None:
        """
        Raises:
            LostAnswer: where the cut was made already.
        """
        with self._lock:
            self._socket = connection.sock
            if self._made.is_set():
                raise LostAnswer("cut off")

    def make(self) -> None:
        with self._lock:
            self._made.set()
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # the other side was faster

    @property
    def made(self) -> bool:
        return self._made.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether it was made within that time."""
        return self._made.wait(seconds)


class VLLMServer:
    """One server at `http://host:port`."""

    def __init__(self, address: str, silent_seconds: float) -> None:
        """
        Args:
            silent_seconds: how long the server may take to answer, or to send more of an answer.
        """
        parts = urlsplit(address)
        self.address = address.rstrip("/")
        self._host, self._port, self._is_secure = parts.hostname or "", parts.port, parts.scheme == "https"
        self.silent_seconds = silent_seconds

    def get(self, path: str, seconds: float | None = None) -> Any:
        """The JSON at a path; None where there is no content.

        Raises:
            LostAnswer: where the server does not answer, fails, or sends no JSON.
            InputError: where it refuses.
        """
        return self._answer("GET", path, None, seconds)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Likewise, for what is sent there."""
        return self._answer("POST", path, body, None)

    def stream(self, path: str, body: dict[str, Any], cut: Cut) -> Iterator[dict[str, Any]]:
        """The events of an answer, as they come.

        Raises:
            LostAnswer: where the answer breaks off, is cut off, or cannot be read.
            InputError: where the server refuses.
        """
        connection = self._connection(self.silent_seconds)
        try:
            connection.connect()
            cut.watch(connection)
            yield from self._events(self._sent(connection, "POST", path, body), path)
        except (OSError, HTTPException) as error:
            raise LostAnswer(f"{self.address}{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def _events(self, response: HTTPResponse, path: str) -> Iterator[dict[str, Any]]:
        while line := response.readline():
            kind, _, data = line.strip().partition(b":")
            if kind != b"data":
                continue
            if data.strip() == b"[DONE]":
                return
            event = self._parsed(data, path)
            if not isinstance(event, dict) or "error" in event:
                raise LostAnswer(f"{self.address}{path}: {_shortened(data)}")
            yield event
        raise LostAnswer(f"{self.address}{path}: the connection was lost within an answer")

    def _answer(self, method: str, path: str, body: dict[str, Any] | None, seconds: float | None) -> Any:
        connection = self._connection(self.silent_seconds if seconds is None else seconds)
        try:
            data = self._sent(connection, method, path, body).read()
        except (OSError, HTTPException) as error:
            raise LostAnswer(f"{self.address}{path}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        return self._parsed(data, path) if data.strip() else None

    def _connection(self, seconds: float) -> HTTPConnection:
        kind = HTTPSConnection if self._is_secure else HTTPConnection
        return kind(self._host, self._port, timeout=seconds)

    def _sent(self, connection: HTTPConnection, method: str, path: str, body: dict[str, Any] | None) -> HTTPResponse:
        """The answer, its status looked at."""
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        if response.status == 200:
            return response
        said = f"{self.address}{path}: status {response.status}: {_shortened(response.read())}"
        # 408 and 429 are no judgement of what was asked, and 5xx is the server's own trouble.
        if response.status in (408, 429) or response.status >= 500:
            raise LostAnswer(said)
        raise InputError(said)

    def _parsed(self, data: bytes, path: str) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise LostAnswer(f"{self.address}{path}: no JSON: {_shortened(data)}") from None


def _shortened(data: bytes) -> str:
    text = " ".join(data.decode(errors="replace").split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
