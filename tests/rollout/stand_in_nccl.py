"""In place of NCCL, between a trainer and a stand-in server: the same meetings and bytes, over a socket.

As with NCCL, the group's id of 128 bytes says where its rank 0 can be reached.
"""

from __future__ import annotations

import base64
import pickle
import socket
import time
from typing import Any

import torch
from torch import Tensor

ID_BYTES = 128


class SocketLink:
    """Rank 0's end: a `falcon_h1r.rollout.vllm_weights.Link`."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._workers: list[socket.socket] = []

    def invitation(self) -> dict[str, Any]:
        port = self._listener.getsockname()[1]
        return {"nccl_unique_id_b64": base64.b64encode(str(port).encode().ljust(ID_BYTES)).decode()}

    def join(self, num_ranks: int) -> None:
        self._workers = [self._listener.accept()[0] for _ in range(num_ranks - 1)]

    def broadcast(self, data: Tensor, src: int = 0) -> None:
        assert data.dtype == torch.uint8 and data.dim() == 1 and src == 0
        for worker in self._workers:
            worker.sendall(pickle.dumps(len(data)).ljust(32) + bytes(data.tolist()))


class WorkerLink:
    """A worker's end."""

    def __init__(self, init_info: dict[str, Any]) -> None:
        """Join by the group's id, or as TRL's client invites, by a port."""
        if "nccl_unique_id_b64" in init_info:
            group_id = base64.b64decode(init_info["nccl_unique_id_b64"], validate=True)
            assert len(group_id) == ID_BYTES
            port = int(group_id)
        else:
            port = init_info["master_port"]
        self._file = _connection(port).makefile("rb")

    def receive(self, num_bytes: int) -> Tensor:
        """The next broadcast, which has to have the length that was worked out for it."""
        length = pickle.loads(self._file.read(32))
        assert length == num_bytes, f"{num_bytes} bytes expected, {length} sent"
        return torch.frombuffer(bytearray(self._file.read(length)), dtype=torch.uint8)


def _connection(port: int) -> socket.socket:
    """To rank 0, which may open its end a moment later."""
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise TimeoutError(f"nobody at port {port}")
