"""A recipe of steps that compute nothing, and what befalls one rank in the midst of them.

STAND_IN in the environment is a JSON object: {"what": ..., "rank": 1, "step": 3, "num_steps": 1000}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.entry import run_recipe
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World

STEP_SECONDS = 0.02


def stand_in(config: Config, folder: Path, world: World) -> None:
    """Steps that end with a meeting, as those of the loops do; on a stop, rank 0 saves."""
    from falcon_h1r.distributed.watch import StopRequested

    plan = {"what": "nothing", "rank": 1, "step": 3, "num_steps": 1000, **json.loads(os.environ.get("STAND_IN", "{}"))}
    (folder / f"pid_{world.rank}").write_text(str(os.getpid()))
    warnings.warn(f"a warning of rank {world.rank}", stacklevel=1)
    world.barrier()
    for step in range(plan["num_steps"]):
        world.watch.beat("training", step)
        time.sleep(STEP_SECONDS)
        if (world.rank, step) == (plan["rank"], plan["step"]):
            befall(plan["what"], world)
        if plan["what"] == "unsaved":
            world.watch.check()
        elif world.any(world.watch.stop_requested):
            if world.is_main:
                (folder / "saved").write_text(str(step))
            world.barrier()
            raise StopRequested(f"stopped in step {step}, and saved")
        if world.is_main:
            (folder / "step").write_text(str(step))


def befall(what: str, world: World) -> None:
    """Never comes back, but for the signals that are taken."""
    if what == "raise":
        raise ValueError("the third step is unlucky")
    if what == "mistake":
        raise InputError("rows.jsonl, line 7: not JSON")
    if what == "exit":
        os._exit(0)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    if what == "sleep in C":
        ctypes.PyDLL(None).sleep(600)  # with Python's lock held: no thread of this process runs
    if what == "deadlock":
        world.barrier()  # one meeting too many
    if what == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "long":
        with world.watch.long("loading"):
            time.sleep(4.0)
        sys.exit(f"rank {world.rank} came through")


if __name__ == "__main__":
    run_recipe("stand_in", stand_in, lambda config: None)
