"""--multirun: one run after the other for every combination of the values that overrides list.

    python recipes/grpo.py --multirun seed=0,1,2 grpo.group_size=4,8 run_dir=runs/sizes resume=true

Each run has a process and a folder of its own: run_dir/seed=0,grpo.group_size=4. With `resume=true` the same command
goes on where the sweep was interrupted: runs that have ended are passed over by their recipe, at once.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser

from falcon_h1r.types import InputError

FLAGS = ("-m", "--multirun")
RUN_DIR = "run_dir"


@dataclass(frozen=True, slots=True)
class SweptRun:
    """One combination: what it is called, and its command line's overrides."""

    name: str
    overrides: tuple[str, ...]


def plan_sweep(arguments: Sequence[str]) -> list[SweptRun]:
    """The runs that a command line stands for, in its order: the last override varies fastest.

    Raises:
        InputError: where nothing is swept, an override is no list of values, or `run_dir` is missing or swept.
    """
    flags = [argument for argument in arguments if argument.startswith("-") and argument not in FLAGS]
    if flags:
        raise InputError(f"{flags[0]}: goes with a single run, not with --multirun")
    overrides = OverridesParser.create().parse_overrides([each for each in arguments if each not in FLAGS])
    fixed: list[str] = []
    swept: list[list[tuple[str, str]]] = []  # of each swept key: (its part of the name, the override)
    folder: str | None = None
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise InputError(f"{override.input_line}: not a list of values: {key}=A,B,C")
        if key == RUN_DIR and override.is_sweep_override():
            raise InputError(f"{override.input_line}: the runs of a sweep get folders below one run_dir")
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
            swept.append([(f"{key.lstrip('+')}={value}".replace("/", "_"), f"{key}={value}") for value in values])
        elif key == RUN_DIR:
            folder = str(override.value())
        else:
            assert override.input_line is not None
            fixed.append(override.input_line)
    if not swept:
        raise InputError("--multirun: nothing to vary; list values: seed=0,1,2")
    if folder is None:
        raise InputError("run_dir is not set: --multirun needs the folder below which each run gets its own")
    runs = []
    for combination in itertools.product(*swept):
        name = ",".join(part for part, _ in combination)
        own = [override for _, override in combination]
        runs.append(SweptRun(name, (*fixed, *own, f"{RUN_DIR}='{Path(folder) / name}'")))
    return runs


def sweep_if_asked() -> None:
    """Where the command line says --multirun, run all that it stands for instead of this process's one, and exit."""
    if set(FLAGS) & set(sys.argv):
        run_sweep(sys.argv)


def run_sweep(arguments: Sequence[str]) -> NoReturn:
    """Run them one after the other; exits with 0, or at the first that fails with its status."""
    from falcon_h1r.distributed.launcher import run_command

    runs = plan_sweep(arguments[1:])
    for number, run in enumerate(runs, start=1):
        print(f"\n=== {number} of {len(runs)}: {run.name}", flush=True)
        status = run_command([sys.executable, arguments[0], *run.overrides])
        if status:
            print(f"error: {run.name}: ended with status {status}", file=sys.stderr)
            sys.exit(status)
    sys.exit(0)
