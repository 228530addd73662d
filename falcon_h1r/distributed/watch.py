"""What a rank tells while it works, and what it is told: signs of progress one way, the wish to stop the other.

Every rank's own work reports through `world.watch`. In a run it is the supervisor of its process
(falcon_h1r.distributed.supervision); in a test, or a world of one without a run, it is this silent one.
"""

from __future__ import annotations


class StopRequested(Exception):
    """The run has been told to stop: the unfinished step is discarded, the state saved, the process ends."""


class Watch:
    """One that watches nothing and never asks to stop."""

    def beat(self, phase: str, step: int | None = None) -> None:
        """This rank's main thread has come on: it is in `phase` ("training", "sampling", ...) of `step`."""

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
