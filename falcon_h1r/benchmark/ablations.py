"""suite=ablations: GRPO with one thing changed at a time, several seeds each, from the same cold starts.

For every seed a pipeline run gives the problems, the cold start and GRPO as it is (`base`); then GRPO runs once more
from that cold start for every other file of configs/ablation, as one --multirun, and each model is evaluated. All of it
lies under `benchmark.folder`, and what has ended there is not done again: the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.tables import table
from falcon_h1r.config import Config
from falcon_h1r.distributed.launcher import run_command
from falcon_h1r.evaluation.intervals import estimate_mean
from falcon_h1r.evaluation.metrics import VOTES, differences, problem_values, votes_of
from falcon_h1r.evaluation.run_folder import read_rows
from falcon_h1r.tracking import Tracker, environment_versions

BASE = "base"
SECTIONS = {
    "Distance to the model GRPO starts from": {BASE: "KL 0", "kl_0.04": "KL 0.04"},
    "Groups without contrast": {BASE: "backfill", "reject": "reject", "duplicate": "duplicate"},
    "Group size, as many rollouts a step": {"group_4": "64 x 4", BASE: "32 x 8", "group_16": "16 x 16"},
    "Temperature": {"temperature_0.6": "0.6", "temperature_0.85": "0.85", BASE: "1.0"},
}
METRICS = ("pass_at_1", "greedy", f"pass_at_{VOTES}", f"maj_at_{VOTES}")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """One setting with one seed: its evaluation, and the log of its GRPO."""

    samples: list[Row]
    steps: list[Row]


def run_ablations_suite(config: Config, folder: Path) -> None:
    """Train what has not been trained, evaluate it, write the page."""
    settings = config.benchmark
    root, names = Path(settings.folder), [name for name in settings.ablations if name != BASE]
    with (
        Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker,
        tracker.progress(len(settings.seeds) * (2 * len(names) + 1), "ablations", "runs") as progress,
    ):
        for seed in settings.seeds:
            common = [f"experiment={settings.experiment}", f"seed={seed}", "resume=true", *settings.overrides]
            for command, done in commands(root, seed, common, names):
                if not done.exists():
                    start(command)
                progress.advance(len(names) if "--multirun" in command else 1)
    models = {(name, seed): read_model(root, name, seed) for name in [BASE, *names] for seed in settings.seeds}
    changed = " ".join([f"experiment={settings.experiment}", *settings.overrides])
    Path(settings.page).write_text(render(models, settings.seeds, changed))


def commands(root: Path, seed: int, common: Sequence[str], names: Sequence[str]) -> Iterator[tuple[list[str], Path]]:
    """Command lines in their order, each with the file or folder that is there once it has ended."""
    pipeline = root / f"seed_{seed}"
    yield ["pipeline.py", *common, f"run_dir={pipeline}"], pipeline / "summary.json"
    grpo = root / f"seed_{seed}_grpo"
    data = [f"{stage}.data={{path: {pipeline / 'curate' / split}.jsonl, curated: true}}" for stage, split in SPLITS]
    sweep = [f"ablation={','.join(names)}", f"model.path={pipeline / 'sft' / 'model'}", f"run_dir={grpo}"]
    last = grpo / f"ablation={names[-1]}" / "model"
    yield ["grpo.py", "--multirun", *common, *data, *sweep], last
    for name in names:
        done = root / f"seed_{seed}_evaluate" / name
        own = [f"model.path='{grpo / f'ablation={name}' / 'model'}'", f"run_dir={done}"]
        yield ["evaluate.py", *common, *data, *own], done / "summary.json"


def start(command: Sequence[str]) -> None:
    """A recipe to its end."""
    recipe = Path(sys.argv[0]).resolve().parent / command[0]
    if status := run_command([sys.executable, str(recipe), *command[1:]]):
        raise RuntimeError(f"{' '.join(command)}: ended with status {status}")


SPLITS = (("grpo", "rl"), ("dev", "dev"), ("evaluate", "eval"))


def read_model(root: Path, name: str, seed: int) -> TrainedModel:
    """What a setting's runs have left."""
    if name == BASE:
        pipeline = root / f"seed_{seed}"
        samples, steps = pipeline / "evaluate" / "grpo", pipeline / "grpo"
    else:
        samples, steps = root / f"seed_{seed}_evaluate" / name, root / f"seed_{seed}_grpo" / f"ablation={name}"
    rows = [row for row in read_rows(steps / "metrics.jsonl") if row.get("stage") == "grpo" and "reward_mean" in row]
    return TrainedModel(read_rows(samples / "samples.jsonl"), rows)


# -----------------------------------------------------------------------------
# The page


def render(models: dict[tuple[str, int], TrainedModel], seeds: Sequence[int], setting: str) -> str:
    """Markdown.

    Args:
        setting: the overrides of every run.
    """
    versions = environment_versions()
    known = {name for name, _ in models}
    lines = [
        "# GRPO with one thing changed",
        "",
        f"`{setting}`, seeds {', '.join(map(str, seeds))}; all settings of a seed start from its cold "
        "start. Accuracies on held-out problems, over all seeds, with 95% intervals (bootstrap over problems); below "
        "each setting, its difference to the experiment as it is (base), paired by problem and seed. These intervals "
        "speak of new problems for these models; what training anew would change, the seeds' own values show.",
        "",
        f"{versions['processor']}; torch {versions['torch']}, transformers {versions['transformers']}. Made by",
        "",
        f"    {command_line()}",
        "",
    ]
    for title, settings in SECTIONS.items():
        if len(present := {name: label for name, label in settings.items() if name in known}) > 1:
            lines += [f"## {title}", "", *section(present, models, seeds)]
    return "\n".join(lines).rstrip() + "\n"


def section(settings: dict[str, str], models: dict[tuple[str, int], TrainedModel], seeds: Sequence[int]) -> list[str]:
    """One comparison: accuracies, then what the training cost."""
    accuracy, training = [], []
    for name, label in settings.items():
        own = [models[name, seed] for seed in seeds]
        base = [models[BASE, seed] for seed in seeds]
        accuracy.append([label, *pooled(own), by_seed(own)])
        if name != BASE:
            pairs = [(mine.samples, theirs.samples) for mine, theirs in zip(own, base, strict=True)]
            found = differences(pairs, k=VOTES, seed=0)
            accuracy.append([f"{label} - base", *(interval(found[metric], "+") for metric in METRICS), ""])
        training.append([label, *costs(own)])
    return [
        *table(["", *(name.replace("_at_", "@").replace("_", " ") for name in METRICS), "pass@1 by seed"], accuracy),
        *table(
            ["", "response tokens sampled", "mean length", "without contrast", "entropy, last 10", "seconds"], training
        ),
    ]


def pooled(models: Sequence[TrainedModel]) -> list[str]:
    """Each metric over all seeds."""
    cells = []
    for metric in METRICS:
        by_problem = [problem_values(model.samples, min(VOTES, votes_of(model.samples))) for model in models]
        _, clusters = np.unique([uid for uids, _ in by_problem for uid in uids], return_inverse=True)
        values = np.concatenate([values[metric] for _, values in by_problem])
        cells.append(interval(asdict(estimate_mean(values, seed=0, clusters=clusters))))
    return cells


def interval(estimate: dict[str, float], sign: str = "") -> str:
    """`54.2 (52.0 to 56.4)`, in percent."""
    value, low, high = (100 * estimate[part] for part in ("value", "low", "high"))
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def by_seed(models: Sequence[TrainedModel]) -> str:
    values = [problem_values(model.samples, 1)[1]["pass_at_1"].mean() for model in models]
    return ", ".join(f"{100 * value:.1f}" for value in values)


def costs(models: Sequence[TrainedModel]) -> list[str]:
    """Of the training, the mean over seeds."""

    def over(key: str, last: int = 0) -> float:
        return mean(mean(step[key] for step in model.steps[-last:] if key in step) for model in models)

    tokens = mean(sum(step["sampled_tokens"] for step in model.steps) for model in models)
    seconds = mean(sum(step["sampling_seconds"] + step["training_seconds"] for step in model.steps) for model in models)
    return [
        f"{tokens / 1e6:.2f}M",
        f"{over('response_tokens_mean'):.1f}",
        f"{over('zero_variance_share'):.0%}",
        f"{over('entropy', last=10):.3f}",
        f"{seconds:.0f}",
    ]
