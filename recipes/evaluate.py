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
from falcon_h1r.config_checks import require
from falcon_h1r.data.sources import check_problems, load_problems
from falcon_h1r.entry import run_recipe

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World

VOTES = 8  # pass@8 and maj@8, where there are as many samples


def one_line(summary: dict[str, Any]) -> str:
    """The accuracies with their intervals, for the console."""
    names = [name for name in summary if f"{name}_interval" in summary]
    parts = ["{} {:.1%} ({:.1%} to {:.1%})".format(name, summary[name], *summary[f"{name}_interval"]) for name in names]
    return "  ".join(parts)


def check(config: Config) -> None:
    """What the user may have got wrong, found before a model is loaded."""
    require("evaluate.data.path", config.evaluate.data.path)
    require("model.path", config.model.path)
    check_problems(config.evaluate.data)


def evaluate(config: Config, folder: Path, world: World) -> list[dict[str, Any]]:
    """Run the stage; returns the judged samples."""
    from falcon_h1r.checkpoint import open_policy
    from falcon_h1r.data.jsonl import write_jsonl
    from falcon_h1r.evaluation.evaluate import evaluate_policy
    from falcon_h1r.evaluation.metrics import summarise
    from falcon_h1r.rollout.torch_sampler import TorchSampler
    from falcon_h1r.verifier import Verifier

    problems = load_problems(config.evaluate.data)[: config.evaluate.num_problems]
    model, tokenizer = open_policy(config, list, folder, world, limits=config.evaluate.limits)
    sampler = TorchSampler(model, tokenizer, config.evaluate.max_slots)
    with Verifier(config.verifier.num_workers, config.verifier.deadline_seconds, after_think=True) as verifier:
        rows = evaluate_policy(
            sampler, tokenizer, verifier, problems, config.evaluate, config.system_prompt, config.seed, world
        )
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "samples.jsonl", rows)
        summary = summarise(rows, k=min(VOTES, config.evaluate.num_samples), seed=config.seed)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(f"{folder.name}: {one_line(summary)}", flush=True)
    world.barrier()
    return rows


if __name__ == "__main__":
    run_recipe("evaluate", evaluate, check)
