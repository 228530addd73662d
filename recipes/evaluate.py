"""Evaluation: a model and problems in, samples.jsonl and summary.json out.

    python recipes/evaluate.py experiment=quickstart model.path=runs/quickstart/grpo/model \
        evaluate.data.path=runs/quickstart/curate/eval.jsonl
    python recipes/evaluate.py data=gsm8k model.path=my-model evaluate.data.path=test.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path, require
from falcon_h1r.data.sources import check_benchmark, load_problems
from falcon_h1r.entry import run_name, run_recipe

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World


def one_line(summary: dict[str, Any]) -> str:
    """The accuracies with their intervals, for the console."""
    names = [name for name in summary if f"{name}_interval" in summary]
    parts = ["{} {:.1%} ({:.1%} to {:.1%})".format(name, summary[name], *summary[f"{name}_interval"]) for name in names]
    return "  ".join(parts)


def check(config: Config) -> None:
    """What the user may have got wrong, found before a model is loaded."""
    require("evaluate.data.path", config.evaluate.data.path)
    require("model.path", config.model.path)
    check_model_path(config.model)
    check_benchmark(config.evaluate.data)


def evaluate(config: Config, folder: Path, world: World) -> list[dict[str, Any]]:
    """Run the stage; returns the judged samples. With `resume`, those of a stage that has ended are read.

    Raises:
        StopRequested: on every rank; nothing is kept of it.
    """
    from falcon_h1r.checkpoint import open_policy
    from falcon_h1r.checkpoint.files import replace_text
    from falcon_h1r.data.jsonl import read_jsonl, write_jsonl
    from falcon_h1r.evaluation.evaluate import evaluate_policy
    from falcon_h1r.evaluation.metrics import VOTES, summarise
    from falcon_h1r.rollout.torch_sampler import TorchSampler
    from falcon_h1r.training_run import open_tracker
    from falcon_h1r.verifier import Verifier

    if config.resume and world.on_main((folder / "summary.json").is_file):
        return world.on_main(lambda: [row for _, row in read_jsonl(folder / "samples.jsonl")])
    problems = load_problems(config.evaluate.data)[: config.evaluate.num_problems]
    model, tokenizer = open_policy(config, list, folder, world, "evaluate")
    num_own = len(world.share(problems)) * (config.evaluate.num_samples + 1)
    tracker = open_tracker(config, "evaluate", folder, world.is_main, run_name(config))
    with (
        tracker,
        Verifier.from_config(config.verifier, after_think=True) as verifier,
        tracker.progress(num_own, f"evaluate {folder.name}", "answers of this rank") as progress,
    ):
        sampler = TorchSampler(
            model,
            tokenizer,
            config.evaluate.max_slots,
            on_finished=lambda tokens: progress.advance(1, tokens),
            watch=world.watch,
        )
        rows = evaluate_policy(
            sampler, tokenizer, verifier, problems, config.evaluate, config.system_prompt, config.seed, world
        )
        summary = summarise(rows, k=min(VOTES, config.evaluate.num_samples), seed=config.seed)
        tracker.log({key: value for key, value in summary.items() if isinstance(value, (int, float))}, step=0)
    if world.is_main:
        write_jsonl(folder / "samples.jsonl", rows)
        replace_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")  # last: the stage has ended
        print(f"{folder.name}: {one_line(summary)}", flush=True)
    world.barrier()
    return rows


if __name__ == "__main__":
    run_recipe("evaluate", evaluate, check)
