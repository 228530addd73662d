"""Rollouts and weights over HTTP: what a server that works, fails or forgets a weight makes of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from falcon_h1r.config import Config, LoRAConfig
from falcon_h1r.config_grpo import VLLMConfig
from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World
from falcon_h1r.model.lora import add_adapters, merged_state
from falcon_h1r.rollout import vllm_streams
from falcon_h1r.rollout.http_server import LostAnswer
from falcon_h1r.rollout.open_sampler import open_sampler
from falcon_h1r.rollout.sampler import Prompt, RolloutRequest, SamplingSettings, requests_for
from falcon_h1r.rollout.sync_check import SamplerOutOfSync
from falcon_h1r.rollout.vllm_server import VLLMServerSampler
from falcon_h1r.rollout.vllm_worker import EXTENSION, METHOD
from falcon_h1r.types import InputError, Rollout
from tests.rollout.stand_in_nccl import SocketLink
from tests.rollout.vllm_stand_in import StandIn, copy_of_shape, named_as_at_vllm

ROOT = Path(__file__).parents[2]

SETTINGS = SamplingSettings(num_samples=3, max_response_tokens=10, temperature=0.8, seed=5)

StartServer = Callable[..., StandIn]
OpenSampler = Callable[..., VLLMServerSampler]


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short probes, and no pause before a lost rollout is asked for again."""
    monkeypatch.setattr("falcon_h1r.rollout.sync_check.PROBE_TOKENS", 3)
    monkeypatch.setattr("falcon_h1r.rollout.sync_check.PROBE_SAMPLES", 1)
    monkeypatch.setattr("falcon_h1r.rollout.vllm_weights.EARLY_SECONDS", 0.01)
    monkeypatch.setattr("falcon_h1r.rollout.vllm_weights.RESET_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(vllm_streams, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def start_server(tiny_model, tokenizer) -> Iterator[StartServer]:
    """Servers of the tiny model's shape, with weights of their own."""
    started: list[StandIn] = []

    def start(**options: Any) -> StandIn:
        started.append(StandIn(copy_of_shape(tiny_model.config), tokenizer, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


def config_for(*servers: StandIn, max_slots: int = 64) -> Config:
    config = Config()
    config.grpo.rollout.name, config.grpo.rollout.temperature = "vllm_server", 0.8
    config.grpo.rollout.max_slots = max_slots
    config.grpo.rollout.vllm.servers = [server.address for server in servers]
    config.grpo.rollout.vllm.start_seconds, config.grpo.rollout.vllm.silent_seconds = 5.0, 30.0
    config.grpo.rollout.vllm.max_sync_gap = 1e-6
    config.grpo.limits.prompt_tokens, config.grpo.limits.response_tokens = 1000, 1000
    return config


def engine_of(model: Any, watch: Watch | None = None, world: World | None = None) -> TorchEngine:
    world = world or World(0, 1, torch.device("cpu"), watch=watch or Watch())
    return TorchEngine(model, OptimizerConfig(), 1, world)


@pytest.fixture
def open_one(tiny_model, tokenizer, start_server) -> OpenSampler:
    """A sampler in sync with the tiny model, and the server behind it as its `stand_in`."""

    def opened(max_slots: int = 64, watch: Watch | None = None, **options: Any) -> Any:
        server = start_server(**options)
        sampler: Any = open_sampler(
            config_for(server, max_slots=max_slots), engine_of(tiny_model, watch), tokenizer, open_link=SocketLink
        )
        sampler.stand_in = server
        server.requests.clear()
        return sampler

    return opened


def prompts(lengths: list[int]) -> list[Prompt]:
    rng = random.Random(0)
    return [Prompt(f"problem-{i}", [rng.randrange(300) for _ in range(n)]) for i, n in enumerate(lengths)]


def trainer_logprobs(model: Any, rollout: Rollout, temperature: float) -> torch.Tensor:
    blank = [0.0] * len(rollout.prompt_ids)
    row = pack_row([Document(rollout.prompt_ids + rollout.response_ids, blank + [1.0] * len(rollout.response_ids))])
    logprobs, _ = engine_of(model).logprobs(row, temperature)
    return logprobs[len(blank) :].detach()


def assert_logprobs_are_the_trainers(model: Any, rollouts: list[Rollout], temperature: float) -> None:
    for rollout in rollouts:
        sampled = torch.tensor(rollout.sampler_logprobs, dtype=torch.float64)
        assert (sampled - trainer_logprobs(model, rollout, temperature)).abs().max() < 1e-9


def until(condition: Callable[[], bool]) -> None:
    """Wait for other threads."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened")


# -----------------------------------------------------------------------------
# Weights


def test_every_weight_is_sent_by_name_dtype_and_shape(tiny_model, open_one) -> None:
    """Nothing of the server's own random weights is left."""
    server = open_one().stand_in
    expected = {name: parameter.detach() for name, parameter in tiny_model.named_parameters()}
    assert set(expected) == set(tiny_model.state_dict()) == set(server.received)
    for name, weight in expected.items():
        assert server.received[name].dtype == weight.dtype and torch.equal(server.received[name], weight)
        assert torch.equal(server.model.get_parameter(name), weight)


def test_weights_travel_in_the_asked_dtype_and_those_of_the_ssm_in_float32(tiny_model, tokenizer, start_server) -> None:
    server = start_server()
    config = config_for(server)
    config.grpo.rollout.dtype, config.grpo.rollout.vllm.max_sync_gap = "bfloat16", 1.0
    open_sampler(config, engine_of(tiny_model), tokenizer, open_link=SocketLink)
    for name, weight in server.received.items():
        wanted = torch.float32 if name.endswith(("A_log", "D", "dt_bias")) else torch.bfloat16
        assert weight.dtype == wanted
        assert torch.equal(weight, tiny_model.get_parameter(name).to(wanted))


@pytest.mark.parametrize("piece_bytes", [pytest.param(1, marks=pytest.mark.slow), 5000])
def test_pieces_are_cut_where_the_server_cuts_them(
    tiny_model, tokenizer, start_server, monkeypatch, piece_bytes: int
) -> None:
    monkeypatch.setattr("falcon_h1r.rollout.vllm_weights.PACKED_BYTES", piece_bytes)
    server = start_server(num_workers=2)
    open_sampler(config_for(server), engine_of(tiny_model), tokenizer, open_link=SocketLink)
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(server.model.get_parameter(name), parameter)


def test_a_tied_embedding_is_sent_once(tiny_model, tokenizer, start_server) -> None:
    tiny_model.config.tie_word_embeddings = True
    tiny_model.tie_weights()
    server = start_server()
    open_sampler(config_for(server), engine_of(tiny_model), tokenizer, open_link=SocketLink)
    assert "lm_head.weight" not in server.received and "model.embed_tokens.weight" in server.received


def test_adapters_are_merged_into_what_is_sent(tiny_model, tokenizer, start_server) -> None:
    model = add_adapters(tiny_model, LoRAConfig(rank=2), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    server = start_server()
    open_sampler(config_for(server), engine_of(model), tokenizer, open_link=SocketLink)
    merged = merged_state(model)
    assert set(server.received) == set(merged)
    for name, weight in merged.items():
        assert torch.equal(server.model.get_parameter(name), weight)


@pytest.mark.parametrize(
    "dropped",
    ["mamba.D", "mamba.A_log", "mamba.dt_bias"],
)
def test_a_dropped_weight_ends_the_run_before_a_step(tiny_model, tokenizer, start_server, dropped: str) -> None:
    server = start_server(dropped=(dropped,))
    config = config_for(server)
    config.grpo.rollout.vllm.max_sync_gap = 100.0  # whatever it does to logprobs
    with pytest.raises(
        SamplerOutOfSync, match=f"does not hold what it was sent of model.layers.0.{dropped}, .*layers.1"
    ):
        open_sampler(config, engine_of(tiny_model), tokenizer, open_link=SocketLink)


@pytest.mark.parametrize(
    "dropped",
    [
        "conv1d.bias",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("norm.weight", "k_proj.weight", "in_proj.weight")),
    ],
)
def test_other_dropped_weights_are_found_by_what_they_do_to_logprobs(
    tiny_model, tokenizer, start_server, dropped: str
) -> None:
    server = start_server(dropped=(dropped,))
    with pytest.raises(SamplerOutOfSync, match="its logprobs are .* from the trainer's, 1e-06 allowed .*lose others"):
        open_sampler(config_for(server), engine_of(tiny_model), tokenizer, open_link=SocketLink)


@pytest.mark.parametrize(
    "dropped",
    ["mamba.A_log", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mamba.dt_bias", "conv1d.bias"))],
)
def test_the_default_bound_alone_would_miss_small_weights(
    tiny_model, tokenizer, start_server, monkeypatch, dropped: str
) -> None:
    """Why A_log, D and dt_bias are read back."""
    monkeypatch.setattr("falcon_h1r.rollout.sync_check.PROBE_TOKENS", 12)
    monkeypatch.setattr("falcon_h1r.rollout.vllm_weights.missing_vectors", lambda *_: [])
    config = config_for(start_server(dropped=(dropped,)))
    config.grpo.rollout.vllm.max_sync_gap = VLLMConfig().max_sync_gap
    sampler: Any = open_sampler(config, engine_of(tiny_model), tokenizer, open_link=SocketLink)
    assert 1e-3 < sampler.sync_gap < VLLMConfig().max_sync_gap


def test_a_server_that_cannot_say_what_it_holds_is_refused(tiny_model, tokenizer, start_server) -> None:
    server = start_server(faults={"/collective_rpc": ["500"]})
    with pytest.raises(InputError, match="--worker-extension-cls falcon_h1r.rollout.vllm_worker.WeightReport"):
        open_sampler(config_for(server), engine_of(tiny_model), tokenizer, open_link=SocketLink)


def test_the_extension_is_where_the_launcher_and_the_refusal_say(tiny_model) -> None:
    module, _, name = EXTENSION.rpartition(".")
    extension = getattr(import_module(module), name)
    worker = type("Worker", (extension,), {"model_runner": SimpleNamespace(model=named_as_at_vllm(tiny_model))})()
    report = getattr(worker, METHOD)()
    assert set(report) == {
        f"model.layers.{layer}.mamba.mamba.{vector}" for layer in (0, 1) for vector in ("A", "D", "dt_bias")
    }
    assert report["model.layers.0.mamba.mamba.D"] == [1.0] * 6
    assert f"--worker-extension-cls {EXTENSION}" in (ROOT / "launch" / "vllm_serve.sh").read_text()


def test_a_weight_dropped_by_a_later_sync_is_found_when_it_has_moved(tiny_model, open_one) -> None:
    sampler = open_one()
    sampler.stand_in.dropped = ("mamba.D",)
    engine = engine_of(tiny_model)
    sampler.load_weights(engine)  # what it has is right still: nothing has moved
    with torch.no_grad():
        for name, parameter in tiny_model.named_parameters():
            if name.endswith("mamba.D"):
                parameter.add_(0.5)
    with pytest.raises(SamplerOutOfSync, match="policy 2: .* of model.layers.0.mamba.D"):
        sampler.load_weights(engine)


def test_a_sync_is_a_pause_in_which_the_old_prefixes_are_forgotten(tiny_model, open_one) -> None:
    sampler = open_one()
    sampler.load_weights(engine_of(tiny_model))
    paths = [path for path, _ in sampler.stand_in.requests if path != "/v1/completions"]
    update = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
    assert paths == ["/pause?mode=abort", *update, "/reset_prefix_cache", "/resume", "/collective_rpc"]
    assert sampler.policy_version == 1


# -----------------------------------------------------------------------------
# Rollouts


def test_rollouts_carry_the_trainers_logprobs_and_end_as_they_should(tiny_model, tokenizer, open_one) -> None:
    sampler = open_one()
    with torch.no_grad():  # make a stop token likely
        tiny_model.lm_head.weight[2] *= 6
    sampler.load_weights(engine_of(tiny_model))
    rollouts = sampler.generate(prompts([3, 9]), SETTINGS)
    keys = [(r.problem_uid, r.sample_index) for r in rollouts]
    assert keys == [(f"problem-{p}", s) for p in range(2) for s in range(3)]
    assert {r.stop_reason for r in rollouts} == {"stop", "length"}
    assert_logprobs_are_the_trainers(tiny_model, rollouts, SETTINGS.temperature)
    for rollout in rollouts:
        ended = rollout.stop_reason == "stop"
        assert ended == (rollout.response_ids[-1] in (2, 4)) and (ended or len(rollout.response_ids) == 10)
        assert rollout.text == tokenizer.decode(rollout.response_ids[:-1] if ended else rollout.response_ids)
        assert (rollout.policy_version, rollout.later_versions) == (1, ())


def test_a_seed_reproduces_a_rollout_however_many_run_at_once(open_one) -> None:
    one, many = open_one(max_slots=1), open_one(max_slots=9)
    first, second = (sampler.generate(prompts([3, 17]), SETTINGS) for sampler in (one, many))
    assert [r.response_ids for r in first] == [r.response_ids for r in second]
    assert one.stand_in.most_at_once == 1 and many.stand_in.most_at_once > 1
    assert len({tuple(r.response_ids) for r in first}) == len(first)
    (other,) = many.generate(prompts([3]), replace(SETTINGS, seed=6, num_samples=1))
    assert other.response_ids != first[0].response_ids


def test_greedy_rollouts_have_logprobs_of_temperature_1(tiny_model, open_one) -> None:
    rollouts = open_one().generate(prompts([5]), SamplingSettings(2, 8, temperature=0.0))
    assert rollouts[0].response_ids == rollouts[1].response_ids
    assert_logprobs_are_the_trainers(tiny_model, rollouts, 1.0)


def test_a_stop_string_ends_a_rollout_and_stays_in_it(tokenizer, open_one) -> None:
    sampler = open_one(piece_tokens=2)
    (whole,) = sampler.generate(prompts([5]), replace(SETTINGS, num_samples=1))
    text = tokenizer.decode(whole.response_ids[6])
    (cut,) = sampler.generate(prompts([5]), replace(SETTINGS, num_samples=1, stop_strings=(text,)))
    assert cut.stop_reason == "stop" and text in cut.text
    assert cut.response_ids == whole.response_ids[: len(cut.response_ids)] and len(cut.response_ids) <= 7


def test_top_logprobs_are_the_best_of_each_position(tiny_model, open_one) -> None:
    (rollout,) = open_one().generate(prompts([5]), SamplingSettings(1, 6, 1.0, num_top_logprobs=3))
    assert rollout.top_logprobs is not None and rollout.top_logprobs.shape == (6, 3)
    assert (rollout.top_logprobs[:, :-1] >= rollout.top_logprobs[:, 1:]).all()
    for position, token in enumerate(rollout.response_ids):
        best, drawn = rollout.top_logprobs[position], rollout.sampler_logprobs[position]
        assert drawn <= best[0] + 1e-6 and (drawn < best[-1] or abs(best - drawn).min() < 1e-6), token


@pytest.mark.parametrize("setting", [{"top_p": 0.9}, {"top_k": 5}, {"num_top_logprobs": 3}])
def test_settings_whose_logprobs_would_be_others_are_refused(open_one, setting: dict[str, Any]) -> None:
    sampler = open_one()
    with pytest.raises(InputError, match=next(iter(setting))):
        sampler.generate(prompts([5]), replace(SETTINGS, **setting))
    assert sampler.stand_in.requests == []


def test_slots_are_counted_and_freed(open_one) -> None:
    sampler = open_one(max_slots=4, piece_seconds=0.1)
    assert sampler.free_slots == 4
    sampler.submit(requests_for(prompts([5, 5]), SETTINGS))
    assert sampler.free_slots == 0  # four under way, two waiting
    sampler.stand_in.piece_seconds = 0.0
    ended: list[Rollout] = []
    while len(ended) < 6:
        ended += sampler.advance(100)
    assert sampler.free_slots == 4 and sampler.advance(100) == []


def test_generate_leaves_what_else_is_under_way_to_advance(open_one) -> None:
    sampler = open_one()
    sampler.submit(requests_for(prompts([5]), SETTINGS))
    others = [Prompt("other", [7, 8, 9])]
    assert {r.problem_uid for r in sampler.generate(others, SETTINGS)} == {"other"}
    ended: list[Rollout] = []
    while len(ended) < 3:
        ended += sampler.advance(100)
    assert {r.problem_uid for r in ended} == {"problem-0"}


def test_advance_returns_before_the_end_when_enough_has_been_drawn(open_one) -> None:
    sampler = open_one(piece_tokens=1, piece_seconds=0.02)
    sampler.submit(requests_for(prompts([5]), replace(SETTINGS, max_response_tokens=200)))
    assert sampler.advance(2) == []
    assert all(0 < len(r.response_ids) < 200 for r in sampler.abort())


# -----------------------------------------------------------------------------
# Cut off, and going on


def test_an_aborted_rollout_goes_on_from_what_it_has(tiny_model, open_one) -> None:
    sampler = open_one(piece_tokens=1, piece_seconds=0.1)
    (request,) = requests_for(prompts([5]), replace(SETTINGS, num_samples=1))
    waiting = RolloutRequest(Prompt("never-begun", [1, 2]), 0, SETTINGS)
    sampler._streams.max_flights = 1
    sampler.submit([request, waiting])
    sampler.advance(3)
    assert sampler.abort([("unknown", 3)]) == []
    partial, unbegun = sampler.abort()
    assert (unbegun.stop_reason, unbegun.response_ids, unbegun.policy_version) == ("abort", [], 0)
    assert partial.stop_reason == "abort" and 3 <= len(partial.response_ids) < 10
    until(lambda: sampler.stand_in.cut_off == 1)  # the server has seen that nobody listens
    sampler.stand_in.piece_seconds = 0.0
    sampler.load_weights(engine_of(tiny_model))
    sampler.submit([replace(request, partial=partial)])
    (rollout,) = sampler.advance(100)
    num_kept = len(partial.response_ids)
    assert rollout.response_ids[:num_kept] == partial.response_ids and len(rollout.response_ids) == 10
    assert (rollout.policy_version, rollout.later_versions) == (0, ((num_kept, 1),))
    assert_logprobs_are_the_trainers(tiny_model, [rollout], SETTINGS.temperature)


def test_only_the_named_rollouts_are_aborted(open_one) -> None:
    sampler = open_one(piece_tokens=1, piece_seconds=0.1)
    sampler.submit(requests_for(prompts([5]), SETTINGS))
    (aborted,) = sampler.abort([("problem-0", 1)])
    sampler.stand_in.piece_seconds = 0.0
    assert aborted.sample_index == 1
    ended: list[Rollout] = []
    while len(ended) < 2:
        ended += sampler.advance(100)
    assert {r.sample_index for r in ended} == {0, 2}


def test_a_partial_rollout_at_its_limit_has_ended(open_one) -> None:
    sampler = open_one()
    (request,) = requests_for(prompts([5]), replace(SETTINGS, num_samples=1))
    (whole,) = sampler.generate(prompts([5]), replace(SETTINGS, num_samples=1))
    sampler.stand_in.requests.clear()
    sampler.submit([replace(request, partial=whole)])
    (rollout,) = sampler.advance(1)
    assert (rollout.response_ids, rollout.stop_reason) == (whole.response_ids, "length")
    assert sampler.stand_in.requests == []


def test_what_is_under_way_goes_on_under_new_weights(tiny_model, open_one) -> None:
    """Its tokens up to the sync have the old policy's logprobs, the others the new one's."""
    sampler = open_one(piece_tokens=1, piece_seconds=0.05)
    sampler.submit(requests_for(prompts([5]), replace(SETTINGS, num_samples=1, max_response_tokens=30)))
    sampler.advance(4)
    old = {name: parameter.detach().clone() for name, parameter in tiny_model.named_parameters()}
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(0.05)
    sampler.load_weights(engine_of(tiny_model))
    sampler.stand_in.piece_seconds = 0.0
    rollout: list[Rollout] = []
    while not rollout:
        rollout = sampler.advance(100)
    ((border, version),) = rollout[0].later_versions
    assert rollout[0].policy_version == 0 and version == 1 and 4 <= border < 30
    sampled = torch.tensor(rollout[0].sampler_logprobs, dtype=torch.float64)
    new_logprobs = trainer_logprobs(tiny_model, rollout[0], SETTINGS.temperature)
    tiny_model.load_state_dict(old)
    old_logprobs = trainer_logprobs(tiny_model, rollout[0], SETTINGS.temperature)
    assert (sampled[:border] - old_logprobs[:border]).abs().max() < 1e-9
    assert (sampled[border:] - new_logprobs[border:]).abs().max() < 1e-9


class StoppedWatch(Watch):
    """Asks to stop once it is told to."""

    def __init__(self) -> None:
        self.is_stopped, self.beats = False, 0

    def beat(self, phase: str, step: int | None = None) -> None:
        self.beats += 1

    @property
    def stop_requested(self) -> bool:
        return self.is_stopped


def test_a_stop_drops_all_connections_and_forgets_all_requests(open_one) -> None:
    watch = StoppedWatch()
    sampler = open_one(watch=watch, piece_tokens=1, piece_seconds=0.05)
    sampler.submit(requests_for(prompts([5]), replace(SETTINGS, max_response_tokens=400)))
    sampler.advance(1)
    watch.is_stopped = True
    with pytest.raises(StopRequested):
        sampler.advance(100)
    assert sampler.free_slots == 64 and sampler.abort() == []
    until(lambda: sampler.stand_in.cut_off == 3)


def test_a_rank_gives_signs_of_life_while_it_waits(open_one, monkeypatch) -> None:
    monkeypatch.setattr(vllm_streams, "LOOK_SECONDS", 0.01)
    watch = StoppedWatch()
    sampler = open_one(watch=watch, piece_seconds=0.02)
    beats = watch.beats
    sampler.generate(prompts([5]), replace(SETTINGS, num_samples=1))
    assert watch.beats > beats + 2


# -----------------------------------------------------------------------------
# Servers that fail


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        *(("/v1/completions", fault) for fault in ("drop", "malformed", "500")),
        *(("within an answer", fault) for fault in ("drop", "malformed")),  # the status is out by then
    ],
)
def test_a_passing_fault_changes_no_logprob(tiny_model, open_one, place: str, fault: str) -> None:
    sampler = open_one(piece_tokens=3)
    sampler.stand_in.faults[place] = [fault] * 2
    rollouts = sampler.generate(prompts([5]), SETTINGS)
    assert len(rollouts) == 3 and sampler.stand_in.count("/v1/completions") == 5
    assert_logprobs_are_the_trainers(tiny_model, rollouts, SETTINGS.temperature)
    if place == "within an answer":  # it went on from the first piece
        lengths = sorted(len(body["prompt"]) for _, body in sampler.stand_in.requests)
        assert lengths == [5, 5, 5, 8, 8]


@pytest.mark.parametrize(
    ("place", "fault", "said"),
    [
        ("/v1/completions", "503", "status 503: .*told to fail"),
        ("/v1/completions", "drop", "without response|reset|closed"),
        ("/v1/completions", "malformed", "within an answer"),
        ("no logprobs", "x", "an answer without logprobs"),
    ],
)
def test_a_lasting_fault_ends_in_one_line(tiny_model, open_one, place: str, fault: str, said: str) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight[2] *= 40  # every answer is one piece, and ends with the stop token
    sampler = open_one()
    sampler.stand_in.faults[place] = [fault] * 100
    with pytest.raises(LostAnswer, match=f"a rollout was lost 4 times in a row, last by .*({said})") as caught:
        sampler.generate(prompts([5]), replace(SETTINGS, num_samples=1, max_response_tokens=3))
    assert "\n" not in str(caught.value)
    assert sampler.stand_in.count("/v1/completions") == 4


def test_a_request_that_the_server_refuses_is_not_sent_again(open_one) -> None:
    sampler = open_one()
    sampler.stand_in.faults["/v1/completions"] = ["400"]
    with pytest.raises(InputError, match="/v1/completions: status 400: .*told to fail with 400"):
        sampler.generate(prompts([5]), replace(SETTINGS, num_samples=1))
    assert sampler.stand_in.count("/v1/completions") == 1


def test_a_silent_server_is_given_up(open_one) -> None:
    sampler = open_one(piece_tokens=1)
    sampler._streams.server.silent_seconds = 0.1
    sampler.stand_in.piece_seconds = 0.6
    with pytest.raises(LostAnswer, match="lost 4 times in a row, last by .*timed out"):
        sampler.generate(prompts([5]), replace(SETTINGS, num_samples=1))


def test_weights_that_a_server_fails_to_take_end_the_run(tiny_model, open_one) -> None:
    sampler = open_one()
    sampler.stand_in.faults["/update_weights"] = ["500"]
    with pytest.raises(LostAnswer, match="/update_weights: status 500"):
        sampler.load_weights(engine_of(tiny_model))


def test_a_prefix_cache_in_use_is_asked_for_again(tiny_model, open_one, monkeypatch) -> None:
    monkeypatch.setattr("falcon_h1r.rollout.vllm_weights.RESET_TRIES", 2)
    sampler = open_one()
    answers = [{"success": False}, {"success": True}]
    server = sampler._sender.servers[0]
    post = server.post
    monkeypatch.setattr(
        server, "post", lambda path, body=None: answers.pop(0) if path == "/reset_prefix_cache" else post(path, body)
    )
    sampler.load_weights(engine_of(tiny_model))
    assert answers == []
    answers += [{"success": False}] * 2
    with pytest.raises(LostAnswer, match="the prefix cache of the old weights is still in use"):
        sampler.load_weights(engine_of(tiny_model))


# -----------------------------------------------------------------------------
# At the start


def test_a_server_that_is_not_up_is_named_in_time(tiny_model, tokenizer, start_server) -> None:
    server = start_server()
    server.close()
    config = config_for(server)
    config.grpo.rollout.vllm.start_seconds = 0.2
    with pytest.raises(InputError, match=f"{server.address} is not up after 0.2 s .*launch/vllm_serve.sh") as caught:
        open_sampler(config, engine_of(tiny_model), tokenizer, open_link=SocketLink)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_late_is_waited_for(tiny_model, tokenizer, start_server, monkeypatch) -> None:
    monkeypatch.setattr("falcon_h1r.rollout.vllm_server.ASK_SECONDS", 0.01)
    server = start_server(faults={"/health": ["503", "drop", "503"]})
    sampler = open_sampler(config_for(server), engine_of(tiny_model), tokenizer, open_link=SocketLink)
    assert sampler.policy_version == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_info": {"logprobs_mode": "raw_logprobs"}}, "--logprobs-mode processed_logprobs"),
        ({"model_info": {"max_model_len": 1999}}, "max_model_len=1999, but grpo.limits allow 2000 tokens"),
        ({"weight_transfer": None}, "--weight-transfer-config"),
        ({"weight_transfer": {"backend": "ipc"}}, "--weight-transfer-config"),
        ({"faults": {"/server_info": ["404"]}}, "VLLM_SERVER_DEV_MODE=1"),
        ({"faults": {"/server_info": ["malformed"]}}, "does not say how it was started"),
    ],
)
def test_a_server_started_otherwise_is_refused(tiny_model, tokenizer, start_server, options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_sampler(config_for(start_server(**options)), engine_of(tiny_model), tokenizer, open_link=SocketLink)


def test_without_a_gpu_there_is_no_nccl_and_that_is_said(tiny_model, tokenizer, start_server) -> None:
    with pytest.raises(InputError, match="weights are sent by NCCL, and this trainer has no GPU"):
        open_sampler(config_for(start_server()), engine_of(tiny_model), tokenizer)


# -----------------------------------------------------------------------------
# Several servers, several ranks


def test_each_rank_samples_at_its_server_and_all_servers_get_the_weights(
    tiny_model, tokenizer, start_server, run_on_ranks
) -> None:
    servers = [start_server(), start_server()]
    config = config_for(*servers, max_slots=5)

    def work(world: World) -> tuple[int, int, list[Rollout]]:
        engine = engine_of(tiny_model, world=world)
        sampler: Any = open_sampler(config, engine, tokenizer, open_link=SocketLink)
        rollouts = sampler.generate(prompts([5]), SETTINGS) if sampler.free_slots else sampler.advance(10)
        sampler.load_weights(engine)
        return sampler.free_slots, sampler.policy_version, rollouts

    results = run_on_ranks(3, work)
    assert [free for free, _, _ in results] == [5, 5, 0]
    assert [version for _, version, _ in results] == [1, 1, 1]
    assert results[0][2] == results[1][2] and results[2][2] == []  # a rollout does not depend on its server
    assert_logprobs_are_the_trainers(tiny_model, results[0][2], SETTINGS.temperature)
    for server in servers:
        assert server.count("/update_weights") == 2
        for name, parameter in tiny_model.named_parameters():
            assert torch.equal(server.model.get_parameter(name), parameter)


def test_one_server_out_of_sync_is_told_to_every_rank(tiny_model, tokenizer, start_server, run_on_ranks) -> None:
    config = config_for(start_server(), start_server(dropped=("mamba.D",)))

    def work(world: World) -> str:
        with pytest.raises(SamplerOutOfSync) as caught:
            open_sampler(config, engine_of(tiny_model, world=world), tokenizer, open_link=SocketLink)
        return str(caught.value)

    first, second = run_on_ranks(2, work)
    assert first == second and f"policy 0: {config.grpo.rollout.vllm.servers[1]} does not hold" in first


@pytest.mark.slow
def test_sharded_weights_are_gathered_once_and_sent_whole(tiny_model, tokenizer, start_server, run_on_ranks) -> None:
    pytest.importorskip("deepspeed")
    server, model = start_server(), tiny_model.float()
    config = config_for(server)
    config.grpo.rollout.vllm.max_sync_gap = 1e-3
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def work(world: World) -> tuple[int, float]:
        engine = open_engine(model, OptimizerConfig(), 1, world, EngineConfig(name="deepspeed", zero_stage=3))
        sampler: Any = open_sampler(config, engine, tokenizer, open_link=SocketLink)
        return sampler.free_slots, sampler.sync_gap

    (first, gap), (second, same) = run_on_ranks(2, work)
    assert (first, second) == (64, 0) and gap == same
    assert set(server.received) == set(expected)
    assert all(torch.equal(server.received[name], weight) for name, weight in expected.items())


def test_more_servers_than_ranks_are_refused(tiny_model, tokenizer, start_server) -> None:
    with pytest.raises(InputError, match="2 of them, but 1 ranks"):
        open_sampler(config_for(start_server(), start_server()), engine_of(tiny_model), tokenizer)
