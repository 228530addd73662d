"""suite=rollouts counts what it says it counts."""

from __future__ import annotations

import torch

from falcon_h1r.benchmark.rollouts import (
    Sampled,
    bandwidth_bound,
    measure_model,
    ragged_requests,
    sample_ours,
    sample_theirs,
)
from falcon_h1r.benchmark.rollouts_page import render
from falcon_h1r.config import Config
from tests.conftest import TINY_ARCHITECTURE

CPU = torch.device("cpu")


def small_config() -> Config:
    config = Config()
    config.model.architecture, config.model.dtype = dict(TINY_ARCHITECTURE), "float32"
    suite = config.benchmark
    suite.rollout_prompts, suite.rollout_samples, suite.repeats = 2, 3, 2
    suite.rollout_prompt_tokens, suite.rollout_response_tokens = [2, 6], [1, 9]
    suite.rollout_slots, suite.rollout_batches = [2, 6], [3, 6]
    return config


def test_lengths_are_ragged_and_the_seeds(tokenizer) -> None:
    config = small_config()
    config.benchmark.rollout_prompts = 50
    requests = ragged_requests(config)
    assert [request.max_response_tokens for request in requests] == [
        request.max_response_tokens for request in ragged_requests(config)
    ]
    assert {request.max_response_tokens for request in requests} == set(range(1, 10))
    assert {len(request.prompt.input_ids) for request in requests} == set(range(2, 7))


def test_every_round_draws_every_token_and_all_time_is_accounted_for(tiny_model, tokenizer) -> None:
    requests = ragged_requests(small_config())
    ours, theirs = Sampled("ours", 4), Sampled("theirs", 3)
    model = tiny_model.float()
    model.generation_config.eos_token_id = None
    sample_ours(ours, model, tokenizer, requests, False, CPU)  # asserts that the tokens are all there
    assert abs(sum(ours.phases.values()) - 1) < 1e-9 and all(share >= 0 for share in ours.phases.values())
    seen: list[int] = []
    hook = model.model.register_forward_hook(lambda *_: seen.append(1))
    sample_theirs(theirs, model, requests, 3, CPU)
    hook.remove()
    halves = (requests[:3], requests[3:])
    assert len(seen) == sum(max(request.max_response_tokens or 0 for request in half) for half in halves)


def test_the_best_batch_size_alone_goes_through_all_rounds(tokenizer) -> None:
    rounds: list[int] = []
    result = measure_model(small_config(), "tiny", {}, tokenizer, CPU, lambda: rounds.append(1))
    assert len(rounds) == 2 == len(result.theirs[0].rates) and len(result.theirs[1].rates) == 1
    assert result.theirs[0].rates[0] > result.theirs[1].rates[0]
    environment = dict.fromkeys(("device", "hardware", "torch", "transformers"), "cpu")
    page = render(small_config().benchmark, [result], environment, "command")
    assert f"{result.num_tokens:,} tokens a round" in page and "ours, 6 slots" in page


def test_the_bandwidths_limit_counts_weights_states_and_caches(tiny_model) -> None:
    config, requests = tiny_model.config, ragged_requests(small_config())
    slots = 4
    weights = 8 * (sum(p.numel() for p in tiny_model.parameters()) - config.vocab_size * config.hidden_size)
    channels = config.mamba_d_ssm + 2 * config.mamba_n_groups * config.mamba_d_state
    state = 8 * config.num_hidden_layers * (config.mamba_d_ssm * config.mamba_d_state + 3 * channels)
    entry = 8 * config.num_hidden_layers * 2 * config.hidden_size // 2  # half as many KV heads as heads
    tokens = sum(len(r.prompt.input_ids) + (r.max_response_tokens or 0) / 2 for r in requests) / len(requests)
    expected = slots * 1e9 / (weights + slots * (2 * state + entry * tokens))
    assert bandwidth_bound(tiny_model, requests, slots, 1e9) == expected
