"""A save and a resume: a checkpoint of the run's own kind, read by a fresh engine, equal to the state bit for bit.

All of it goes the way of a run: every rank's fragments, hashed and named once all are on the disk; a fresh engine with
other weights reads them back, and makes a step.
"""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from falcon_h1r.checkpoint.saver import Saver
from falcon_h1r.checkpoint.state import HostCopies, SharedState, config_sha256, generator_states
from falcon_h1r.checkpoint.stored import StoredState, newest_checkpoint
from falcon_h1r.config_run import CheckpointConfig
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.doctor.engine import take_step
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, Finding, graded

NAME, FOLDER = "save and resume", "doctor_checkpoints"
OTHER_SEED = 1  # other weights than those that were saved: what is not read shows

Lines = dict[str, Tensor]  # copies of a rank's stretches, by the name that each has in its file


def check_resume(examination: Examination) -> list[Finding]:
    """Save the state after a step, load it into a fresh engine, compare every stretch, go on."""
    world, root = examination.world, examination.folder / FOLDER
    engine = examination.opened_engine()
    take_step(engine, examination)
    world.on_main(lambda: shutil.rmtree(root, ignore_errors=True))
    saved = HostCopies().copy(engine.fragments())
    position = (engine.steps_done, engine.updates_done)
    started = time.perf_counter()
    failure = save(engine, examination, root)
    save_seconds = time.perf_counter() - started
    if failure is not None:
        return [Finding(NAME, FAILED, failure, "a run could not save: see the file system's lines")]
    examination.engine = None
    del engine  # a model of full size would not fit twice
    gc.collect()
    fresh = examination.open_engine(seed=OTHER_SEED)
    started = time.perf_counter()
    load(fresh, root)
    load_seconds = time.perf_counter() - started
    differing = differing_lines(saved, HostCopies().copy(fresh.fragments()))
    if (fresh.steps_done, fresh.updates_done) != position:
        differing.append("the position in the schedule")
    outcome, _ = take_step(fresh, examination)
    all_differing = [name for names in world.gather(differing) for name in names]
    num_bytes = sum(world.gather(sum(line.nbytes for line in saved.values())))
    if world.is_main:
        shutil.rmtree(root, ignore_errors=True)
    if all_differing:
        measured = f"{len(all_differing)} stretches differ after loading, {all_differing[0]} among them"
        return [Finding(NAME, FAILED, measured, "a resumed run would not go on as it was: do not rely on checkpoints")]
    measured = f"bit for bit; {num_bytes / 1e6:.1f} MB saved in {save_seconds:.2f} s, loaded in {load_seconds:.2f} s"
    advice = "the step after loading was refused: what was read is not finite"
    return [graded(NAME, OK if outcome.applied else FAILED, measured, advice)]


def save(engine: Engine, examination: Examination, root: Path) -> str | None:
    """Write a checkpoint and wait for it; why it could not be written."""
    config = examination.config
    shared = SharedState(
        stage="doctor",
        step=engine.steps_done,
        updates=engine.updates_done,
        world_size=engine.world.size,
        engine=asdict(config.engine),
        config_sha256=config_sha256(config),
    )
    saver = Saver(root, CheckpointConfig(asynchronous=False, keep=1), engine.world)
    saver.start(engine.fragments(), generator_states(), shared)
    return saver.last_failure


def load(engine: Engine, root: Path) -> None:
    """The newest checkpoint, its files held against their hashes first.

    Raises:
        RuntimeError: where there is none.
    """
    newest = newest_checkpoint(root, engine.world)
    if newest is None:
        raise RuntimeError(f"{root}: the checkpoint that was written is not there")
    with StoredState(newest) as stored:
        stored.load_into(engine)


def differing_lines(saved: Lines, loaded: Lines) -> list[str]:
    """Stretches that are not equal to the last bit, or are on one side only."""
    same = {name for name in saved.keys() & loaded.keys() if torch.equal(saved[name], loaded[name])}
    return sorted((saved.keys() | loaded.keys()) - same)
