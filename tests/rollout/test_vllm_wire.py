"""Our requests beside those of TRL's own client, at the same stand-in server.

Of TRL's client, what it imports from vLLM is replaced: the address of this machine, the meeting of the NCCL group and
the broadcast of packed weights. The rest is its own code.
"""

from __future__ import annotations

import base64
import inspect
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from falcon_h1r.rollout.open_sampler import open_sampler
from falcon_h1r.rollout.sampler import Prompt, RolloutRequest, SamplingSettings
from falcon_h1r.rollout.vllm_draft import Draft, draft_seed
from falcon_h1r.rollout.vllm_streams import completion_payload
from falcon_h1r.rollout.vllm_weights import NCCLLink, packed_pieces
from tests.rollout.stand_in_nccl import SocketLink
from tests.rollout.test_vllm_server import config_for, engine_of
from tests.rollout.vllm_stand_in import StandIn, copy_of_shape

SETTINGS = SamplingSettings(num_samples=1, max_response_tokens=6, temperature=0.8, seed=5)
SYNC = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]


@pytest.fixture
def server(tiny_model, tokenizer) -> Iterator[StandIn]:
    server = StandIn(copy_of_shape(tiny_model.config), tokenizer)
    yield server
    server.close()


@pytest.fixture
def trl_client(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TRL's client in a trainer that has vLLM, or seems to."""
    from trl.generation import vllm_client

    def send_packed(iterator: Any, group: SocketLink, src: int, post_iter_func: Any) -> None:
        pairs = ((item[0], post_iter_func(item)) for item in iterator)
        for piece in packed_pieces(pairs, piece_bytes=2**30):  # vLLM's default
            group.broadcast(piece, src)

    def meet(init_info: dict[str, Any]) -> SocketLink:
        link = SocketLink(init_info["master_port"])
        link.join(init_info["world_size"])
        return link

    for name, value in {
        "is_vllm_available": lambda *_: True,
        "_HAS_STATEFUL_TRAINER_ENGINE": True,
        "_HAS_RESET_PREFIX_CACHE_SUCCESS": True,
        "get_ip": lambda: "127.0.0.1",
        "open_trainer_endpoint": meet,
        "packed_nccl_broadcast_producer": send_packed,
    }.items():
        monkeypatch.setattr(vllm_client, name, value, raising=False)
    monkeypatch.setattr(vllm_client.atexit, "register", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return vllm_client.VLLMClient(server.address, group_port=port, connection_timeout=5.0)


def test_trls_client_and_ours_send_the_same_weights_in_the_same_words(
    tiny_model, tokenizer, server, trl_client
) -> None:
    trl_client.init_communicator(device="cuda")
    trl_client.update_model_params(tiny_model)
    trl_client.reset_prefix_cache()
    theirs, their_weights = dict(server.requests), dict(server.received)
    assert [path for path, _ in server.requests] == ["/init_weight_transfer_engine", *SYNC]
    server.requests.clear()
    server.received.clear()

    open_sampler(config_for(server), engine_of(tiny_model), tokenizer, open_link=SocketLink)
    ours = dict(server.requests)
    assert [path for path, _ in server.requests if path in SYNC] == SYNC
    for path in SYNC:
        assert ours[path] == theirs[path]
    assert set(server.received) == set(their_weights)
    assert all(torch.equal(server.received[name], weight) for name, weight in their_weights.items())
    # How the group meets is where we differ: by its id, which needs no vLLM here, instead of by a store at a port.
    their_info, our_info = (each["/init_weight_transfer_engine"]["init_info"] for each in (theirs, ours))
    assert set(our_info) - set(their_info) == {
        *("nccl_unique_id_b64", "packed_buffer_size_bytes", "packed_num_buffers")
    }
    assert set(their_info) - set(our_info) == {"master_address", "master_port"}
    assert all(our_info[name] == their_info[name] for name in ("rank_offset", "world_size", "packed"))


def test_trls_client_and_ours_draw_the_same_rollout(tiny_model, tokenizer, server, trl_client) -> None:
    sampler = open_sampler(config_for(server), engine_of(tiny_model), tokenizer, open_link=SocketLink)
    prompt = Prompt("p", [5, 6, 7])
    (ours,) = sampler.generate([prompt], SETTINGS)
    our_body = server.requests[-1][1]
    seed = draft_seed(Draft.begin(RolloutRequest(prompt, 0, SETTINGS)))
    theirs = trl_client.generate(
        [prompt.input_ids],
        temperature=0.8,
        max_tokens=6,
        generation_kwargs={"seed": seed, "stop_token_ids": our_body["stop_token_ids"]},
    )
    assert theirs["completion_ids"] == [ours.response_ids]
    assert [each[0] for each in theirs["logprobs"][0]] == ours.sampler_logprobs
    their_body = server.requests[-1][1]
    assert their_body.pop("prompt") == [our_body["prompt"]]
    assert {name: our_body[name] for name in their_body} == their_body
    # What TRL leaves to the server and its model's generation config, we say.
    assert set(our_body) - set(their_body) == {
        *(
            "prompt",
            "add_special_tokens",
            "presence_penalty",
            "frequency_penalty",
            "stop",
            "include_stop_str_in_output",
        ),
        *("ignore_eos", "skip_special_tokens", "stream", "stream_interval"),
    }


def test_a_rollout_that_goes_on_asks_for_the_rest_with_other_random_numbers() -> None:
    prompt = Prompt("p", [5, 6, 7])
    whole = Draft.begin(RolloutRequest(prompt, 0, SETTINGS))
    whole.draw_with(0)
    whole.add([8, 9], [-1.0, -2.0], [])
    payload = completion_payload("tiny", whole, [2])
    assert payload["prompt"] == [5, 6, 7, 8, 9] and payload["max_tokens"] == 4
    seeds = {draft_seed(whole), draft_seed(Draft.begin(RolloutRequest(prompt, 0, SETTINGS)))}
    seeds |= {draft_seed(Draft.begin(RolloutRequest(prompt, sample, SETTINGS))) for sample in (1, 2)}
    seeds |= {draft_seed(Draft.begin(RolloutRequest(prompt, 0, replace(SETTINGS, seed=6))))}
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)


class RecordedNCCL:
    """In place of torch.cuda.nccl: what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def unique_id(self) -> bytes:
        return bytes(range(128))

    def init_rank(self, num_ranks: int, group_id: bytes, rank: int) -> str:
        self.calls.append(("init_rank", (num_ranks, group_id, rank)))
        return "group"

    def all_reduce(self, inputs: Any, comms: Any) -> None:
        self.calls.append(("all_reduce", ([tuple(each.shape) for each in inputs], inputs[0].dtype, comms)))

    def broadcast(self, inputs: Any, root: int, comms: Any) -> None:
        self.calls.append(("broadcast", (inputs, root, comms)))


def test_the_nccl_link_calls_torch_as_the_workers_expect_it(monkeypatch) -> None:
    """On no GPU: that rank 0 joins with the id it has sent, begins with an all-reduce of one float, and is the root."""
    nccl = RecordedNCCL()
    monkeypatch.setattr(torch.cuda, "nccl", nccl)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    link = NCCLLink(torch.device("cuda", 0))
    assert base64.b64decode(link.invitation()["nccl_unique_id_b64"], validate=True) == bytes(range(128))
    link.join(3)
    piece = torch.arange(5, dtype=torch.uint8)
    link.broadcast(piece)
    assert nccl.calls == [
        ("init_rank", (3, bytes(range(128)), 0)),
        ("all_reduce", ([(1,)], torch.float32, ["group"])),
        ("broadcast", ([piece], 0, ["group"])),
    ]


def test_torch_has_what_the_nccl_link_calls() -> None:
    assert list(inspect.signature(torch.cuda.nccl.init_rank).parameters) == ["num_ranks", "uid", "rank"]
    assert {"inputs", "root", "comms"} <= set(inspect.signature(torch.cuda.nccl.broadcast).parameters)
    assert {"inputs", "comms"} <= set(inspect.signature(torch.cuda.nccl.all_reduce).parameters)
