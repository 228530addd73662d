"""A model's server as seen over HTTP: JSON there and back, and answers that come piece by piece and can be cut off.

TRL's client speaks to vLLM's endpoints, but cannot be made where vLLM is not installed, asks again for up to a minute
without looking up, and has no way to let go of a request. So this is a client of our own, on the standard library's.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from falcon_h1r.types import InputError

LONGEST_SHOWN = 300  # characters of a server's own words in a message
PASSING = (408, 429)  # no judgement of what was asked, as are 5xx, the server's own trouble


class LostAnswer(RuntimeError):
    """The server failed, or what it sent is no answer. Passing faults look like that: it is worth asking again."""

    pause_seconds = 0.0  # that the server asks for before it is asked again


class Refused(InputError):
    """The server understood, and will not. Asking again is no use."""

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status


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


class ModelServer:
    """One server at `http://host:port`, or at a path there, before which every other is read."""

    def __init__(self, address: str, silent_seconds: float, api_key: str = "") -> None:
        """
        Args:
            silent_seconds: how long the server may take to answer, or to send more of an answer.
            api_key: sent with each request, and left out of every message.
        """
        parts = urlsplit(address)
        self.address = address.rstrip("/")
        self._host, self._port, self._is_secure = parts.hostname or "", parts.port, parts.scheme == "https"
        self._prefix, self._api_key = parts.path.rstrip("/"), api_key
        self.silent_seconds = silent_seconds

    def get(self, path: str, seconds: float | None = None) -> Any:
        """The JSON at a path; None where there is no content.

        Raises:
            LostAnswer: where the server does not answer, fails, or sends no JSON.
            Refused: where it refuses.
        """
        return self._answer("GET", path, None, seconds)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Likewise, for what is sent there."""
        return self._answer("POST", path, body, None)

    def stream(self, path: str, body: dict[str, Any], cut: Cut) -> Generator[dict[str, Any], None, None]:
        """The events of an answer, as they come.

        Raises:
            LostAnswer: where the answer breaks off, is cut off, or cannot be read.
            Refused: where the server refuses.
        """
        connection = self._connection(self.silent_seconds)
        try:
            connection.connect()
            cut.watch(connection)
            with self._sent(connection, "POST", path, body) as response:  # closed at once where the reader leaves
                yield from self._events(response, path)
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
                raise self._error(event, f"{self.address}{path}: {self._shortened(data)}")
            yield event
        raise LostAnswer(f"{self.address}{path}: the connection was lost within an answer")

    def _error(self, event: Any, said: str) -> LostAnswer | Refused:
        """What an event that is none means: vLLM refuses within an answer, after its status of 200."""
        error = event.get("error") if isinstance(event, dict) else None
        status = error.get("code") if isinstance(error, dict) else None
        if isinstance(status, int) and 400 <= status < 500 and status not in PASSING:
            return Refused(said, status)
        return LostAnswer(said)

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
        headers = {"Content-Type": "application/json"} if data else {}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        connection.request(method, self._prefix + path, data, headers)
        response = connection.getresponse()
        if response.status == 200:
            return response
        said = f"{self.address}{path}: status {response.status}: {self._shortened(response.read())}"
        if response.status in PASSING or response.status >= 500:
            lost = LostAnswer(said)
            with suppress(TypeError, ValueError):  # none, or a date, which no model's server sends
                lost.pause_seconds = max(0.0, float(response.getheader("Retry-After") or 0))
            raise lost
        raise Refused(said, response.status)

    def _parsed(self, data: bytes, path: str) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise LostAnswer(f"{self.address}{path}: no JSON: {self._shortened(data)}") from None

    def _shortened(self, data: bytes) -> str:
        text = " ".join(data.decode(errors="replace").split())
        text = text.replace(self._api_key, "***") if self._api_key else text
        return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
