"""Scoring a run's checkpoints while it trains, as a job of its own.

    RUN/checkpoints/step_000120/   a new whole checkpoint of the run
    RUN/watch/step_000120/         its evaluation; the weights it was drawn from are removed afterwards
    RUN/watch/asked-1f0c....json   the settings by which it is scored, the same for all checkpoints
    RUN/watch/metrics.jsonl        a row a checkpoint; on W&B a run of its own in the training's group
    RUN/watch/best_model/          with checkpoint.keep_best=watch_... of the run: the best one's weights

Checkpoints are scored oldest first, each once, also over restarts of this job. One that the run rotates away before it
is read is passed over with a line. The job ends once the run has handed over its model and that has been scored, or
after `evaluate.watch.idle_minutes` without a new checkpoint.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from falcon_h1r.checkpoint.best import WATCHED, BestMark, mark_if_better
from falcon_h1r.checkpoint.files import find_fault, read_manifest, saved_steps, step_folder
from falcon_h1r.checkpoint.stored_model import publish_stored
from falcon_h1r.config import Config, ModelConfig
from falcon_h1r.data.file_lock import FileLock, StaleLocks
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World
from falcon_h1r.evaluation.run_folder import read_rows
from falcon_h1r.evaluation.store import agree_on_what_is_asked, flat
from falcon_h1r.tracking import Tracker
from falcon_h1r.training_run import CHECKPOINTS, METRICS
from falcon_h1r.types import InputError

EvaluateModel = Callable[
    [Path, Path], Mapping[str, Any]
]  # (model, folder for its evaluation) -> summary, on every rank
ALL_ROWS = sys.maxsize  # of a log that goes on
FREE = ("evaluate.work.", "evaluate.watch.", "evaluate.endpoint.", "evaluate.max_slots", "evaluate.compare_with")
LOOK_SECONDS = 1.0  # between two signs of life


@dataclass(slots=True)
class WatchedRun:
    """The training that is watched, as its folder shows it."""

    folder: Path  # of one stage: checkpoints/ and in the end model/ are in it
    config: Config  # of the training
    group: str  # under which its stages are on W&B
    model: ModelConfig  # what it started from
    passed_over: set[int] = field(default_factory=set)  # checkpoints that could not be read

    @classmethod
    def open(cls, folder: Path) -> WatchedRun:
        """The run in this folder: a recipe's own, or a stage's within a pipeline's.

        Raises:
            InputError: where it is no folder of a run, or a whole pipeline's.
        """
        key = f"evaluate.watch.run={folder}"
        if not folder.is_dir():
            raise InputError(f"{key}: no such folder")
        if stages := [stage for stage in ("sft", "grpo") if (folder / stage).is_dir()]:
            raise InputError(f"{key}: a pipeline's folder; name a stage's, {folder / stages[-1]}")
        folder = folder.resolve()
        for root in (folder, folder.parent):
            if (root / "config.yaml").is_file():
                config = _read_config(root / "config.yaml")
                return cls(folder, config, root.name, _started_from(config, folder, root))
        raise InputError(f"{key}: no config.yaml in it or above it, so it is no run")

    @property
    def watch_folder(self) -> Path:
        return self.folder / "watch"

    def next_model(self) -> NewModel | None:
        """The oldest that has not been scored, the model that was handed over last; None: nothing is new.

        Raises:
            RunEnded: where all has been scored, and nothing follows.
        """
        scored = {row["step"] for row in read_rows(self.watch_folder / METRICS)}
        has_ended = (self.folder / "model").is_dir()  # looked at first: what is saved until then is below
        saved = saved_steps(self.folder / CHECKPOINTS)
        for step in saved:
            if step not in scored | self.passed_over:
                return NewModel(step, step_folder(self.folder / CHECKPOINTS, step), is_checkpoint=True)
        if not has_ended:
            return None
        last = max([row["step"] for row in read_rows(self.folder / METRICS)] + saved, default=0)
        if last in scored:
            raise RunEnded
        return NewModel(last, self.folder / "model", is_checkpoint=False)


@dataclass(frozen=True, slots=True)
class NewModel:
    """What is to be scored."""

    step: int
    path: Path
    is_checkpoint: bool  # else a model's folder


class RunEnded(Exception):
    """The watched run has ended, and all of it is scored."""


def watch(config: Config, world: World, evaluate_model: EvaluateModel) -> None:
    """Score every new whole checkpoint of `evaluate.watch.run`, until the run ends or nothing comes any more.

    Args:
        evaluate_model: as recipes/evaluate.py evaluates a model into a folder; called on every rank.

    Raises:
        InputError: where it is no run, another job watches it, or its checkpoints were scored with other settings.
        StopRequested: on every rank; what is scored is kept, and a restart goes on.
    """
    settings = config.evaluate.watch
    assert settings.run is not None
    folder = Path(settings.run)
    run = world.on_main(lambda: WatchedRun.open(folder))
    with _locked(run.watch_folder, world, config), _tracker(config, run, world) as tracker:
        last_news = time.monotonic()
        while not isinstance(found := world.on_main(partial(_look, run)), str):
            if found is not None:
                _score(run, found, world, tracker, evaluate_model)
                last_news = time.monotonic()
            elif world.broadcast(time.monotonic() - last_news) < 60 * settings.idle_minutes:
                _wait(world, settings.poll_seconds)
            else:
                found = f"nothing new for {settings.idle_minutes:g} minutes"
                break
    if world.is_main:
        print(f"watch: {folder}: {found}", flush=True)


def _look(run: WatchedRun) -> NewModel | str | None:
    """What is new, or in words why nothing follows."""
    try:
        return run.next_model()
    except RunEnded:
        return "has ended, and all of it is scored"


def _wait(world: World, seconds: float) -> None:
    """Until it is time to look again.

    Raises:
        StopRequested: on every rank.
    """
    until = time.monotonic() + seconds
    while not world.watch.stop_requested and (left := until - time.monotonic()) > 0:
        world.watch.beat("watching")
        time.sleep(min(left, LOOK_SECONDS))
    if world.any(world.watch.stop_requested):
        raise StopRequested("stopped watching; the same command goes on")


def _score(run: WatchedRun, found: NewModel, world: World, tracker: Tracker, evaluate_model: EvaluateModel) -> None:
    """One model: its weights, its evaluation, its row, and the mark where it is the best."""
    folder = run.watch_folder / f"step_{found.step:06d}"
    with world.watch.long("loading"):
        path = world.on_main(lambda: _weights_of(run, found, folder)) if found.is_checkpoint else found.path
    if path is None:
        run.passed_over.add(found.step)
        return
    metrics = numbers_in(evaluate_model(path, folder))
    if world.is_main:
        is_best = _mark(run, found, metrics)
        if found.is_checkpoint:
            _put_away(path, run.watch_folder / "best_model" if is_best else None)
        tracker.log(metrics, found.step)  # last: with its row, a checkpoint is done
        tracker.sync()
    world.barrier()


def _weights_of(run: WatchedRun, found: NewModel, folder: Path) -> Path | None:
    """A model folder with a checkpoint's weights; None where they cannot be had any more.

    One that was written before a restart is whole, and taken: its checkpoint may be gone by now.
    """
    model = folder / "model"
    if model.is_dir():
        return model
    reason = "the run has rotated it away"
    try:
        fault = find_fault(found.path, read_manifest(found.path).items())
        if fault is None:
            folder.mkdir(parents=True, exist_ok=True)
            return publish_stored(found.path, run.model, model, run.config.seed)
        if found.path.is_dir():
            reason = fault
    except (OSError, ValueError, SafetensorError):  # InputError among them
        if found.path.is_dir():
            raise
    print(f"watch: step {found.step} is passed over: {reason}", flush=True)
    return None


def _mark(run: WatchedRun, found: NewModel, metrics: Mapping[str, float]) -> bool:
    """Whether this is the best so far by the run's own `checkpoint.keep_best`, which is marked then."""
    keep_best = run.config.checkpoint.keep_best
    if keep_best is None or not keep_best.startswith(WATCHED):
        return False
    name = keep_best.removeprefix(WATCHED)
    if name not in metrics:
        there_are = ", ".join(metrics)
        raise InputError(f"checkpoint.keep_best={keep_best} of {run.folder}: no such metric (there are: {there_are})")
    return mark_if_better(run.folder / CHECKPOINTS, BestMark(keep_best, found.step, float(metrics[name])))


def _put_away(model: Path, best: Path | None) -> None:
    """Weights that have been scored: kept as the best, or removed."""
    if best is not None:
        shutil.rmtree(best, ignore_errors=True)
        os.replace(model, best)
    else:
        shutil.rmtree(model, ignore_errors=True)


def numbers_in(summary: Mapping[str, Any]) -> dict[str, float]:
    """A summary's own numbers: `pass_at_1`, or of several benchmarks `aime24.pass_at_1`; no published ones."""
    numbers = {
        name: value
        for name, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith("reference_")
    }
    for benchmark, its_summary in summary.get("benchmarks", {}).items():
        numbers.update({f"{benchmark}.{name}": value for name, value in numbers_in(its_summary).items()})
    return numbers


# -----------------------------------------------------------------------------
# The run's folder


def as_the_run_has_it(config: Config, run: WatchedRun) -> Config:
    """With the training's dtype and system prompt: what is trained with them is scored so. Says what differed."""
    dtype, prompt = run.config.model.dtype, run.config.system_prompt
    if config.model.dtype != dtype:
        print(f"watch: model.dtype={dtype}, as in {run.folder}", flush=True)
    if config.system_prompt != prompt:
        print(f"watch: system_prompt={prompt[:60]!r}{'...' * (len(prompt) > 60)}, as in {run.folder}", flush=True)
    return replace(config, model=replace(config.model, dtype=dtype), system_prompt=prompt)


def _read_config(path: Path) -> Config:
    """The settings that a run was begun with."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{path}: not the settings of a run ({' '.join(str(error).split())[:200]})") from None
    assert isinstance(config, Config)
    return config


def _started_from(config: Config, folder: Path, root: Path) -> ModelConfig:
    """The model that a stage started from: a pipeline's stages follow each other, others take `model.path`."""
    settings, path = config.model, config.model.path
    if folder != root and folder.name == "grpo":
        path = str(root / "sft" / "model")
    elif path is None:
        path = str(root / "base" / "model" if folder != root else folder / "base")
    return settings if path == settings.path else replace(settings, path=path, revision=None)


def what_is_scored(config: Config) -> dict[str, Any]:
    """The settings that make the scores of two checkpoints comparable."""
    found = flat({"evaluate": asdict(config.evaluate), "scaling": asdict(config.scaling)})
    found |= {"seed": config.seed, "system_prompt": config.system_prompt}
    return {key: value for key, value in found.items() if not key.startswith(FREE)}


def _tracker(config: Config, run: WatchedRun, world: World) -> Tracker:
    return Tracker(
        run.watch_folder,
        "watch",
        config.tracking,
        world.is_main,
        asdict(config),
        group=run.group,
        resume_step=ALL_ROWS,
    )


@contextmanager
def _locked(folder: Path, world: World, config: Config) -> Iterator[None]:
    """One job at a time, and the next as the first: scores of other settings would choose another best.

    Raises:
        InputError: where another is at it, or was with other settings.
    """
    lock = FileLock(folder / "lock")

    def acquire() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if lock.acquire() or (StaleLocks().remove_if_stale(folder / "lock") and lock.acquire()):
            return
        raise InputError(f"{folder / 'lock'}: another job watches this run; remove the file if it has died elsewhere")

    world.on_main(acquire)
    try:
        world.on_main(lambda: agree_on_what_is_asked(folder, what_is_scored(config)))
        yield
    finally:
        if world.is_main:
            lock.release()
