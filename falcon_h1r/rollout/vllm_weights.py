"""New weights for vLLM servers: over HTTP what comes, over NCCL the weights themselves.

For each server, rank 0 of the trainer and the server's workers are a NCCL group of their own, rank 0 its rank 0. TRL
joins such a group with vLLM's own classes, which a trainer without vLLM does not have; vLLM lets such a trainer send
the group's NCCL id instead (`nccl_unique_id_b64`), which torch can make. Both sides have to run the same NCCL, as they
do with the pins of constraints-gpu.txt and constraints-vllm.txt.

A sync is what TRL's client does, between a pause and a resume: start_weight_update, update_weights with every name,
dtype and shape while the weights are broadcast in packed pieces, finish_weight_update, reset_prefix_cache.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from falcon_h1r.distributed.engine import Engine
from falcon_h1r.model.precision import compute_dtype
from falcon_h1r.rollout.http_server import LostAnswer, ModelServer
from falcon_h1r.rollout.vllm_vectors import Vectors, described, kept_vectors, missing_vectors
from falcon_h1r.rollout.vllm_worker import EXTENSION, METHOD
from falcon_h1r.rollout.weight_names import SentWeight, as_announced, plain_weights, sent_weights
from falcon_h1r.types import InputError

PACKED_BYTES = 2**28  # a piece is sent when it has grown beyond; vLLM holds two at a time
PACKED_BUFFERS = 2
EARLY_SECONDS = 0.25  # in which a server has refused what it does not understand
RESET_TRIES = 20  # the cache is held while the last aborted requests are put away
RESET_PAUSE_SECONDS = 0.5

Weights = Iterator[tuple[str, Tensor]]


class Link(Protocol):
    """How bytes reach one server's workers."""

    def invitation(self) -> dict[str, Any]:
        """What the workers have to know to join."""
        ...

    def join(self, num_ranks: int) -> None:
        """Meet the workers, who were invited; returns when all are there."""
        ...

    def broadcast(self, data: Tensor) -> None:
        """Send bytes (N) uint8 to every worker. The tensor may be freed afterwards, as usual on its stream."""
        ...


class NCCLLink:
    """A NCCL group of this process and a server's workers, made by torch."""

    def __init__(self, device: torch.device) -> None:
        """
        Raises:
            InputError: where there is no GPU to send from.
        """
        if device.type != "cuda":
            raise InputError("grpo.rollout.name=vllm_server: weights are sent by NCCL, and this trainer has no GPU")
        self.device = device
        self.group_id: bytes = torch.cuda.nccl.unique_id()
        self._group: Any = None

    def invitation(self) -> dict[str, Any]:
        return {"nccl_unique_id_b64": base64.b64encode(self.group_id).decode()}

    def join(self, num_ranks: int) -> None:
        with torch.cuda.device(self.device):
            self._group = torch.cuda.nccl.init_rank(num_ranks, self.group_id, 0)
            # Every worker begins with this one, too.
            torch.cuda.nccl.all_reduce([torch.zeros(1, device=self.device)], comms=[self._group])
            torch.cuda.synchronize()

    def broadcast(self, data: Tensor) -> None:
        with torch.cuda.device(self.device):
            torch.cuda.nccl.broadcast([data], root=0, comms=[self._group])


class WeightSender:
    """Rank 0's side of a sync with every server at once."""

    def __init__(self, servers: Sequence[ModelServer], open_link: Callable[[], Link], device: torch.device) -> None:
        """Join a group with each server's workers.

        Raises:
            LostAnswer, InputError: where a server fails to, or refuses.
        """
        self.servers, self.device = servers, device
        self.links = [self._joined(server, open_link()) for server in servers]

    @staticmethod
    def _joined(server: ModelServer, link: Link) -> Link:
        num_ranks = 1 + int(server.get("/get_world_size")["world_size"])
        body = {"init_info": init_info(link.invitation(), num_ranks)}
        answer = _in_background(lambda: server.post("/init_weight_transfer_engine", body))  # it comes when all have met
        _raise_early([answer])
        link.join(num_ranks)
        answer.result()
        return link

    def send(self, announced: list[SentWeight], weights: Weights) -> str | None:
        """Have every server load these weights; none draws meanwhile.

        Returns:
            what a server does not hold afterwards, in a line; None: nothing that is known.

        Raises:
            LostAnswer, InputError: where a server fails to, or refuses.
            RuntimeError: where the weights are not those announced.
        """
        vectors: Vectors = {}
        self._post_all("/pause?mode=abort")
        self._post_all("/start_weight_update", {})
        body = {"update_info": update_info(announced)}
        answers = [_in_background(partial(server.post, "/update_weights", body)) for server in self.servers]
        _raise_early(answers)
        sent = kept_vectors(as_announced(announced, weights), vectors)
        moved = ((name, tensor.to(self.device)) for name, tensor in sent)
        for piece in packed_pieces(moved, PACKED_BYTES):
            for link in self.links:
                link.broadcast(piece)
        for answer in answers:
            answer.result()
        self._post_all("/finish_weight_update", {})
        for server in self.servers:
            reset_prefix_cache(server)
        self._post_all("/resume")
        for server in self.servers:
            if missing := missing_vectors(vectors, reported_vectors(server)):
                return described(missing, server.address)
        return None

    def _post_all(self, path: str, body: dict[str, Any] | None = None) -> None:
        for server in self.servers:
            server.post(path, body)


def send_policy(policy: Engine, sender: WeightSender | None, dtype: torch.dtype | None) -> str | None:
    """Rank 0, which has the sender, sends the policy's weights; the other ranks help to make them whole.

    Args:
        dtype: in which they travel; None: that which the policy computes in.

    Returns:
        on rank 0, what a server does not hold afterwards, in a line.
    """
    weights = plain_weights(policy, keep=sender is not None)
    if sender is None:
        for _ in weights:
            pass
        return None
    return sender.send(sent_weights(policy.model.config, dtype or compute_dtype(policy.model)), weights)


def init_info(invitation: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """What the workers are told once: they are ranks 1, 2, ... of a group, and how pieces are cut."""
    return {
        **invitation,
        "rank_offset": 1,
        "world_size": num_ranks,
        "packed": True,
        "packed_buffer_size_bytes": PACKED_BYTES,
        "packed_num_buffers": PACKED_BUFFERS,
    }


def update_info(announced: Sequence[SentWeight]) -> dict[str, list[Any]]:
    """What they are told before each broadcast."""
    return {
        "names": [weight.name for weight in announced],
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in announced],
        "shapes": [list(weight.shape) for weight in announced],
    }


def packed_pieces(weights: Weights, piece_bytes: int) -> Iterator[Tensor]:
    """Weights laid end to end as bytes, (N) uint8, cut behind the one with which a piece exceeds `piece_bytes`.

    The receiver cuts by the same rule from what was announced, and reads each weight in place. That needs its first
    byte to lie at a multiple of its item's size.

    Raises:
        RuntimeError: where it does not.
    """
    parts: list[Tensor] = []
    size = 0
    for name, tensor in weights:
        if size % tensor.element_size():
            raise RuntimeError(f"{name}: {tensor.dtype} at byte {size} cannot be read in place; send all in one dtype")
        parts.append(tensor.contiguous().view(-1).view(torch.uint8))
        size += parts[-1].numel()
        if size > piece_bytes:
            yield torch.cat(parts)
            parts, size = [], 0
    if parts:
        yield torch.cat(parts)


def reset_prefix_cache(server: ModelServer) -> None:
    """Forget what old weights made of prompts.

    Raises:
        LostAnswer: where the server goes on holding it.
    """
    for _ in range(RESET_TRIES):
        answer = server.post("/reset_prefix_cache")
        if answer is None or answer.get("success", True):
            return
        time.sleep(RESET_PAUSE_SECONDS)
    raise LostAnswer(f"{server.address}: the prefix cache of the old weights is still in use")


def reported_vectors(server: ModelServer) -> list[dict[str, list[float]]]:
    """The SSM's vectors as each worker holds them.

    Raises:
        InputError: where the server was started without the extension that says.
    """
    try:
        reports: list[dict[str, list[float]]] = server.post("/collective_rpc", {"method": METHOD})["results"]
    except (LostAnswer, TypeError, KeyError) as error:
        raise InputError(
            f"{server.address} does not say what it holds ({error}): start it with --worker-extension-cls {EXTENSION}"
        ) from error
    return reports


def _in_background(call: Callable[[], Any]) -> Future[Any]:
    """The call on a thread that nobody waits for when the process ends: a server may be stuck in a collective."""
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="vllm weights", daemon=True).start()
    return answer


def _raise_early(answers: Sequence[Future[Any]]) -> None:
    """Raise what a server refuses at once, rather than wait for its workers in a collective for ever."""
    done, _ = wait(answers, timeout=EARLY_SECONDS, return_when=FIRST_COMPLETED)
    for answer in done:
        answer.result()
