"""Evaluation: a model and problems in, samples.jsonl, summary.json and page.html out.

    python recipes/evaluate.py experiment=quickstart model.path=runs/quickstart/grpo/model \
        evaluate.data.path=runs/quickstart/curate/eval.jsonl
    python recipes/evaluate.py data=gsm8k model.path=my-model evaluate.data.path=test.jsonl

With evaluate.benchmarks each has a folder of its own in the run's. Processes that are started with one run_dir and
resume=true share the work. With evaluate.watch.run the models are the checkpoints of a training that is under way. See
docs/evaluation.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path, require
from falcon_h1r.entry import run_name, run_recipe
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World
    from falcon_h1r.evaluation.tasks import Task


def one_line(summary: dict[str, Any]) -> str:
    """The accuracies with their intervals, for the console."""
    names = [name for name in summary if f"{name}_interval" in summary]
    parts = ["{} {:.1%} ({:.1%} to {:.1%})".format(name, summary[name], *summary[f"{name}_interval"]) for name in names]
    return "  ".join(parts)


def check(config: Config) -> None:
    """What the user may have got wrong, found before a model is loaded."""
    from falcon_h1r.evaluation.benchmarks import check_tasks

    is_watching = config.evaluate.watch.run is not None
    if is_watching and config.evaluate.engine != "torch":
        raise InputError(
            f"evaluate.engine={config.evaluate.engine}: evaluate.watch.run needs torch, to load checkpoints"
        )
    if not is_watching and (config.evaluate.engine == "torch" or config.evaluate.endpoint.api == "completions"):
        require("model.path", config.model.path)
        check_model_path(config.model)
    if config.evaluate.engine == "endpoint":
        from falcon_h1r.scaling.endpoint import check_endpoint

        check_endpoint(config.evaluate.endpoint)
    check_tasks(config)


def evaluate(config: Config, folder: Path, world: World) -> list[dict[str, Any]]:
    """Run the stage; returns the judged samples of `evaluate.data`, without their texts (of benchmarks: nothing).

    What is there already, of this run that was interrupted or of processes that share its folder, is not drawn again.

    Raises:
        StopRequested: on every rank; all that was drawn is kept.
    """
    from falcon_h1r.distributed.watch import StopRequested
    from falcon_h1r.evaluation.benchmarks import bridge_lines, tasks_of
    from falcon_h1r.evaluation.engines import open_engine, what_draws_and_judges
    from falcon_h1r.evaluation.evaluate import check_comparison, evaluate_tasks, finish_run, finish_task, light_rows
    from falcon_h1r.evaluation.merge import SAMPLES_FILE
    from falcon_h1r.evaluation.store import is_ended
    from falcon_h1r.evaluation.watch import numbers_in
    from falcon_h1r.training_run import open_tracker

    has_benchmarks = bool(config.evaluate.benchmarks)
    world.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    if has_benchmarks or not world.on_main(lambda: is_ended(folder)):
        found = tasks_of(config)
        tasks = {folder / task.name if has_benchmarks else folder: task for task in found}
        world.on_main(lambda: check_comparison(config, tasks))
        left = world.on_main(lambda: [task_folder for task_folder in tasks if not is_ended(task_folder)])
        is_main = world.is_main and config.evaluate.work.merge
        tracker = open_tracker(replace(config, resume=False), "evaluate", folder, is_main, run_name(config))
        with tracker:
            if left:
                for line in bridge_lines(config) if is_main else ():
                    print(line, flush=True)
                engine = open_engine(config, found, folder, world)

                def ended(task_folder: Path, task: Task) -> None:
                    summary = finish_task(config, task_folder, task, engine.description)
                    print(f"{task_folder.name}: {one_line(summary)}", flush=True)
                    numbers = numbers_in(summary)
                    tracker.log({f"{task.name}/{key}" if has_benchmarks else key: numbers[key] for key in numbers}, 0)

                others = world.on_main(lambda: what_draws_and_judges(config, engine))
                try:
                    evaluate_tasks(config, tasks, engine, others, world, tracker, ended)
                except StopRequested:
                    raise StopRequested("stopped; resume=true goes on with what has been drawn") from None
                finally:
                    engine.close()
    if world.is_main and config.evaluate.work.merge:
        finish_run(config, folder)
    world.barrier()
    if has_benchmarks or not is_ended(folder):
        return []
    return world.on_main(lambda: list(light_rows(folder / SAMPLES_FILE)))


def evaluate_or_watch(config: Config, folder: Path, world: World) -> None:
    """One model, or with evaluate.watch.run each new checkpoint of a run.

    Raises:
        StopRequested: on every rank.
    """
    from falcon_h1r.evaluation.evaluate import read_summary
    from falcon_h1r.evaluation.watch import WatchedRun, as_the_run_has_it, watch

    if config.evaluate.watch.run is None:
        evaluate(config, folder, world)
        return
    watched = Path(config.evaluate.watch.run)
    of_run = world.on_main(lambda: as_the_run_has_it(config, WatchedRun.open(watched)))
    silent = replace(config.tracking, wandb="disabled")  # the numbers of all checkpoints are one run's there

    def evaluate_model(model: Path, into: Path) -> dict[str, Any]:
        of_model = replace(of_run.model, path=str(model), revision=None)
        evaluate(replace(of_run, model=of_model, tracking=silent), into, world)
        return world.on_main(lambda: read_summary(into))

    watch(config, world, evaluate_model)


if __name__ == "__main__":
    run_recipe("evaluate", evaluate_or_watch, check)
