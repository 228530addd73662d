"""Leaving a step that the run is told to stop in: all ranks together, none left behind in a collective.

A rank hears of it alone, in the middle of its own work. It leaves that work, and says so at the next meeting, where
all of them raise StopRequested. What the step had begun is discarded; whoever catches the exception saves the state
of the step's beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World

T = TypeVar("T")


def rows_until_stopped(engine: Engine, rows: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
    """This rank's rows one after the other, on its device, a sign of life before each.

    Ranks whose micro-batches meet each other agree before each; others leave theirs and agree after the last.

    Raises:
        StopRequested: on every rank, if any was told to stop.
    """
    world, watch = engine.world, engine.world.watch
    for row in rows:
        watch.beat("training", engine.steps_done)
        if world.any(watch.stop_requested) if engine.lockstep else watch.stop_requested:
            break
        yield row.to(world.device)
    if world.any(watch.stop_requested):
        raise StopRequested


def gather_unless_stopped(world: World, work: Callable[[], T]) -> list[T]:
    """What `work` returns on every rank, in the order of ranks, on every rank; it may leave through `watch.check()`.

    Raises:
        StopRequested: on every rank, if any left its work.
    """
    own: list[T] = []
    with suppress(StopRequested):  # told to the others below
        own = [work()]
    world.watch.beat("gathering")
    gathered = world.gather(own)
    if not all(gathered):
        raise StopRequested
    return [results[0] for results in gathered]
