"""GRPO: problems and a model in, `model/` out.

    python recipes/grpo.py experiment=quickstart model.path=runs/quickstart/sft/model \
        grpo.data.path=runs/quickstart/curate/rl.jsonl
    python recipes/grpo.py data=gsm8k grpo.data.path=train.jsonl grpo.num_steps=3
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path, require
from falcon_h1r.config_checks_vllm import require_servers
from falcon_h1r.data.sources import check_benchmark, load_problems
from falcon_h1r.entry import run_name, run_recipe
from falcon_h1r.grpo.selection.handover import check_selected

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World


def check(config: Config) -> None:
    """What the user may have got wrong, found before a model is loaded."""
    from falcon_h1r.grpo.rewards import check_judges

    require("grpo.data.path", config.grpo.data.path)
    check_selected(config.grpo)
    check_judges(config)
    require_servers(config.grpo.rollout)
    check_model_path(config.model)
    if config.dev.data.path is not None:
        check_benchmark(config.dev.data)


def grpo(config: Config, folder: Path, world: World) -> Path:
    """Run the stage, or what is left of it; returns the folder of its model.

    Raises:
        StopRequested: on every rank, after a checkpoint; there is no model then.
    """
    from falcon_h1r.checkpoint import open_policy, publish_policy
    from falcon_h1r.checkpoint.stored import open_newest
    from falcon_h1r.data.tokenisation import question_texts
    from falcon_h1r.distributed.batch_scaling import describe_scaling, scaled_to_batch
    from falcon_h1r.distributed.engines import open_engine
    from falcon_h1r.evaluation.dev import dev_evaluation
    from falcon_h1r.grpo.alarms import Alarms
    from falcon_h1r.grpo.carried import CarriedRollouts
    from falcon_h1r.grpo.collect import Collector
    from falcon_h1r.grpo.learn import Learner
    from falcon_h1r.grpo.loop import train_grpo
    from falcon_h1r.grpo.reference import Reference
    from falcon_h1r.grpo.rewards import open_scorer
    from falcon_h1r.grpo.stream import open_stream
    from falcon_h1r.rollout.open_sampler import open_sampler
    from falcon_h1r.training_run import CHECKPOINTS, Resumable, TrainingRun, open_tracker

    if config.resume and world.on_main((folder / "model").is_dir):
        return folder / "model"
    problems = load_problems(config.grpo.data)
    model, tokenizer = open_policy(
        config,
        lambda: question_texts(problems, config.system_prompt),
        folder,
        world,
        "grpo",
    )
    if world.is_main:
        print(f"grpo: {describe_scaling(config.grpo.optimizer)}", flush=True)
    optimizer = scaled_to_batch(config.grpo.optimizer)
    reference = Reference(model) if config.grpo.loss.kl_coefficient else None  # before the engine takes the model
    with world.watch.long("starting the engine"):
        engine = open_engine(model, optimizer, config.grpo.num_steps, world, config.engine)
    stored = open_newest(config, "grpo", folder / CHECKPOINTS, world) if config.resume else None
    sampler = open_sampler(config, engine, tokenizer)
    with (
        open_tracker(config, "grpo", folder, world.is_main, run_name(config), stored) as tracker,
        open_scorer(config, tokenizer) as scorer,
        dev_evaluation(config, model, tokenizer, world, "grpo") as evaluate_dev,
    ):
        with world.watch.long("tokenising"):
            stream, unusable = open_stream(problems, tokenizer, config, scorer.check_problem)
        if world.is_main and any(unusable.values()):
            print(f"grpo: problems left out: {unusable}")
        carried, alarms = CarriedRollouts(), Alarms(config.grpo.alarms)
        state: dict[str, Resumable] = {"stream": stream, "alarms": alarms}
        with TrainingRun(config, "grpo", folder, engine, tracker, evaluate_dev, state, stored, carried) as run:
            collector = Collector(stream, sampler, scorer, carried, config.grpo, config.seed)
            train_grpo(run, collector, Learner(engine, config.grpo, reference), alarms)
    return publish_policy(engine, tokenizer, folder / "model")


if __name__ == "__main__":
    run_recipe("grpo", grpo, check)
