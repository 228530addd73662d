"""Saving while training goes on: copied at a step's border, written in a thread, agreed by all ranks, then named.

    writing     every rank's thread writes and hashes its own files into step_XXXXXX.partial
    publishing  all have: rank 0's thread writes the manifest, renames the folder, removes old ones
    dropping    one could not (a full disk): rank 0's thread removes what there is; the last checkpoint stays whole

From one to the next the ranks' main threads go together, at a step's border: a thread meets no other rank.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falcon_h1r.checkpoint.background import BackgroundWork
from falcon_h1r.checkpoint.best import BestMark, mark_if_better, nearest_step, read_best
from falcon_h1r.checkpoint.files import (
    FileRecord,
    partial_folder,
    publish_folder,
    rotate,
    saved_steps,
    step_folder,
)
from falcon_h1r.checkpoint.state import HostCopies, Rows, SharedState, write_rank
from falcon_h1r.config_run import CheckpointConfig
from falcon_h1r.distributed.fragments import Fragment
from falcon_h1r.distributed.world import World

LOOK_SECONDS = 1.0  # between two signs of life while waiting for the thread


@dataclass(slots=True)
class _Flight:
    """A save on its way."""

    step: int
    phase: str
    work: BackgroundWork[Any] | None  # None: this rank has no part in the phase


class Saver:
    """Writes checkpoints under `root`, at most one at a time. Every method is called on every rank, in the same order.

    Args:
        before_naming: called in rank 0's thread when all files are on the disk: what has to be there before them.
        last_step: of the checkpoint that the run went on from.
    """

    def __init__(
        self,
        root: Path,
        settings: CheckpointConfig,
        world: World,
        before_naming: Callable[[], None] = lambda: None,
        last_step: int | None = None,
    ) -> None:
        self.root, self.settings, self.world = root, settings, world
        self.last_step = last_step  # of the newest whole checkpoint
        self.last_failure: str | None = None
        self.num_failures = 0
        self.cpu_seconds = 0.0  # of this rank's threads so far
        self._before_naming = before_naming
        self._copies = HostCopies()
        self._flight: _Flight | None = None

    @property
    def in_flight(self) -> bool:
        """Whether one is on its way: the same on every rank."""
        return self._flight is not None

    @property
    def is_busy(self) -> bool:
        """Whether this rank's thread still works on it."""
        return self._flight is not None and self._flight.work is not None and self._flight.work.is_busy

    def note(self, metrics: Mapping[str, float], step: int) -> None:
        """Mark the step as the best so far where `keep_best` says so. A disk that is full costs no run."""
        metric = self.settings.keep_best
        if not self.world.is_main or metric is None or metric not in metrics:
            return
        try:
            mark_if_better(self.root, BestMark(metric, step, float(metrics[metric])))
        except OSError as error:
            print(f"warning: step {step} could not be marked as the best ({error}); the one before stays", flush=True)

    def start(
        self,
        fragments: Sequence[Fragment],
        generators: Mapping[str, Any],
        shared: SharedState,
        carried: Rows | None = None,
    ) -> None:
        """Copy the state of this moment and begin to write it; without `asynchronous`, also end.

        Args:
            carried: called in this rank's thread.
        """
        assert self._flight is None, "at most one checkpoint is written at a time"
        beside = partial_folder(step_folder(self.root, shared.step))
        tensors = self._copies.copy(fragments)
        own_part = shared if self.world.is_main else None
        rank = self.world.rank
        work = BackgroundWork(lambda: write_rank(beside, rank, tensors, generators, own_part, carried))
        self._flight = _Flight(shared.step, "writing", work)
        if not self.settings.asynchronous:
            self.wait()

    def advance(self, num_busy: float) -> None:
        """Go on to the next phase, or end, once no rank's thread is busy.

        Args:
            num_busy: ranks for which `is_busy`: the sum over all of them.
        """
        flight = self._flight
        if flight is None or num_busy:
            return
        outcome = flight.work.outcome() if flight.work is not None else None
        self.cpu_seconds += flight.work.cpu_seconds if flight.work is not None else 0.0
        own_failure = f"rank {self.world.rank}: {outcome}" if isinstance(outcome, OSError) else None
        written: dict[str, FileRecord] = outcome if isinstance(outcome, dict) else {}
        reports = self.world.gather((own_failure, written))
        failure = next((failure for failure, _ in reports if failure is not None), None)
        if flight.phase == "writing" and failure is None:
            records = {name: record for _, written in reports for name, record in written.items()}
            self._go_on("publishing", lambda: self._publish(flight.step, records))
        elif flight.phase == "writing":
            self._note_failure(flight.step, failure)
            self._go_on("dropping", lambda: self._drop(flight.step))
        else:
            self._flight = None
            if flight.phase == "publishing" and failure is None:
                self.last_step = flight.step
            elif failure is not None:
                self._note_failure(flight.step, failure)

    def wait(self) -> None:
        """Until nothing is on its way."""
        while (flight := self._flight) is not None:
            self.world.watch.beat("saving", flight.step)
            while flight.work is not None and not flight.work.wait(LOOK_SECONDS):
                self.world.watch.beat("saving", flight.step)
            self.advance(0)  # which waits for the others

    def _go_on(self, phase: str, work: Callable[[], None]) -> None:
        """Into a phase in which rank 0 alone has something to do."""
        assert self._flight is not None
        self._flight = _Flight(self._flight.step, phase, BackgroundWork(work) if self.world.is_main else None)

    def _publish(self, step: int, records: Mapping[str, FileRecord]) -> None:
        try:
            self._before_naming()
            publish_folder(step_folder(self.root, step), records)
        except OSError:
            self._drop(step)
            raise
        with suppress(OSError):  # what cannot be removed now, the next rotation tries again
            rotate(self.root, step, self.settings.keep, self._best_of(step))

    def _best_of(self, newest: int) -> int | None:
        """The checkpoint up to `newest` that stands for the best value of `keep_best`."""
        metric = self.settings.keep_best
        mark = read_best(self.root, metric) if metric is not None else None
        return nearest_step([step for step in saved_steps(self.root) if step <= newest], mark.step) if mark else None

    def _drop(self, step: int) -> None:
        shutil.rmtree(partial_folder(step_folder(self.root, step)), ignore_errors=True)

    def _note_failure(self, step: int, failure: str | None) -> None:
        self.num_failures += 1
        self.last_failure = failure
        if self.world.is_main:
            print(f"warning: the checkpoint of step {step} could not be written ({failure}); {self.whole_one}")

    @property
    def whole_one(self) -> str:
        """What there is to go on from, in words."""
        if self.last_step is None:
            return "there is none yet"
        return f"the newest whole one is {step_folder(self.root, self.last_step)}"
