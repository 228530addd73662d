"""Where the doctor writes: beside the run that it examines, whose folder and name stay free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

NAME = "doctor"
CONFIG_FILE = "config.yaml"


def beside_the_run(arguments: Sequence[str]) -> list[str]:
    """The command line with the doctor's name, and its own folder in the run's. Applied twice, it changes nothing more.

    >>> beside_the_run(["recipes/doctor.py", "experiment=quickstart", "run_dir=/data/run"])
    ['recipes/doctor.py', 'experiment=quickstart', 'run_dir=/data/run/doctor', 'name=doctor']
    """
    moved = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "run_dir" and value not in ("", "null") and Path(value).name != NAME:
            argument = f"run_dir={value.rstrip('/')}/{NAME}"
        moved.append(argument)
    return moved if any(argument.startswith("name=") for argument in moved) else [*moved, f"name={NAME}"]


def free_again(folder: Path) -> None:
    """Rename the config that marks a folder as a run's, so that the doctor can be called again on the same one."""
    if folder.name.startswith(NAME) and (folder / CONFIG_FILE).exists():
        os.replace(folder / CONFIG_FILE, folder / f"{NAME}_{CONFIG_FILE}")
