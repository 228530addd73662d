"""suite=grpo_step: a whole GRPO step, sampling, verifying and training, beside TRL's GRPOTrainer.

Both start from one checkpoint, draw from the same problems, score with the same verifier and take as many rollouts a
step. Groups without contrast are not replaced, for TRL does not replace them either. One of our steps follows each of
TRL's, in one process with one thread, so that a neighbour on the machine slows both alike; the page compares medians.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.tables import judged, seconds, table
from falcon_h1r.benchmark.trl_peer import PeerStep, run_peer
from falcon_h1r.config import Config
from falcon_h1r.data.sources import load_problems
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.grpo.batches import open_batches
from falcon_h1r.grpo.carried import CarriedRollouts
from falcon_h1r.grpo.collect import Collector
from falcon_h1r.grpo.learn import Learner
from falcon_h1r.grpo.loop import train_step
from falcon_h1r.grpo.rewards import Scorer
from falcon_h1r.grpo.stream import open_stream
from falcon_h1r.model.load import load_model, load_tokenizer
from falcon_h1r.rollout.torch_sampler import TorchSampler
from falcon_h1r.tracking import Tracker, environment_versions
from falcon_h1r.verifier import Verifier

STEP_RATIO = 3.0  # how many times faster a step of ours has to be
DEVICE_BATCHES = (256, 64, 32)  # tried for TRL; the fastest is compared
TRIAL_STEPS, WARM_UP_STEPS = 2, 1


@dataclass(frozen=True, slots=True)
class OwnStep:
    """One of ours."""

    seconds: float
    sampling_seconds: float
    training_seconds: float
    response_tokens: int
    pass_at_1: float


def run_grpo_step_suite(config: Config, folder: Path, world: World) -> None:
    """Measure, and write the page."""
    config = copy.deepcopy(config)
    config.grpo.zero_variance = "reject"
    rounds = config.benchmark.repeats
    batch = config.grpo.problems_per_step * config.grpo.group_size
    sizes = [size for size in DEVICE_BATCHES if size <= batch and batch % size == 0] or [batch]
    model, tokenizer = load_model(config.model, world.device), load_tokenizer(config.model)
    problems = load_problems(config.grpo.data)
    with (
        Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker,
        tracker.progress(len(sizes) * TRIAL_STEPS + rounds + WARM_UP_STEPS, "benchmark", "steps of TRL") as progress,
        Verifier.from_config(config.verifier, after_think=True) as verifier,
        ExitStack() as stack,
    ):
        trials = {}
        for size in sizes:
            trials[size] = run_peer(
                model, tokenizer, problems, verifier, config, size, TRIAL_STEPS, lambda: progress.advance(1)
            )
        best = min(sizes, key=lambda size: trials[size][-1].seconds)
        engine = TorchEngine(copy.deepcopy(model), config.grpo.optimizer, rounds + WARM_UP_STEPS, world, config.engine)
        learner, scorer = Learner(engine, config.grpo), Scorer(verifier, config.grpo)
        stream, _ = open_stream(problems, tokenizer, config, scorer.check_problem)
        sampler = TorchSampler(engine.model, tokenizer, config.grpo.rollout.max_slots)
        collector = Collector(stream, sampler, scorer, CarriedRollouts(), config.grpo, config.seed)
        batches = stack.enter_context(open_batches(collector, engine))
        ours: list[OwnStep] = []

        def own_step() -> None:
            started = time.perf_counter()
            metrics = train_step(batches, learner, stream).metrics
            ours.append(
                OwnStep(
                    time.perf_counter() - started,
                    metrics["batch_seconds"],
                    metrics["training_seconds"],
                    int(metrics["sampled_tokens"]),
                    metrics["pass_at_1"],
                )
            )
            progress.advance(1, int(metrics["sampled_tokens"]))

        theirs = run_peer(model, tokenizer, problems, verifier, config, best, rounds + WARM_UP_STEPS, own_step)
    Path(config.benchmark.page).write_text(
        render(config, ours[WARM_UP_STEPS:], theirs[WARM_UP_STEPS:], trials, best, environment(world.device))
    )


def render(
    config: Config,
    ours: Sequence[OwnStep],
    theirs: Sequence[PeerStep],
    trials: dict[int, list[PeerStep]],
    best: int,
    setting: dict[str, str],
) -> str:
    """Markdown."""
    versions = environment_versions()
    ratio = median(step.seconds for step in theirs) / median(step.seconds for step in ours)
    grpo = config.grpo
    rows = [
        [
            f"TRL's GRPOTrainer, {best} rollouts a pass",
            seconds(median(step.seconds for step in theirs)),
            f"{median(step.response_tokens for step in theirs):,.0f}",
            f"{median(step.response_tokens / step.seconds for step in theirs):,.0f}",
            f"{median(step.pass_at_1 for step in theirs):.1%}",
            "",
        ],
        [
            "ours",
            seconds(median(step.seconds for step in ours)),
            f"{median(step.response_tokens for step in ours):,.0f}",
            f"{median(step.response_tokens / step.seconds for step in ours):,.0f}",
            f"{median(step.pass_at_1 for step in ours):.1%}",
            judged(ratio, STEP_RATIO),
        ],
    ]
    tried = ", ".join(f"{size}: {steps[-1].seconds:.2f} s" for size, steps in trials.items())
    sampling = median(step.sampling_seconds for step in ours)
    training = median(step.training_seconds for step in ours)
    lines = [
        "# A GRPO step beside TRL's",
        "",
        f"{grpo.problems_per_step} problems x {grpo.group_size} rollouts of at most {grpo.limits.response_tokens} "
        "tokens, from one checkpoint, with the same problems, verifier and learning rate; one thread, one of our steps "
        f"after each of TRL's, medians of {len(ours)} steps.",
        "",
        f"{setting['hardware']}; revision {versions['git_revision']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, TRL {trl_version()}. Made by",
        "",
        f"    {command_line()}",
        "",
        *table(["", "seconds a step", "response tokens", "tokens/s", "pass@1", "faster than TRL"], rows),
        f"Of our step, sampling and verifying take {sampling:.2f} s, training {training:.2f} s. TRL by rollouts of a "
        f"forward and backward pass, in its trials: {tried}.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def trl_version() -> str:
    from importlib.metadata import version

    return version("trl")
