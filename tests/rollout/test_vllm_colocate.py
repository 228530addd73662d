"""The engine in the trainer's process, against a stand-in for vLLM's module with a real tiny model in it.

What is shown: the calls and their order, requests, weights, logprobs, when the engine sleeps. That vLLM answers these
calls so is read from its source, and has not been run.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from falcon_h1r.config import Config
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.model.decode_weights import head_logits
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.rollout.open_sampler import open_sampler
from falcon_h1r.rollout.sampler import SamplingSettings, requests_for
from falcon_h1r.rollout.sync_check import SamplerOutOfSync
from falcon_h1r.rollout.vllm_colocate import VLLMColocatedSampler, import_vllm
from falcon_h1r.types import InputError, Rollout
from tests.rollout.test_vllm_server import (
    StoppedWatch,
    assert_logprobs_are_the_trainers,
    engine_of,
    prompts,
    small_and_quick,  # noqa: F401 -- a fixture for all tests here
)
from tests.rollout.vllm_stand_in import _draw, copy_of_shape, named_as_at_vllm

SETTINGS = SamplingSettings(num_samples=2, max_response_tokens=6, temperature=0.8, seed=5)
DELTA = object()


class StandInLLM:
    """vLLM's LLM, as far as the sampler goes: an engine that is stepped, sleeps and wakes up."""

    def __init__(self, model: Any, dropped: tuple[str, ...], arguments: dict[str, Any]) -> None:
        self.model, self.dropped, self.arguments = model, dropped, arguments
        self.calls: list[str] = []
        self.awake = {"weights", "kv_cache"}
        self.requests: dict[str, Any] = {}
        self.received: dict[str, torch.Tensor] = {}
        listed = SimpleNamespace(
            load_weights=self._load, named_parameters=lambda: named_as_at_vllm(model).named_parameters()
        )
        runner = SimpleNamespace(model=listed)
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(
            model_executor=executor, add_request=self._add, step=self._step, abort_request=self._abort
        )

    def sleep(self, level: int) -> None:
        assert level == 1 and not self.requests
        self.awake.clear()
        self.calls.append("sleep")

    def wake_up(self, tags: list[str]) -> None:
        assert not self.awake & set(tags)
        self.awake |= set(tags)
        self.calls.append(f"wake {tags[0]}")

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def _load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        assert "weights" in self.awake and not self.requests
        for name, weight in weights:
            self.received[name] = weight
            if not name.endswith(self.dropped or "\0"):
                with torch.no_grad():
                    self.model.get_parameter(name).copy_(weight)

    def _add(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        assert prompt["type"] == "token" and params.output_kind is DELTA and self.awake == {"weights", "kv_cache"}
        self.requests[name] = (list(prompt["prompt_token_ids"]), params, np.random.default_rng(params.seed))

    def _abort(self, names: list[str]) -> None:
        for name in names:
            del self.requests[name]

    @torch.no_grad()
    def _step(self) -> list[Any]:
        outputs = []
        for name, (ids, params, rng) in list(self.requests.items()):
            hidden = packed_hidden_states(self.model, pack_row([Document(ids, [0.0] * len(ids))]))
            logprobs = torch.log_softmax(head_logits(self.model, hidden[-1:])[0] / (params.temperature or 1.0), -1)
            token = _draw(logprobs, rng)
            ids.append(token)
            params.max_tokens -= 1
            reason = "stop" if token in params.stop_token_ids else "length" if params.max_tokens == 0 else None
            best = logprobs.topk(params.logprobs).indices.tolist()
            at = {each: SimpleNamespace(logprob=float(logprobs[each])) for each in (token, *best)}
            piece = SimpleNamespace(token_ids=[token], logprobs=[at], finish_reason=reason)
            outputs.append(SimpleNamespace(request_id=name, outputs=[piece], finished=reason is not None))
            if reason:
                del self.requests[name]
        return outputs


class StandInVLLM:
    """The module."""

    def __init__(self, model: Any, dropped: tuple[str, ...] = ()) -> None:
        self.model, self.dropped = model, dropped
        self.SamplingParams = SimpleNamespace
        self.sampling_params = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA=DELTA))

    def LLM(self, **arguments: Any) -> StandInLLM:
        self.llm = StandInLLM(self.model, self.dropped, arguments)
        return self.llm


def opened(tiny_model, tokenizer, watch=None, max_slots: int = 4, **options: Any) -> tuple[VLLMColocatedSampler, Any]:
    config = Config()
    config.model.path = "a/checkpoint"
    config.grpo.rollout.name, config.grpo.rollout.temperature = "vllm_colocate", 0.8
    config.grpo.rollout.max_slots, config.grpo.rollout.vllm.max_sync_gap = max_slots, 1e-6
    vllm = StandInVLLM(copy_of_shape(tiny_model.config), **options)
    sampler: Any = open_sampler(config, engine_of(tiny_model, watch), tokenizer, vllm=vllm)
    return sampler, vllm.llm


def test_the_engine_starts_with_random_weights_and_gets_the_policys(tiny_model, tokenizer) -> None:
    sampler, llm = opened(tiny_model, tokenizer)
    assert (llm.arguments["load_format"], llm.arguments["enable_sleep_mode"]) == ("dummy", True)
    assert (llm.arguments["dtype"], llm.arguments["logprobs_mode"]) == ("float64", "processed_logprobs")
    assert set(llm.received) == {name for name, _ in tiny_model.named_parameters()}
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(llm.model.get_parameter(name), parameter)
    assert sampler.policy_version == 0 and sampler.sync_gap is not None and sampler.sync_gap < 1e-9


@pytest.mark.parametrize("dropped", ["mamba.D", "mamba.A_log"])
def test_a_dropped_weight_ends_the_run(tiny_model, tokenizer, dropped: str) -> None:
    with pytest.raises(SamplerOutOfSync, match=f"rank 0 does not hold what it was sent of model.layers.0.{dropped}"):
        opened(tiny_model, tokenizer, dropped=(dropped,))


def test_it_sleeps_whenever_it_has_nothing_to_do(tiny_model, tokenizer) -> None:
    sampler, llm = opened(tiny_model, tokenizer)
    assert llm.calls == ["sleep", "wake weights", "reset", "wake kv_cache", "sleep"]  # start, sync, its probes
    llm.calls.clear()
    sampler.submit(requests_for(prompts([5]), SETTINGS))
    assert llm.awake == set()
    sampler.advance(2)
    assert llm.awake == {"weights", "kv_cache"}
    sampler.advance(100)
    assert llm.calls == ["wake weights", "wake kv_cache", "sleep"]


def test_rollouts_carry_the_trainers_logprobs_whatever_the_slots(tiny_model, tokenizer) -> None:
    drawn = []
    for max_slots in (1, 8):
        sampler, _ = opened(tiny_model, tokenizer, max_slots=max_slots)
        drawn.append(sampler.generate(prompts([3, 9]), SETTINGS))
    assert drawn[0] == drawn[1]
    assert [(r.problem_uid, r.sample_index) for r in drawn[0]] == [(f"problem-{p}", s) for p in (0, 1) for s in (0, 1)]
    assert_logprobs_are_the_trainers(tiny_model, drawn[0], SETTINGS.temperature)


def test_an_aborted_rollout_goes_on_under_the_next_policy(tiny_model, tokenizer) -> None:
    sampler, llm = opened(tiny_model, tokenizer, max_slots=1)
    requests = requests_for(prompts([5]), SETTINGS)
    sampler.submit(requests)
    assert sampler.free_slots == 0 and sampler.advance(3) == []
    running, waiting = sampler.abort()
    assert (len(running.response_ids), len(waiting.response_ids)) == (3, 0)
    assert not llm.requests and llm.awake == set()
    sampler.load_weights(engine_of(tiny_model))
    sampler.submit([replace(requests[0], partial=running)])
    (rollout,) = sampler.advance(100)
    assert rollout.response_ids[:3] == running.response_ids
    assert (rollout.policy_version, rollout.later_versions) == (0, ((3, 1),))
    assert_logprobs_are_the_trainers(tiny_model, [rollout], SETTINGS.temperature)


def test_what_is_under_way_goes_on_after_a_sync(tiny_model, tokenizer) -> None:
    sampler, _ = opened(tiny_model, tokenizer)
    sampler.submit(requests_for(prompts([5]), SETTINGS))
    sampler.advance(2)
    sampler.load_weights(engine_of(tiny_model))
    ended: list[Rollout] = []
    while len(ended) < 2:
        ended += sampler.advance(100)
    assert {rollout.later_versions for rollout in ended} == {((2, 1),)}
    assert_logprobs_are_the_trainers(tiny_model, ended, SETTINGS.temperature)


def test_top_logprobs_come_best_first(tiny_model, tokenizer) -> None:
    sampler, _ = opened(tiny_model, tokenizer)
    (rollout,) = sampler.generate(prompts([5]), SamplingSettings(1, 4, 1.0, num_top_logprobs=3))
    assert rollout.top_logprobs is not None and rollout.top_logprobs.shape == (4, 3)
    assert (np.diff(rollout.top_logprobs) <= 0).all()


def test_a_stop_takes_all_requests_out(tiny_model, tokenizer) -> None:
    watch = StoppedWatch()
    sampler, llm = opened(tiny_model, tokenizer, watch)
    sampler.submit(requests_for(prompts([5]), SETTINGS))
    sampler.advance(1)
    watch.is_stopped = True
    with pytest.raises(StopRequested):
        sampler.advance(1)
    assert not llm.requests and sampler.free_slots == 4


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_line_says_what_to_do() -> None:
    with pytest.raises(InputError, match="grpo.rollout.name=vllm_colocate: vLLM cannot be imported"):
        import_vllm()


def test_a_random_model_has_no_checkpoint_to_read(tiny_model, tokenizer) -> None:
    config = Config()
    config.grpo.rollout.name = "vllm_colocate"
    with pytest.raises(InputError, match="model.path is not set"):
        open_sampler(config, engine_of(tiny_model), tokenizer, vllm=StandInVLLM(tiny_model))
