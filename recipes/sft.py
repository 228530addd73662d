"""Cold-start SFT: traces in, `model/` out.

    python recipes/sft.py experiment=quickstart sft.data.path=runs/quickstart/curate/traces.jsonl
    python recipes/sft.py data=gsm8k sft.data.path=train.jsonl sft.num_steps=100
    torchrun --nproc-per-node 2 recipes/sft.py experiment=quickstart sft.data.path=traces.jsonl

Without `model.path`, a tokenizer is trained on the traces and a random model of `model.architecture` is made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path, require
from falcon_h1r.data.sources import check_benchmark, check_traces, load_traces
from falcon_h1r.entry import run_name, run_recipe

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World


def check(config: Config) -> None:
    """What the user may have got wrong, found before a model is loaded."""
    require("sft.data.path", config.sft.data.path)
    check_traces(config.sft.data)
    check_model_path(config.model)
    if config.dev.data.path is not None:
        check_benchmark(config.dev.data)


def sft(config: Config, folder: Path, world: World) -> Path:
    """Run the stage, or what is left of it; returns the folder of its model.

    Raises:
        StopRequested: on every rank, after a checkpoint; there is no model then.
    """
    from falcon_h1r.benchmark.flops import document_cost
    from falcon_h1r.checkpoint import open_policy, publish_policy
    from falcon_h1r.checkpoint.stored import open_newest
    from falcon_h1r.data.tokenisation import conversation_texts
    from falcon_h1r.distributed.batch_scaling import describe_scaling, scaled_to_batch
    from falcon_h1r.distributed.engines import open_engine
    from falcon_h1r.evaluation.dev import dev_evaluation
    from falcon_h1r.model.multipliers import check_learning_rate
    from falcon_h1r.sft.corpus import TrainingData, fit_documents, open_tokens
    from falcon_h1r.sft.loop import train_sft
    from falcon_h1r.sft.steps import plan_steps, total_steps
    from falcon_h1r.training_run import CHECKPOINTS, TrainingRun, open_tracker

    if config.resume and world.on_main((folder / "model").is_dir):
        return folder / "model"
    model, tokenizer = open_policy(
        config,
        lambda: conversation_texts(load_traces(config.sft.data), config.system_prompt),
        folder,
        world,
        "sft",
    )
    with world.watch.long("tokenising"):
        fitted = fit_documents(open_tokens(config, folder, tokenizer, world), config.sft.limits, config.sft.overlong)
    with world.watch.long("packing"):
        plan = plan_steps(config.sft, fitted.documents.lengths, config.seed, document_cost(model.config))
        batch_tokens, num_steps = plan.tokens_per_step, total_steps(config.sft, plan.steps_per_epoch)
    optimizer = scaled_to_batch(config.sft.optimizer, batch_tokens)
    if world.is_main:
        (folder / "traces_summary.json").write_text(json.dumps(fitted.summary(), indent=1) + "\n")
        print(f"sft: {fitted.describe()}")
        print(f"sft: {plan.describe(world.data_size)}")
        print(f"sft: {describe_scaling(config.sft.optimizer, batch_tokens)}", flush=True)
    check_learning_rate(model.config, optimizer.learning_rate, "sft.optimizer.learning_rate")
    with world.watch.long("starting the engine"):
        engine = open_engine(model, optimizer, num_steps, world, config.engine)
    data = TrainingData(fitted.documents, str(config.sft.data.path))
    stored = open_newest(config, "sft", folder / CHECKPOINTS, world) if config.resume else None
    with (
        open_tracker(config, "sft", folder, world.is_main, run_name(config), stored) as tracker,
        dev_evaluation(config, model, tokenizer, world, "sft") as evaluate_dev,
        TrainingRun(config, "sft", folder, engine, tracker, evaluate_dev, {"data": data}, stored) as run,
    ):
        train_sft(run, fitted.documents, config.sft, config.seed, plan)
    return publish_policy(engine, tokenizer, folder / "model")


if __name__ == "__main__":
    run_recipe("sft", sft, check)
