"""suite=throughput: tokens a second for lengths in and out and a batch size, on whatever model and engine is given.

A case is drawn in full, all traces of the batch at once and none of them ending early, as far as the engine can be told
so; and once more with one token out, which is what reading the prompts takes. The rate of decoding is that of the rest:

    decode tokens/s = batch * (output - 1) / (seconds in full - seconds of one token)

A warm-up of a few tokens goes before, then rounds; medians count. Beside it stands what this machine's memory and
arithmetic would allow, both measured in the same run: a step reads weights and caches, reads and writes states
(`step_bytes`), and multiplies (`step_flops`).
"""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.flops import document_cost
from falcon_h1r.benchmark.hardware import environment, measured_peak, memory_bandwidth
from falcon_h1r.benchmark.rollouts import random_model, step_bytes
from falcon_h1r.benchmark.throughput_page import render
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path, require
from falcon_h1r.config_tools import ThroughputCaseConfig
from falcon_h1r.data.tokenisation import encode_prompts, train_tokenizer
from falcon_h1r.distributed.world import World
from falcon_h1r.model.load import load_policy, load_tokenizer
from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.scaling.endpoint import check_endpoint, open_endpoint
from falcon_h1r.scaling.engine import TraceEngine, TraceRequest
from falcon_h1r.tracking import Tracker
from falcon_h1r.types import InputError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WARM_UP_TOKENS = 16
FILLER = "7 "  # what prompts are made of
NUM_MARKS = 8  # figures in which they differ
FIGURES = "1 2 3 4 5 6 7 8 9 "


@dataclass(frozen=True, slots=True)
class Limits:
    """Of this machine, measured."""

    bytes_per_second: float
    flops_per_second: float

    def tokens_per_second(self, batch: int, num_bytes: float, flops: float) -> float:
        """If a step took no longer than its traffic or its arithmetic, whichever is longer."""
        return batch / max(num_bytes / self.bytes_per_second, flops / self.flops_per_second)


@dataclass(slots=True)
class Measured:
    """One case, round by round."""

    input_tokens: int  # of a prompt, as it was encoded
    output_tokens: int  # asked for
    batch: int
    drawn: list[int] = field(default_factory=list)  # tokens of all traces; fewer where an engine let them end early
    seconds: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)  # seconds, with one token out
    is_about: bool = False  # the prompt's length: the engine's tokenizer and template are not known here
    limit: float | None = None  # decode tokens a second, by the machine
    bound_by: str | None = None  # memory or arithmetic

    @property
    def drawn_share(self) -> float:
        """Of the tokens asked for; below 1 where traces ended early, and the batch was not full to the end."""
        return median(self.drawn) / (self.batch * self.output_tokens)

    @property
    def rate(self) -> float:
        """Tokens a second, reading included."""
        return median(drawn / seconds for drawn, seconds in zip(self.drawn, self.seconds, strict=True))

    @property
    def decode_rate(self) -> float:
        rest = max(1e-9, median(self.seconds) - median(self.reading))
        return (median(self.drawn) - self.batch) / rest

    @property
    def read_rate(self) -> float:
        """Tokens of prompts a second."""
        return self.batch * self.input_tokens / median(self.reading)


def run_throughput_suite(config: Config, folder: Path, world: World) -> None:
    """Measure every case; the page is written after each."""
    settings, device = config.benchmark, world.device
    cases = [scaled(case, settings.throughput_scale) for case in settings.throughput_cases]
    model, tokenizer = None, None
    if config.evaluate.engine == "torch":
        model, tokenizer = opened_model(config, device)
    elif config.evaluate.endpoint.api == "completions":
        tokenizer = load_tokenizer(config.model)
    limits = None
    if model is not None:
        limits = Limits(memory_bandwidth(device), measured_peak(device, model.dtype).flops_per_second)
    measured: list[Measured] = []
    with (
        Tracker(folder, "benchmark", config.tracking, world.is_main, asdict(config)) as tracker,
        tracker.progress(len(cases) * settings.repeats, "throughput", "rounds") as progress,
    ):
        for case in cases:
            with closing(open_benchmarked(config, model, tokenizer, case.batch, world)) as engine:
                found = measure(engine, case, tokenizer, settings.repeats, lambda: progress.advance())
                description = engine.description
            if model is not None and limits is not None:
                num_bytes, flops = (
                    step_bytes(model, found.batch, found.input_tokens + found.output_tokens / 2),
                    step_flops(model.config, found),
                )
                found.limit = limits.tokens_per_second(found.batch, num_bytes, flops)
                by_memory = num_bytes / limits.bytes_per_second >= flops / limits.flops_per_second
                found.bound_by = "memory" if by_memory else "arithmetic"
            measured.append(found)
            page = render(settings, measured, limits, description, environment(device), command_line())
            Path(settings.page).write_text(page)


def check_throughput_suite(config: Config) -> None:
    """
    Raises:
        InputError: where a case's batch is more than the servers are given at once, or no server is named.
    """
    endpoint = config.evaluate.endpoint
    if config.evaluate.engine != "endpoint":
        return
    check_endpoint(endpoint)
    if endpoint.api == "completions":
        require("model.path", config.model.path)
        check_model_path(config.model)
    most = max(case.batch for case in config.benchmark.throughput_cases)
    if endpoint.max_in_flight * len(endpoint.urls) < most:
        raise InputError(
            f"evaluate.endpoint.max_in_flight={endpoint.max_in_flight}: a case of the benchmark has a batch of {most}"
        )


def opened_model(config: Config, device: torch.device) -> tuple[FalconH1ForCausalLM, PreTrainedTokenizerBase]:
    """The model at `model.path`, or random weights of `model.architecture`."""
    if config.model.path is not None:
        model, tokenizer = load_policy(config.model, device)
        return model.eval(), tokenizer
    tokenizer = train_tokenizer(
        ["system\nuser\nassistant\n" + FILLER * 8 + FIGURES] * 20, config.model.tokenizer_vocab_size
    )
    return random_model(config, {}, tokenizer, device), tokenizer


def scaled(case: ThroughputCaseConfig, scale: float) -> ThroughputCaseConfig:
    """Its lengths times `scale`; the batch stays."""
    input_tokens, output_tokens = (max(2, round(tokens * scale)) for tokens in (case.input_tokens, case.output_tokens))
    return ThroughputCaseConfig(input_tokens, output_tokens, case.batch)


def open_benchmarked(
    config: Config,
    model: FalconH1ForCausalLM | None,
    tokenizer: PreTrainedTokenizerBase | None,
    batch: int,
    world: World,
) -> TraceEngine:
    """The configured engine with room for the batch; traces run to their limits, if a server knows a word for that."""
    if model is None or tokenizer is None:
        return open_endpoint(config.evaluate.endpoint, None, tokenizer, world.watch, ignore_stop_tokens=True)
    from falcon_h1r.scaling.torch_engine import TorchEngine

    use_graphs = config.benchmark.rollout_graphs and world.device.type == "cuda"
    name = "random weights" if config.model.path is None else "the weights of model.path"
    engine = TorchEngine(model, tokenizer, batch, watch=world.watch, use_graphs=use_graphs, name=name)
    engine.sampler.ignore_stop_tokens()
    return engine


def measure(
    engine: TraceEngine,
    case: ThroughputCaseConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    repeats: int,
    on_round: Any,
) -> Measured:
    """Rounds of one case."""
    text, input_tokens = prompt_of(tokenizer, case.input_tokens)
    found = Measured(input_tokens, case.output_tokens, case.batch, is_about=tokenizer is None)
    draw(engine, text, case.batch, min(WARM_UP_TOKENS, case.output_tokens), "warm-up")
    for number in range(repeats):
        found.reading.append(draw(engine, text, case.batch, 1, f"reading-{number}")[0])
        seconds, num_tokens = draw(engine, text, case.batch, case.output_tokens, f"round-{number}")
        found.seconds.append(seconds)
        found.drawn.append(num_tokens)
        on_round()
    return found


def prompt_of(tokenizer: PreTrainedTokenizerBase | None, num_tokens: int) -> tuple[str, int]:
    """A user's turn whose whole prompt has about so many tokens, and how many it has. Half its length without one."""
    repeats = num_tokens // 2
    if tokenizer is None:
        return FILLER * repeats, num_tokens

    def length_of(count: int) -> int:
        return len(encode_prompts(tokenizer, [Problem("filler", FILLER * count, "")], "")[0])

    least, most = 0, num_tokens
    while least < most:  # the most that fit
        middle = (least + most + 1) // 2
        least, most = (middle, most) if length_of(middle) <= num_tokens else (least, middle - 1)
    return FILLER * least, length_of(least)


def prompts_of(text: str, batch: int, name: str) -> list[str]:
    """As `text`, but each begins with figures of its own, unlike the others' and those of another round."""
    drawing, figures = random.Random(name), text.split()
    return [
        "".join(f"{drawing.randint(1, 9)} " for _ in figures[:NUM_MARKS]) + FILLER * len(figures[NUM_MARKS:])
        for _ in range(batch)
    ]


def draw(engine: TraceEngine, text: str, batch: int, num_tokens: int, name: str) -> tuple[float, int]:
    """Seconds, and tokens drawn. Every trace reads a prompt of its own: servers keep what they have read before."""
    settings = SamplingSettings(num_samples=1, max_response_tokens=num_tokens)
    texts = prompts_of(text, batch, name)
    problems = [Problem(f"{name}-{number}", question, "") for number, question in enumerate(texts)]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    engine.submit([TraceRequest(problem, 0, settings) for problem in problems])
    drawn = 0
    while traces := engine.advance():
        drawn += sum(trace.num_tokens for trace in traces)
    return time.perf_counter() - started, drawn


# -----------------------------------------------------------------------------
# What a decode step takes at least


def step_flops(config: FalconH1Config, case: Measured) -> float:
    """One token of every trace, its attention over all before, half-way through."""
    length = case.input_tokens + case.output_tokens / 2
    cost = document_cost(config)
    return case.batch * (cost.linear + 2 * cost.quadratic * length)
