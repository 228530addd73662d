"""Messages over a pipe: a JSON object and some bytes, each with its length before it."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

_LENGTHS = struct.Struct(">II")
MAX_FRAME_BYTES = 1 << 30


class PipeClosed(Exception):
    """The other side has gone."""


class PipeTimeout(Exception):
    """The other side has not answered in time."""


def send(descriptor: int, header: dict[str, Any], payload: bytes = b"") -> None:
    """Write one message, whole.

    Raises:
        PipeClosed: where nobody reads.
    """
    text = json.dumps(header).encode()
    view = memoryview(_LENGTHS.pack(len(text), len(payload)) + text + payload)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError as error:
        raise PipeClosed from error


def receive(descriptor: int, seconds: float | None = None) -> tuple[dict[str, Any], bytes]:
    """Read one message, whole, and nothing beyond it.

    Raises:
        PipeClosed: at the end of the pipe.
        PipeTimeout: after so many seconds without the whole of it; None: waits.
    """
    end = None if seconds is None else time.monotonic() + seconds
    text_length, payload_length = _LENGTHS.unpack(_exactly(descriptor, _LENGTHS.size, end))
    if text_length + payload_length > MAX_FRAME_BYTES:
        raise PipeClosed
    header: dict[str, Any] = json.loads(_exactly(descriptor, text_length, end))
    return header, _exactly(descriptor, payload_length, end)


def _exactly(descriptor: int, length: int, end: float | None) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    parts: list[bytes] = []
    while length:
        if end is not None and not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise PipeTimeout
        if not (part := os.read(descriptor, min(length, 1 << 20))):
            raise PipeClosed
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
