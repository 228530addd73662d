"""The whole way: curate -> SFT -> GRPO -> evaluate -> report. Each stage reads only what the one before left on disk.

Where grpo.selection asks for anything, RL's problems are selected by the SFT model before GRPO.

python recipes/pipeline.py experiment=quickstart
python recipes/pipeline.py experiment=quickstart seed=1 tracking.wandb=offline
python recipes/pipeline.py experiment=quickstart run_dir=runs/quickstart resume=true
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import recipes.curate
import recipes.evaluate
import recipes.grpo
import recipes.selection
import recipes.sft
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path, require
from falcon_h1r.config_grpo import SelectionConfig
from falcon_h1r.config_selection import asks_for_selection
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.sources import check_benchmark
from falcon_h1r.entry import run_recipe
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World

T = TypeVar("T")
STAGE_SECONDS = "stage_seconds.json"


def pipeline(config: Config, folder: Path, world: World) -> None:
    """Run all stages, each into a folder of its own under `folder`; summary.json and report.html at the end.

    With `resume`, stages that have ended are not repeated, and the one that was interrupted goes on.
    """
    from falcon_h1r.checkpoint.files import replace_text
    from falcon_h1r.evaluation.report import write_report
    from falcon_h1r.evaluation.summary import summarise_pipeline
    from falcon_h1r.tracking import MemoryMeter, environment_versions

    seconds = world.on_main(lambda: read_seconds(folder) if config.resume else {})

    def timed(stage: str, work: Callable[[], T]) -> T:
        if world.is_main:
            print(f"\n--- {stage} {'-' * (72 - len(stage))}", flush=True)
        started = time.perf_counter()
        try:
            return work()
        finally:  # also where it is interrupted: the time of all tries counts, but for those that are killed
            seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - started, 2)
            if world.is_main:
                replace_text(folder / STAGE_SECONDS, json.dumps(seconds, indent=2) + "\n")

    with MemoryMeter() as memory:
        curated = timed("curate", lambda: recipes.curate.curate(config, folder / "curate", world))
        config = reading_from(config, curated)

        models: dict[str, Path] = {}
        models["base"] = timed("base", lambda: make_base(config, folder / "base" / "model", world))
        from_base = starting_from(config, models["base"])
        models["sft"] = timed("sft", lambda: recipes.sft.sft(from_base, folder / "sft", world))
        from_sft = starting_from(config, models["sft"])
        if asks_for_selection(config.grpo.selection):
            selected = timed("select", lambda: recipes.selection.select(from_sft, folder / "select", world))
            from_sft.grpo.data = SourceConfig(path=str(selected / "rl.jsonl"), curated=True)
        models["grpo"] = timed("grpo", lambda: recipes.grpo.grpo(from_sft, folder / "grpo", world))
        samples = timed("evaluate", lambda: evaluate_all(config, models, folder / "evaluate", world))
    peak_memory_gib = sum(world.gather(memory.peak_gib))

    if world.is_main:
        summary = summarise_pipeline(samples, seconds, config.seed, config.scaling)
        summary.update(peak_memory_gib=round(peak_memory_gib, 3), versions=environment_versions())
        replace_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        print(f"\nsummary: {folder / 'summary.json'}\nreport:  {write_report(folder)}", flush=True)
    world.barrier()


def read_seconds(folder: Path) -> dict[str, float]:
    """By stage, of the tries so far."""
    path = folder / STAGE_SECONDS
    return json.loads(path.read_text()) if path.is_file() else {}


def evaluate_all(
    config: Config, models: dict[str, Path], folder: Path, world: World
) -> dict[str, list[dict[str, Any]]]:
    """Every model on the same problems: the judged samples by model."""
    return {
        name: recipes.evaluate.evaluate(starting_from(config, model), folder / name, world)
        for name, model in models.items()
    }


def make_base(config: Config, folder: Path, world: World) -> Path:
    """The model that SFT starts from: `model.path`, or a random one with a tokenizer trained on the traces."""
    from falcon_h1r.checkpoint import publish_random_base
    from falcon_h1r.data.sources import load_traces
    from falcon_h1r.data.tokenisation import conversation_texts

    if config.model.path is not None:
        return Path(config.model.path)

    def publish() -> Path:
        texts = conversation_texts(load_traces(config.sft.data), config.system_prompt)
        return publish_random_base(config, texts, folder)

    return world.on_main(publish)


def reading_from(config: Config, curated: Path) -> Config:
    """The config with data taken from curation's output: all of it where problems were generated, else the traces."""
    config = copy.deepcopy(config)
    config.sft.data = SourceConfig(path=str(curated / "traces.jsonl"), curated=True)
    if not config.curate.sources:
        for stage, split in ((config.grpo, "rl"), (config.dev, "dev"), (config.evaluate, "eval")):
            stage.data = SourceConfig(path=str(curated / f"{split}.jsonl"), curated=True)
    return config


def starting_from(config: Config, model: Path) -> Config:
    """The config with a stage's model taken from another's output."""
    config = copy.deepcopy(config)
    if str(model) != config.model.path:
        config.model.path, config.model.revision = str(model), None
    return config


def check(config: Config) -> None:
    """What the user may have got wrong in any stage, found before the first."""
    from falcon_h1r.checkpoint import check_training

    recipes.curate.check(config)
    check_model_path(config.model)
    if config.evaluate.benchmarks or config.evaluate.engine != "torch":
        key = "benchmarks" if config.evaluate.benchmarks else f"engine={config.evaluate.engine}"
        raise InputError(
            f"evaluate.{key}: a pipeline evaluates the models that it makes, on evaluate.data; the rest is for "
            "recipes/evaluate.py"
        )
    for stage in ("sft", "grpo"):
        check_training(config, stage)
    if config.curate.sources:  # traces of one's own come without problems for the other stages
        candidates = copy.deepcopy(config)
        candidates.grpo.selection = SelectionConfig()  # they are selected on the way
        recipes.grpo.check(candidates)
        require("evaluate.data.path", config.evaluate.data.path)
        check_benchmark(config.evaluate.data)


if __name__ == "__main__":
    run_recipe("pipeline", pipeline, check)
