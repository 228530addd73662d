"""suite=rollouts: tokens a second of the torch sampler beside transformers' `generate`, on ragged lengths, in one run.

Both sample at temperature 1 from the same random weights, prompts and limits: every rollout ends at a length of its
own, drawn evenly, which a StoppingCriteria tells `generate` row by row. Only tokens up to there count. `generate` is
given all batch sizes in the first round; the best goes on to the next ones. Rounds take turns: ours, theirs.

On a CPU the process's own time counts, so that a neighbour on the machine does not; on a GPU the clock's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import FalconH1Config, FalconH1ForCausalLM, StoppingCriteria, StoppingCriteriaList

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.rollouts_page import render
from falcon_h1r.config import Config
from falcon_h1r.data.tokenisation import train_tokenizer
from falcon_h1r.distributed.world import World
from falcon_h1r.model.decode_cache import SlotCache
from falcon_h1r.model.load import DTYPES, architecture_for, random_weights
from falcon_h1r.model.precision import compute_in
from falcon_h1r.rollout.running import Burst
from falcon_h1r.rollout.sampler import Prompt, RolloutRequest, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.tracking import Tracker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORDINARY = 8  # tokens from here on are drawn for prompts: those before are the tokenizer's special ones


@dataclass(slots=True)
class Sampled:
    """One way of drawing all rollouts, round by round."""

    name: str
    size: int  # slots, or rows of a batch
    rates: list[float] = field(default_factory=list)  # tokens a second
    phases: dict[str, float] = field(default_factory=dict)  # share of the last round's seconds

    @property
    def rate(self) -> float:
        return median(self.rates)


@dataclass(slots=True)
class ModelResult:
    """One model's figures."""

    name: str
    num_parameters: int
    num_tokens: int  # of response, in a round
    ours: list[Sampled] = field(default_factory=list)  # by slots
    theirs: list[Sampled] = field(default_factory=list)  # by batch size; the first is the best
    bounds: dict[str, float] = field(default_factory=dict)  # ours' name: tokens a second, by the memory's bandwidth


def run_rollouts_suite(config: Config, folder: Path, world: World) -> None:
    """Measure every model and write the page."""
    settings, device = config.benchmark, world.device
    results = []
    tokenizer = train_tokenizer(["system\nuser\nassistant\nCompute 1+2.\n"] * 20, config.model.tokenizer_vocab_size)
    with (
        Tracker(folder, "benchmark", config.tracking, world.is_main, asdict(config)) as tracker,
        tracker.progress(len(settings.rollout_models) * settings.repeats, "benchmark", "rounds") as progress,
    ):
        for name, changes in settings.rollout_models.items():
            results.append(measure_model(config, name, changes, tokenizer, device, lambda: progress.advance()))
    Path(settings.page).write_text(render(settings, results, environment(device), command_line()))


def measure_model(
    config: Config,
    name: str,
    changes: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    on_round: Callable[[], None],
) -> ModelResult:
    """Rounds of every number of slots and every batch size on one model."""
    settings = config.benchmark
    model = random_model(config, changes, tokenizer, device)
    requests = ragged_requests(config)
    result = ModelResult(
        name,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(request.max_response_tokens or 0 for request in requests),
        [Sampled(f"{slots} slots", slots) for slots in settings.rollout_slots],
        [Sampled(f"batches of {size}", size) for size in settings.rollout_batches],
    )
    bandwidth = config.plan.gpu.memory_bytes_per_second if device.type == "cuda" else None
    if bandwidth is not None:
        result.bounds = {each.name: bandwidth_bound(model, requests, each.size, bandwidth) for each in result.ours}
    for round_index in range(settings.repeats):
        for ours in result.ours:
            sample_ours(ours, model, tokenizer, requests, settings.rollout_graphs, device)
        for theirs in result.theirs if round_index == 0 else result.theirs[:1]:
            sample_theirs(theirs, model, requests, theirs.size, device)
        if round_index == 0:
            result.theirs.sort(key=lambda sampled: -sampled.rate)
        on_round()
    return result


def random_model(
    config: Config, changes: dict[str, Any], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> FalconH1ForCausalLM:
    """The configured architecture with these changes. No weight of it means anything."""
    architecture = {**config.model.architecture, **changes}
    settings = replace(config.model, architecture=architecture)
    shape = {**architecture_for(settings, tokenizer), "vocab_size": architecture.get("vocab_size", len(tokenizer))}
    torch.manual_seed(config.seed)
    dtype = DTYPES[config.model.dtype]
    with torch.device(device):
        model = random_weights(FalconH1Config(**shape), dtype)
    compute_in(model, dtype)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def ragged_requests(config: Config) -> list[RolloutRequest]:
    """Groups of rollouts whose prompts and limits have lengths drawn evenly between two bounds."""
    settings, rng = config.benchmark, random.Random(config.seed)
    requests = []
    for index in range(settings.rollout_prompts):
        length = rng.randint(*settings.rollout_prompt_tokens)
        prompt = Prompt(f"prompt-{index}", [rng.randrange(ORDINARY, 256) for _ in range(length)])
        for sample in range(settings.rollout_samples):
            limit = rng.randint(*settings.rollout_response_tokens)
            sampling = SamplingSettings(settings.rollout_samples, settings.rollout_response_tokens[1], seed=config.seed)
            requests.append(RolloutRequest(prompt, sample, sampling, max_response_tokens=limit))
    return requests


# -----------------------------------------------------------------------------
# Ours


class TimedSampler(TorchSampler):
    """The sampler with a clock at its three phases; no token ends a response."""

    def __init__(self, *arguments: Any, clock: Callable[[], float], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ignore_stop_tokens()
        self.clock, self.seconds = clock, {"prefill": 0.0, "decode": 0.0, "drawing": 0.0}

    def _fork(self, groups: Any) -> None:
        started = self.clock()
        super()._fork(groups)
        self.seconds["prefill"] += self.clock() - started

    def _step(self, newest: Tensor) -> Tensor:
        started = self.clock()
        logits = super()._step(newest)
        self.seconds["decode"] += self.clock() - started
        return logits

    def _draw(self, num_steps: int) -> Burst:
        started, decoding = self.clock(), self.seconds["decode"]
        burst = super()._draw(num_steps)
        self.seconds["drawing"] += self.clock() - started - (self.seconds["decode"] - decoding)
        return burst


def clock_of(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def sample_ours(
    sampled: Sampled,
    model: FalconH1ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    requests: list[RolloutRequest],
    use_graphs: bool,
    device: torch.device,
) -> None:
    """One round. A GPU is not waited for between phases: what it has not done yet counts to the one that waits."""
    clock = clock_of(device)
    phase_clock = time.perf_counter if device.type == "cuda" else clock
    sampler = TimedSampler(model, tokenizer, sampled.size, use_graphs=use_graphs, clock=phase_clock)
    started = clock()
    sampler.submit(requests)
    rollouts = sampler.advance(1 << 30)
    seconds = clock() - started
    num_tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    assert num_tokens == sum(request.max_response_tokens or 0 for request in requests)
    sampled.rates.append(num_tokens / seconds)
    timed = sum(sampler.seconds.values())
    sampled.phases = {**{name: each / seconds for name, each in sampler.seconds.items()}, "rest": 1 - timed / seconds}


def bandwidth_bound(
    model: FalconH1ForCausalLM, requests: list[RolloutRequest], slots: int, bytes_per_second: float
) -> float:
    """Tokens a second if a step did nothing but move `step_bytes`, every slot holding the mean rollout half-way."""
    tokens = sum(len(request.prompt.input_ids) + (request.max_response_tokens or 0) / 2 for request in requests)
    return slots * bytes_per_second / step_bytes(model, slots, tokens / len(requests))


def step_bytes(model: FalconH1ForCausalLM, slots: int, mean_tokens: float) -> float:
    """What a decode step has to move: weights but for the embedding's, states read and written, caches read.

    falcon_h1r.planning.rollouts has the same for a plan.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    weights -= model.model.embed_tokens.weight.numel() * model.model.embed_tokens.weight.element_size()
    cache = SlotCache(model, 1, torch.device("cpu"))
    cache.reserve(1)
    state = sum(each.ssm.nbytes + each.conv.nbytes for each in cache.layers)
    entry = sum(each.keys.nbytes + each.values.nbytes for each in cache.layers) / cache.capacity
    return weights + slots * (2 * state + entry * mean_tokens)


# -----------------------------------------------------------------------------
# transformers


class EndsAtItsOwnLength(StoppingCriteria):
    """Each row is done at its limit."""

    def __init__(self, prompt_tokens: int, limits: Tensor) -> None:
        self.prompt_tokens, self.limits = prompt_tokens, limits

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids.shape[1] - self.prompt_tokens >= self.limits


def sample_theirs(
    sampled: Sampled, model: FalconH1ForCausalLM, requests: list[RolloutRequest], size: int, device: torch.device
) -> None:
    """One round, in batches of so many rows, padded on the left."""
    clock = clock_of(device)
    started, num_tokens = clock(), 0
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        longest = max(len(request.prompt.input_ids) for request in batch)
        pads = [longest - len(request.prompt.input_ids) for request in batch]
        ids = [[0] * pad + request.prompt.input_ids for pad, request in zip(pads, batch, strict=True)]
        limits = [request.max_response_tokens or 0 for request in batch]
        with torch.no_grad():
            model.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max(limits),
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList(
                    [EndsAtItsOwnLength(longest, torch.tensor(limits, device=device))]
                ),
            )
        num_tokens += sum(limits)
    sampled.rates.append(num_tokens / (clock() - started))
