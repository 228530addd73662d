"""Where a step's batch comes from, and when the sampler is given the new weights.

`InTurn` samples, then trains, then syncs: rollouts are the policy's own. `Overlapped` samples the next batch in a
thread while this one is learnt from, with the weights of one step before; the importance weight of the objective
answers for the gap (falcon_h1r.grpo.losses).

                 main thread    take 1 | sync 1 | train on 1 | take 2 | sync 2 | train on 2
                 second thread                  | draw 2 with weights 1        | draw 3 with weights 2

A checkpoint taken meanwhile is of the stream before the batch in flight, which a resumed run draws again, with newer
weights: it goes on soundly, but not bit for bit as if it had not been interrupted.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Protocol

from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.grpo.collect import Collector, GroupBatch
from falcon_h1r.rollout.sampler import Sampler
from falcon_h1r.types import InputError

LOOK_SECONDS = 0.5  # between two looks at the thread


class BatchSource(Protocol):
    """Batches, one after the other. Every rank calls the same, in the same order."""

    def take(self, is_last: bool) -> GroupBatch:
        """The next batch.

        Raises:
            StopRequested: on every rank.
        """
        ...

    def sync(self) -> None:
        """The policy has learnt from the batch that was taken last."""
        ...


def policy_version(engine: Engine, updates_per_batch: int) -> int:
    """The number of batches that the engine's policy has learnt from: those without an update do not count."""
    return -(-engine.updates_done // updates_per_batch)


def sync_sampler(sampler: Sampler, engine: Engine, updates_per_batch: int) -> None:
    """Give the sampler the engine's weights, and with them the policy's version."""
    sampler.policy_version = policy_version(engine, updates_per_batch) - 1
    sampler.load_weights(engine)


@contextmanager
def open_batches(collector: Collector, engine: Engine, wait_seconds: float | None = None) -> Iterator[BatchSource]:
    """The source that the config asks for.

    Args:
        wait_seconds: the deadline of the second thread's meetings.

    Raises:
        InputError: where sampling and training would use the same weights at the same time.
    """
    if not collector.config.rollout.overlap:
        yield InTurn(collector, engine)
        return
    if shares_weights(collector.sampler):
        raise InputError(
            "grpo.rollout.overlap=true: the sampler would draw with the weights that are being trained; set "
            "grpo.rollout.dtype, for a copy of them, or grpo.rollout.name=vllm_server"
        )
    source = Overlapped(collector, engine, wait_seconds)
    try:
        yield source
    except StopRequested:
        source.close()
        raise


def shares_weights(sampler: Sampler) -> bool:
    """Whether it samples with the trainer's own module."""
    return bool(getattr(sampler, "shares_weights", True))


class InTurn:
    """Sampling and training by turns."""

    def __init__(self, collector: Collector, engine: Engine) -> None:
        self._collector, self._engine = collector, engine

    def take(self, is_last: bool) -> GroupBatch:
        """See `BatchSource.take`. Weights that ranks have divided are whole only for a sampler that uses them."""
        whole: AbstractContextManager[None] = nullcontext()
        if shares_weights(self._collector.sampler):
            whole = self._engine.whole()
        with whole:
            return self._collector.collect(self._engine.world)

    def sync(self) -> None:
        """See `BatchSource.sync`."""
        sync_sampler(self._collector.sampler, self._engine, self._collector.config.updates_per_batch)


class Overlapped:
    """Sampling beside training. See the module's docstring."""

    def __init__(self, collector: Collector, engine: Engine, wait_seconds: float | None = None) -> None:
        """Every rank has to make one at the same time."""
        self._collector, self._engine = collector, engine
        self._watch = SideWatch(engine.world.watch)
        self._world = engine.world.apart(self._watch, wait_seconds)  # for the thread
        self._drawing: Future[GroupBatch] | None = None
        self._is_outdated = False  # whether the policy has moved since the sampler was given its weights

    def take(self, is_last: bool) -> GroupBatch:
        """See `BatchSource.take`. Begins to draw the one after it, unless there is none."""
        if self._drawing is None:
            batch = self._collector.collect(self._engine.world)
        else:
            self._wait()
            batch, self._drawing = self._drawing.result(), None
        self._collector.stream.release()
        self._collector.carried.release()
        if self._is_outdated:
            sync_sampler(self._collector.sampler, self._engine, self._collector.config.updates_per_batch)
            self._is_outdated = False
        if not is_last:
            self._begin()
        return batch

    def sync(self) -> None:
        """See `BatchSource.sync`: put off until the batch that is being drawn has been taken."""
        self._is_outdated = True

    def close(self) -> None:
        """Wait for the thread, which has been told to stop as the others have."""
        if self._drawing is not None:
            self._wait()
            with suppress(StopRequested):
                self._drawing.result()

    def _begin(self) -> None:
        self._collector.stream.hold()
        self._collector.carried.hold()
        drawing: Future[GroupBatch] = Future()

        def draw() -> None:
            try:
                drawing.set_result(self._collector.collect(self._world))
            except BaseException as error:  # raised where the batch is taken
                drawing.set_exception(error)

        self._drawing = drawing
        threading.Thread(target=draw, name="sampling", daemon=True).start()

    def _wait(self) -> None:
        """Until the thread has ended. It beats for this one, and where it waits for other ranks, so does this one."""
        assert self._drawing is not None
        watch, ended = self._engine.world.watch, threading.Event()
        self._drawing.add_done_callback(lambda _: ended.set())
        seen = -1
        while not ended.is_set():
            if self._watch.is_waiting:
                with watch.waiting():
                    ended.wait(LOOK_SECONDS)
            elif self._watch.num_beats != seen:
                seen = self._watch.num_beats
                watch.beat("sampling")
            ended.wait(LOOK_SECONDS)


class SideWatch(Watch):
    """Of a second thread. A rank's watch is of its main thread; this one hears of a stop and keeps the rest."""

    def __init__(self, main: Watch) -> None:
        self._main = main
        self.num_beats = 0
        self.is_waiting = False

    def beat(self, phase: str, step: int | None = None) -> None:
        self.num_beats += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self.is_waiting = True
        try:
            yield
        finally:
            self.num_beats += 1
            self.is_waiting = False

    @contextmanager
    def long(self, phase: str, seconds: float = math.inf) -> Iterator[None]:
        self.is_waiting = True  # excused likewise
        try:
            yield
        finally:
            self.num_beats += 1
            self.is_waiting = False

    @property
    def stop_requested(self) -> bool:
        return self._main.stop_requested
