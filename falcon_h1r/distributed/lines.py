"""Connections between the supervisors of a job's ranks: every rank has one to rank 0, and JSON goes over it.

Not a c10d store: a request to a TCPStore whose process is stopped outlasts its timeout, so that a thread that asks it
hangs with it; and a store does not tell that a client has died, where a closed connection does, within milliseconds
and also from another machine.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from typing import Any

from falcon_h1r.distributed.world import World

JOIN_SECONDS = 120.0  # for all ranks to be connected
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CHUNK_BYTES = 65_536
RANK_DIGITS = 8

Message = dict[str, Any]


class LineClosed(Exception):
    """The other end has gone."""


class Line:
    """One connection: a JSON object a line. Neither end ever waits for the other."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._incoming, self._outgoing = b"", b""
        connection.setblocking(False)

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Hand a message to the kernel; what it does not take now goes with the next call, or with `flush`.

        Raises:
            LineClosed: where nobody will read it.
        """
        self._outgoing += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """
        Raises:
            LineClosed: where nobody will read it.
        """
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.connection.send(self._outgoing) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise LineClosed from error

    def receive(self) -> list[Message]:
        """What has arrived since. Messages that stand before the other's end are returned first.

        Raises:
            LineClosed: where the other end has gone, and nothing is left to read.
        """
        closed: OSError | None = None
        is_open = True
        while is_open:
            try:
                piece = self.connection.recv(CHUNK_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                piece, closed = b"", error
            self._incoming += piece
            is_open = bool(piece)
        *whole, self._incoming = self._incoming.split(b"\n")
        if not whole and not is_open:
            raise LineClosed from closed
        return [json.loads(line) for line in whole]

    def close(self) -> None:
        self.connection.close()


def connect_ranks(world: World, about: Message) -> tuple[dict[int, Line], dict[int, Message]]:
    """Lines to all other ranks on rank 0, and to rank 0 on all others; with what each rank says about itself.

    Every rank has to call it.

    Raises:
        TimeoutError: where a rank could not be reached.
    """
    descriptions = dict(enumerate(world.gather(about)))
    if world.size == 1:
        return {}, descriptions
    if world.is_main:
        address = os.environ.get("MASTER_ADDR", socket.gethostname())
        with _listen(address, world.size) as listener:
            secret = secrets.token_hex(16)
            world.broadcast((address, socket.gethostname(), listener.getsockname()[1], secret))
            return _accept(listener, world.size, secret), descriptions
    address, host, port, secret = world.broadcast(None) or ("", "", 0, "")
    return {0: _call("127.0.0.1" if address in LOOPBACK else address, host, port, world.rank, secret)}, descriptions


def _listen(address: str, size: int) -> socket.socket:
    """On a port of the system's choice: of this machine alone where the launcher gave such an address."""
    if address in LOOPBACK:
        return socket.create_server(("127.0.0.1", 0), backlog=size)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), backlog=size, family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=size)


def _accept(listener: socket.socket, size: int, secret: str) -> dict[int, Line]:
    """A line from every other rank; whoever does not know the secret is hung up on."""
    deadline = time.monotonic() + JOIN_SECONDS
    lines: dict[int, Line] = {}
    while len(lines) < size - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            missing = [rank for rank in range(1, size) if rank not in lines]
            raise TimeoutError(f"supervision: ranks {missing} did not connect within {JOIN_SECONDS:g} s") from None
        connection.settimeout(10.0)
        try:
            greeting = connection.recv(len(_greeting(0, secret)), socket.MSG_WAITALL)
        except OSError:
            greeting = b""
        if secrets.compare_digest(greeting[RANK_DIGITS:], _greeting(0, secret)[RANK_DIGITS:]):
            lines[int(greeting[:RANK_DIGITS])] = Line(connection)
        else:
            connection.close()
    return lines


def _greeting(rank: int, secret: str) -> bytes:
    return f"{rank:0{RANK_DIGITS}d} {secret}".encode()


def _call(address: str, host: str, port: int, rank: int, secret: str) -> Line:
    """The line to rank 0: at the address that the launcher gave, or by its host's name."""
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        for name in dict.fromkeys((address, host)):
            try:
                connection = socket.create_connection((name, port), timeout=10.0)
            except OSError as error:
                refusal = error
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(_greeting(rank, secret))
            return Line(connection)
        if time.monotonic() > deadline:
            raise TimeoutError(f"supervision: rank 0 at {address} or {host}, port {port}: {refusal}")
        time.sleep(0.2)
