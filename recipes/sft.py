"""Cold-start SFT: traces in, `model/` out.

    python recipes/sft.py experiment=quickstart sft.data.path=runs/quickstart/curate/traces.jsonl
    python recipes/sft.py data=gsm8k sft.data.path=train.jsonl sft.num_steps=100
    torchrun --nproc-per-node 2 recipes/sft.py experiment=quickstart sft.data.path=traces.jsonl

Without `model.path`, a tokenizer is trained on the traces and a random model of `model.architecture` is made.
"""

from __future__ import annotations

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
    from falcon_h1r.checkpoint import open_policy, publish_policy
    from falcon_h1r.checkpoint.stored import open_newest
    from falcon_h1r.data.tokenisation import conversation_texts, encode_traces
    from falcon_h1r.distributed.batch_scaling import describe_scaling, mean_batch_tokens, scaled_to_batch
    from falcon_h1r.distributed.engines import open_engine
    from falcon_h1r.evaluation.dev import dev_evaluation
    from falcon_h1r.model.multipliers import check_learning_rate
    from falcon_h1r.sft.loop import TrainingData, fit_documents, total_steps, train_sft
    from falcon_h1r.training_run import CHECKPOINTS, TrainingRun, open_tracker

    if config.resume and world.on_main((folder / "model").is_dir):
        return folder / "model"
    traces = load_traces(config.sft.data)
    model, tokenizer = open_policy(
        config,
        lambda: conversation_texts(traces, config.system_prompt),
        folder,
        world,
        "sft",
    )
    with world.watch.long("tokenising"):
        documents = encode_traces(tokenizer, traces, config.system_prompt)
        fitted = fit_documents(documents, config.sft.limits, config.sft.overlong)
    if world.is_main:
        print(
            f"sft: {len(fitted.documents)} traces; {fitted.num_dropped} beyond the limits dropped, "
            f"{fitted.num_trimmed} trimmed, {fitted.num_weightless} of weight 0 left out",
            flush=True,
        )
    batch_tokens = mean_batch_tokens(fitted.documents, config.sft.batch_sequences)
    optimizer = scaled_to_batch(config.sft.optimizer, batch_tokens)
    check_learning_rate(model.config, optimizer.learning_rate, "sft.optimizer.learning_rate")
    if world.is_main:
        print(f"sft: {describe_scaling(config.sft.optimizer, batch_tokens)}", flush=True)
    num_steps = total_steps(config.sft, len(fitted.documents))
    with world.watch.long("starting the engine"):
        engine = open_engine(model, optimizer, num_steps, world, config.engine)
    data = TrainingData(fitted.documents, str(config.sft.data.path))
    stored = open_newest(config, "sft", folder / CHECKPOINTS, world) if config.resume else None
    with (
        open_tracker(config, "sft", folder, world.is_main, run_name(config), stored) as tracker,
        dev_evaluation(config, model, tokenizer, world, "sft") as evaluate_dev,
        TrainingRun(config, "sft", folder, engine, tracker, evaluate_dev, {"data": data}, stored) as run,
    ):
        train_sft(run, fitted.documents, config.sft, config.seed)
    return publish_policy(engine, tokenizer, folder / "model")


if __name__ == "__main__":
    run_recipe("sft", sft, check)
