"""suite=throughput counts what it says it counts."""

from __future__ import annotations

import pytest
import torch

from falcon_h1r.benchmark.flops import forward_flops
from falcon_h1r.benchmark.throughput import (
    NUM_MARKS,
    Limits,
    Measured,
    check_throughput_suite,
    measure,
    open_benchmarked,
    prompt_of,
    prompts_of,
    scaled,
    step_flops,
)
from falcon_h1r.benchmark.throughput_page import render
from falcon_h1r.config import Config
from falcon_h1r.config_tools import ThroughputCaseConfig
from falcon_h1r.data.tokenisation import encode_prompts
from falcon_h1r.distributed.world import World
from falcon_h1r.types import InputError, Problem

ENVIRONMENT = {"hardware": "two cores", "torch": "2", "transformers": "5"}


def test_every_trace_runs_to_its_length(tiny_model, tokenizer) -> None:
    case = ThroughputCaseConfig(24, 6, 5)
    engine = open_benchmarked(Config(), tiny_model, tokenizer, case.batch, World(0, 1, torch.device("cpu")))
    rounds: list[int] = []
    found = measure(engine, case, tokenizer, 3, lambda: rounds.append(1))
    assert found.drawn == [30] * 3 and len(found.reading) == len(found.seconds) == len(rounds) == 3
    assert 20 < found.input_tokens <= 24


def test_prompts_have_the_length_that_is_said(tokenizer) -> None:
    text, length = prompt_of(tokenizer, 100)
    assert length == len(encode_prompts(tokenizer, [Problem("p", text, "")], "")[0]) and 90 < length <= 100


def test_prompts_differ_from_their_beginning_and_have_one_length(tokenizer) -> None:
    text, length = prompt_of(tokenizer, 100)
    prompts = [*prompts_of(text, 5, "round-0"), *prompts_of(text, 5, "round-1")]
    encoded = encode_prompts(tokenizer, [Problem(f"p{n}", prompt, "") for n, prompt in enumerate(prompts)], "")
    assert {len(ids) for ids in encoded} == {length} and len({prompt[: 2 * NUM_MARKS] for prompt in prompts}) == 10


def test_a_servers_traces_that_ended_early_are_told_on_the_page() -> None:
    found = Measured(8, 512, 32, drawn=[16 * 512], seconds=[2.0], reading=[0.1], is_about=True)
    page = render(Config().benchmark, [found], None, "a server", ENVIRONMENT, "command")
    assert "about 8 in, 256 of 512 out, 32" in page and "ended early" in page


def test_more_traces_than_servers_are_given_at_once_are_refused() -> None:
    config = Config()
    config.benchmark.throughput_cases = [ThroughputCaseConfig(8, 8, 64)]
    config.evaluate.engine = "endpoint"
    config.evaluate.endpoint.urls, config.evaluate.endpoint.max_in_flight = ["http://one/v1", "http://two/v1"], 32
    check_throughput_suite(config)
    config.evaluate.endpoint.max_in_flight = 31
    with pytest.raises(InputError, match="max_in_flight=31"):
        check_throughput_suite(config)


def test_rates_are_of_the_medians() -> None:
    found = Measured(100, 11, 4, drawn=[44] * 3, seconds=[3.0, 2.5, 9.0], reading=[1.0, 0.5, 1.0])
    assert found.rate == pytest.approx(44 / 3)
    assert found.decode_rate == pytest.approx(40 / 2) and found.read_rate == pytest.approx(400)


def test_the_limit_is_that_of_the_slower_of_memory_and_arithmetic() -> None:
    limits = Limits(bytes_per_second=100.0, flops_per_second=1000.0)
    assert limits.tokens_per_second(8, num_bytes=400.0, flops=2000.0) == 2.0  # 4 s against 2 s
    assert limits.tokens_per_second(8, num_bytes=100.0, flops=2000.0) == 4.0


def test_a_steps_operations_are_those_of_one_more_token(tiny_model) -> None:
    config = tiny_model.config
    more = forward_flops(config, (31,)).total - forward_flops(config, (30,)).total
    assert step_flops(config, Measured(25, 11, 3)) == pytest.approx(3 * more, rel=1e-9)


def test_lengths_are_scaled_and_batches_not() -> None:
    case = scaled(ThroughputCaseConfig(512, 32_768, 64), 1 / 64)
    assert (case.input_tokens, case.output_tokens, case.batch) == (8, 512, 64)


def test_the_page_shows_limits_only_where_they_are_known() -> None:
    config = Config().benchmark
    found = Measured(8, 512, 32, drawn=[32 * 512], seconds=[2.0], reading=[0.1])
    plain = render(config, [found], None, "a server", ENVIRONMENT, "command")
    assert "limits of its machine are not known" in plain and "8 in, 512 out, 32" in plain
    found.limit, found.bound_by = 20_000.0, "memory"
    assert "20,000 (memory)" in render(config, [found], Limits(1e10, 1e11), "torch", ENVIRONMENT, "command")
