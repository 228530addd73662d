"""Stands in for a recipe whose state takes long to save: longer than launchers by themselves wait for their ranks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.entry import run_recipe

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World

SAVE_SECONDS = 33.0  # 30 is what torchrun and the deepspeed launcher grant


def save_slowly(config: Config, folder: Path, world: World) -> None:
    from falcon_h1r.distributed.watch import StopRequested

    world.watch.beat("training", 0)
    while not world.any(world.watch.stop_requested):
        (folder / f"started.rank{world.rank}").touch()
        world.watch.beat("training")
        time.sleep(0.1)
    time.sleep(SAVE_SECONDS)
    (folder / f"saved.rank{world.rank}").touch()
    raise StopRequested("saved")


if __name__ == "__main__":
    run_recipe("slow_saver", save_slowly, lambda config: None)
