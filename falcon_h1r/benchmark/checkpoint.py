"""suite=checkpoint: what saving costs, as a share of the time between two saves.

One training run goes through intervals of equally many steps: without a save, with an asynchronous one at the
interval's start, and with a synchronous one, in turns, so that a neighbour on the machine slows all alike. An
interval ends when its checkpoint has its name. The first round warms up and is not counted.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.benchmark.bars import CHECKPOINT_SHARE
from falcon_h1r.benchmark.figures import command_line, figures_path
from falcon_h1r.benchmark.hardware import environment
from falcon_h1r.benchmark.tables import NONE, beside_bar, seconds, table
from falcon_h1r.checkpoint.files import replace_text, saved_steps, step_folder
from falcon_h1r.config import Config
from falcon_h1r.data.packing import Document
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.model.load import DTYPES, random_weights
from falcon_h1r.sft.loop import train_step
from falcon_h1r.tracking import Tracker, environment_versions
from falcon_h1r.training_run import TrainingRun

NO_SAVE, ASYNCHRONOUS, SYNCHRONOUS = MODES = ("none", "asynchronous", "synchronous")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Interval:
    """The time from one save to where the next would be."""

    seconds: float
    held_up_seconds: float  # of them, in which training stood still for the save
    cpu_seconds: float  # of the whole process
    thread_cpu_seconds: float  # of them, the thread's that writes


def run_checkpoint_suite(config: Config, folder: Path, world: World) -> None:
    """Measure, and write the page with its figures."""
    settings = config.benchmark
    config = deepcopy(config)
    config.checkpoint.every_steps, config.checkpoint.every_minutes, config.checkpoint.keep = 0, 0.0, 1
    rounds = settings.repeats + 1
    torch.manual_seed(config.seed)
    model = random_weights(FalconH1Config(**config.model.architecture), DTYPES[config.model.dtype]).to(world.device)
    num_steps = rounds * len(MODES) * settings.checkpoint_steps
    engine = TorchEngine(model, config.sft.optimizer, num_steps, world)
    batch = [random_document(settings.checkpoint_row_tokens, model.config.vocab_size, config.seed)]
    intervals: dict[str, list[Interval]] = {mode: [] for mode in MODES}
    with (
        Tracker(folder, "benchmark", config.tracking, world.is_main, {}) as tracker,
        TrainingRun(config, "sft", folder, engine, tracker, dict) as run,
    ):
        for _ in range(rounds):
            for mode in MODES:
                intervals[mode].append(measure_interval(run, batch, mode, settings.checkpoint_steps))
    root = run.saver.root
    newest = step_folder(root, saved_steps(root)[-1])
    figures = {
        "environment": environment(world.device),
        "revision": environment_versions()["git_revision"],
        "command": command_line(),
        "model": describe_model(model),
        "checkpoint_bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "steps": settings.checkpoint_steps,
        "row_tokens": settings.checkpoint_row_tokens,
        "intervals": {mode: [asdict(interval) for interval in found[1:]] for mode, found in intervals.items()},
    }
    shutil.rmtree(root)
    replace_text(figures_path(settings.page), json.dumps(figures, indent=1) + "\n")
    replace_text(Path(settings.page), "\n".join(page_lines(figures)) + "\n")


def measure_interval(run: TrainingRun, batch: list[Document], mode: str, num_steps: int) -> Interval:
    cpu_before, thread_before = time.process_time(), run.saver.cpu_seconds
    started = time.perf_counter()
    if mode != NO_SAVE:
        run.config.checkpoint.asynchronous = mode == ASYNCHRONOUS
        run.save()
    held_up = time.perf_counter() - started
    for _ in range(num_steps):
        metrics = train_step(run.engine, batch, len(batch[0]))
        run.progress.advance(1, len(batch[0]), loss=metrics["loss"])
        run.finish_step(metrics, lambda: batch)
    waits = time.perf_counter()
    run.saver.wait()
    ended = time.perf_counter()
    return Interval(
        ended - started,
        held_up + ended - waits,
        time.process_time() - cpu_before,
        run.saver.cpu_seconds - thread_before,
    )


def random_document(length: int, vocab_size: int, seed: int) -> Document:
    rng = random.Random(seed)
    return Document([rng.randrange(vocab_size) for _ in range(length)], [0.0] + [1.0] * (length - 1), uid="row")


def describe_model(model: FalconH1ForCausalLM) -> str:
    shape = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{shape.num_hidden_layers} layers, hidden {shape.hidden_size}, vocabulary {shape.vocab_size:,}: "
        f"{parameters:.1f}M parameters in float32, random weights"
    )


def page_lines(figures: dict[str, Any]) -> list[str]:
    """The page, from its figures."""
    intervals: dict[str, list[dict[str, float]]] = figures["intervals"]
    none = intervals[NO_SAVE]

    def row(mode: str) -> list[str]:
        found = intervals[mode]
        spent = [interval["seconds"] for interval in found]
        held_up = median(interval["held_up_seconds"] / interval["seconds"] for interval in found)
        thread = median(interval["thread_cpu_seconds"] / interval["cpu_seconds"] for interval in found)
        longer = median(1 - alone["seconds"] / one["seconds"] for alone, one in zip(none, found, strict=True))
        shown = f"{held_up:.1%}"
        if mode == ASYNCHRONOUS:
            shown = beside_bar(shown, f"{CHECKPOINT_SHARE:.0%}", held_up <= CHECKPOINT_SHARE, at_most=True)
        return [
            mode,
            seconds(median(spent)),
            f"{min(spent):.3g} to {max(spent):.3g}",
            f"{median(interval['held_up_seconds'] for interval in found):.3f}",
            shown,
            f"{median(interval['thread_cpu_seconds'] for interval in found):.2f}",
            f"{thread:.1%}",
            f"{longer:.0%}" if mode != NO_SAVE else NONE,
        ]

    header = [
        *("save", "interval, s", "from, to", "training held up, s", "share of the interval"),
        *("the thread's CPU time, s", "share of all CPU time", "longer than without"),
    ]
    versions = figures["environment"]
    return [
        "# What saving costs",
        "",
        f"    {figures['command']}",
        "",
        f"- hardware: {versions['hardware']}",
        f"- torch {versions['torch']}, transformers {versions['transformers']}; revision {figures['revision']}",
        f"- model: {figures['model']}; a checkpoint has {figures['checkpoint_bytes'] / MIB:,.0f} MiB",
        f"- an interval: {figures['steps']} steps of one row of {figures['row_tokens']:,} tokens, a save at its start",
        "",
        f"Medians over {len(none)} intervals of each kind, which take turns in one run. Training is held up while the",
        "state is copied and, at an interval's end, until the checkpoint has its name. The thread that hashes and",
        "writes has a core of its own where one is free; where none is, it takes at most its CPU time from training.",
        "The last column compares with the interval without a save just before: on a machine with neighbours it is",
        "mostly noise, as the spread of the intervals shows.",
        "",
        *table(header, [row(mode) for mode in MODES]),
    ]
