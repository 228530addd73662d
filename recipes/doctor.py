"""Is this allocation fit for the run? Two minutes, one table, green or red with what to do.

    python recipes/doctor.py experiment=quickstart
    python recipes/doctor.py experiment=falcon_h1r_7b run_dir=SHARED/run
    torchrun --nproc-per-node 8 recipes/doctor.py experiment=falcon_h1r_7b_8xh100

Exit status 0 where nothing is red, 1 otherwise. The run itself keeps its folder: the doctor's is run_dir/doctor, or
runs/doctor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_model_path
from falcon_h1r.entry import run_recipe

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World

is_fit = True


def check(config: Config) -> None:
    """What the user may have got wrong."""
    check_model_path(config.model)


def doctor(config: Config, folder: Path, world: World) -> None:
    """Examine, and leave the folder free for the next time."""
    from falcon_h1r.doctor.place import free_again
    from falcon_h1r.doctor.suite import examine

    global is_fit
    if world.is_main:
        free_again(folder)
    is_fit = examine(config, folder, world)


if __name__ == "__main__":
    from falcon_h1r.doctor.place import beside_the_run

    sys.argv[:] = beside_the_run(sys.argv)
    run_recipe("doctor", doctor, check)
    sys.exit(0 if is_fit else 1)
