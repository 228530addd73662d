"""What a rank tells while it works, and what it is told: signs of progress one way, the wish to stop the other.

Every rank's own work reports through `world.watch`. In a run it is the supervisor of its process
(falcon_h1r.distributed.supervision); in a test, or a world of one without a run, it is this silent one.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext


class StopRequested(Exception):
    """The run has been told to stop: the unfinished step is discarded, the state saved, the process ends.

    A recipe that lets it pass ends with the status of a stopped run (75); one that returns has finished.
    """


class Watch:
    """One that watches nothing and never asks to stop."""

    def beat(self, phase: str, step: int | None = None) -> None:
        """This rank's main thread has come on: it is in `phase` ("training", "sampling", ...) of `step`.

        From the first beat on, a rank that neither beats nor waits for others is expected to beat again within
        `supervision.silent_seconds`; `long` excuses it.
        """

    def waiting(self) -> AbstractContextManager[None]:
        """While it lasts, this rank waits for others, and is not held to beat. `World`'s meetings are marked by it."""
        return nullcontext()

    def long(self, phase: str, seconds: float = math.inf) -> AbstractContextManager[None]:
        """While it lasts, one thing is done that cannot beat (loading weights): silence is no hang for `seconds`."""
        return nullcontext()

    @property
    def stop_requested(self) -> bool:
        """Whether this rank has heard that the run is to stop; others may hear of it later. Costs nothing."""
        return False

    def check(self) -> None:
        """Within work of this rank's own, between collectives: leave it if the run is to stop.

        Raises:
            StopRequested: whoever catches it has to tell the other ranks at their next meeting.
        """
        if self.stop_requested:
            raise StopRequested
