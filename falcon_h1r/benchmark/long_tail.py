"""suite=long_tail: responses of long-tailed length, and what is done about the longest of a step.

    waiting       a step ends with its last rollout
    surplus       more groups are begun than needed, and what is over goes to the cache
    partial       the step ends as soon as it has its batch; rollouts that still run go on in the next ones
    overlap       the next step's rollouts are drawn by a second thread while this one's are learnt from
    both          partial and overlap

What is drawn is random, and so is what is rewarded; only lengths are given: a problem's rollouts are cut at log-normal
lengths. So every way has the same work to do for a batch, and the table says what it took and what was in vain.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from transformers import FalconH1Config

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.tables import table
from falcon_h1r.config import Config
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.tokenisation import train_tokenizer
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.batches import open_batches, sync_sampler
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import Collector
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.loop import train_step
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import ProblemStream
from falcon_h1r.model.load import DTYPES, random_weights
from falcon_h1r.rollout.sampler import RolloutRequest
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.tracking import Tracker, environment_versions
from falcon_h1r.types import Problem, Rollout, Verdict, content_hash
from falcon_h1r.verifier import Verifier

MEDIAN_TOKENS, SIGMA, LONGEST = 64.0, 1.0, 512  # of a response: log-normal, cut at the longest
NUM_PROBLEMS, PROMPT_TOKENS = 4096, 48
WARM_UP_STEPS = 2

WAYS: dict[str, Callable[[GRPOConfig], None]] = {}


def way(name: str) -> Callable[[Callable[[GRPOConfig], None]], Callable[[GRPOConfig], None]]:
    """Register what a way changes of the settings."""

    def register(change: Callable[[GRPOConfig], None]) -> Callable[[GRPOConfig], None]:
        WAYS[name] = change
        return change

    return register


@way("waiting")
def _waiting(config: GRPOConfig) -> None:
    config.rollout.oversampling = 1.0


@way("surplus")
def _surplus(config: GRPOConfig) -> None:
    config.rollout.oversampling = 1.5
    config.surplus_cache_groups, config.surplus_cache_steps = config.problems_per_step, 4


@way("partial")
def _partial(config: GRPOConfig) -> None:
    _surplus(config)
    config.rollout.max_partial_steps = 4


@way("overlap")
def _overlap(config: GRPOConfig) -> None:
    config.rollout.overlap, config.rollout.dtype = True, "float32"


@way("both")
def _both(config: GRPOConfig) -> None:
    _partial(config)
    _overlap(config)


class LongTailed(TorchSampler):
    """Draws responses of given lengths: no token ends one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ignore_stop_tokens()

    def submit(self, requests: Iterable[RolloutRequest]) -> None:
        super().submit(replace(each, max_response_tokens=given_length(*each.key)) for each in requests)


class CoinFlips(Scorer):
    """Half of all rollouts are right, whatever they say."""

    def submit(self, problem: Problem, rollout: Rollout) -> Future[Verdict]:
        digest = int(content_hash(f"{problem.uid}/{rollout.sample_index}/reward"), 16)
        verdict: Future[Verdict] = Future()
        verdict.set_result(Verdict("correct" if digest % 2 else "wrong", "given", "a coin"))
        return verdict


def given_length(problem_uid: str, sample_index: int) -> int:
    """Of a response, in tokens: its own, whatever the way."""
    generator = np.random.default_rng(int(content_hash(f"{problem_uid}/{sample_index}/length"), 16))
    return max(1, min(LONGEST, round(MEDIAN_TOKENS * float(np.exp(SIGMA * generator.standard_normal())))))


@dataclass(frozen=True, slots=True)
class WayResult:
    """Steps of one way."""

    name: str
    seconds: list[float]
    metrics: list[dict[str, float]]

    @property
    def learnt_per_second(self) -> float:
        """Response tokens."""
        return sum(step.get("tokens", 0.0) for step in self.metrics) / sum(self.seconds)

    def mean(self, key: str) -> float:
        return mean(step.get(key, 0.0) for step in self.metrics)


def run_long_tail_suite(config: Config, folder: Path, world: World) -> None:
    """Measure every way, and write the page."""
    num_steps = config.benchmark.repeats + WARM_UP_STEPS
    with (
        Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker,
        tracker.progress(len(WAYS) * num_steps, "benchmark", "steps") as progress,
    ):
        results = []
        for name in WAYS:
            results.append(measure(name, config, world, num_steps, lambda tokens: progress.advance(1, tokens)))
    Path(config.benchmark.page).write_text(render(config, results, environment(world.device)))


def measure(name: str, config: Config, world: World, num_steps: int, on_step: Callable[[int], None]) -> WayResult:
    """Steps of one way, from the same weights and over the same problems."""
    config = copy.deepcopy(config)
    grpo = config.grpo
    WAYS[name](grpo)
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(["0 1 2 3 4 5 6 7 8 9 + ="], config.model.tokenizer_vocab_size)
    architecture = FalconH1Config(**(dict(config.model.architecture) | {"vocab_size": len(tokenizer)}))
    engine = TorchEngine(random_weights(architecture, torch.float32), grpo.optimizer, num_steps, world, config.engine)
    dtype = DTYPES[grpo.rollout.dtype] if grpo.rollout.dtype is not None else None
    sampler = LongTailed(engine.model, tokenizer, grpo.rollout.max_slots, dtype=dtype)
    generator = np.random.default_rng(config.seed)
    problems = [Problem(str(index), f"question {index}", "7") for index in range(NUM_PROBLEMS)]
    prompts = generator.integers(5, len(tokenizer), (NUM_PROBLEMS, PROMPT_TOKENS)).tolist()
    stream = ProblemStream(problems, prompts, config.seed)
    learner = Learner(engine, grpo)
    seconds: list[float] = []
    metrics: list[dict[str, float]] = []
    with Verifier(after_think=True) as verifier:
        collector = Collector(stream, sampler, CoinFlips(verifier, grpo), CarriedRollouts(), grpo, config.seed)
        with open_batches(collector, engine) as batches:
            sync_sampler(sampler, engine, grpo.updates_per_batch)
            for step in range(num_steps):
                started = time.perf_counter()
                report = train_step(batches, learner, stream, is_last=step + 1 == num_steps)
                seconds.append(time.perf_counter() - started)
                metrics.append(report.metrics)
                on_step(int(report.metrics["sampled_tokens"]))
    return WayResult(name, seconds[WARM_UP_STEPS:], metrics[WARM_UP_STEPS:])


def render(config: Config, results: Sequence[WayResult], setting: dict[str, str]) -> str:
    """Markdown."""
    grpo, versions = config.grpo, environment_versions()
    num_steps = len(results[0].seconds)
    waited = results[0]
    shape = config.model.architecture
    lines = [
        "# Long-tailed lengths",
        "",
        f"A step learns from {grpo.problems_per_step} groups of {grpo.group_size}; lengths are log-normal (median "
        f"{MEDIAN_TOKENS:.0f} tokens, sigma {SIGMA:g}, {LONGEST} at most), half of all rollouts are right. Falcon-H1 "
        f"of {shape['num_hidden_layers']} layers x {shape['hidden_size']}, random weights; {grpo.rollout.max_slots} "
        f"slots, one rank of one thread; overlap has a second one. Medians and means over {num_steps} steps after "
        f"{WARM_UP_STEPS}.",
        "",
        f"{setting['hardware']}; revision {versions['git_revision']}, torch {versions['torch']}. Made by",
        "",
        f"    {command_line()}",
        "",
        *table(
            [
                *("", "seconds a step", "groups learnt from", "tokens learnt from, a second", "beside waiting"),
                *("sampled and dropped", "mean length", "policy lag, batches", "sampler's KL"),
            ],
            (_row(result, waited) for result in results),
        ),
        "`waiting` ends a step with its last rollout. `surplus` begins 1.5 times the groups and keeps what is over for "
        "later steps. `partial` does so and ends the step once its batch is full; what runs goes on in later steps. "
        "`overlap` draws the next batch while this one is learnt from. Dropped are tokens that were sampled and will "
        "never be learnt from, groups without contrast aside. The lag is that of the tokens learnt from; the KL is of "
        "the policies that drew them to the one that learns.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(result: WayResult, waited: WayResult) -> list[str]:
    sampled = sum(step["sampled_tokens"] for step in result.metrics)
    dropped = sum(step["dropped_tokens"] for step in result.metrics)
    return [
        result.name,
        f"{median(result.seconds):.2f}",
        f"{result.mean('num_groups'):.1f}",
        f"{result.learnt_per_second:,.0f}",
        f"{result.learnt_per_second / waited.learnt_per_second:.2f}x",
        f"{dropped / sampled:.1%}",
        f"{result.mean('response_tokens_mean'):.0f}",
        f"{result.mean('version_lag_mean'):.2f}",
        f"{result.mean('sampler_kl'):.1e}",
    ]
