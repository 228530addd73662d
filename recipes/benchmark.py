"""Benchmarks: figures for docs/benchmarks, each reproduced by one command.

    python recipes/benchmark.py benchmark.runs=[runs/quickstart,runs/quickstart-2,runs/quickstart-3]

pools finished quickstart runs of several seeds into docs/benchmarks/quickstart.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.entry import run_recipe
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World


def check(config: Config) -> None:
    """What the user may have got wrong."""
    from falcon_h1r.evaluation.pooled import read_summaries

    if config.benchmark.suite != "quickstart":
        raise InputError(f"benchmark.suite={config.benchmark.suite}: not one of quickstart")
    if not config.benchmark.runs:
        raise InputError("benchmark.runs is empty: name the run folders to pool")
    read_summaries(config.benchmark.runs)


def benchmark(config: Config, folder: Path, world: World) -> None:
    """Write the page."""
    from falcon_h1r.evaluation.pooled import pooled_page

    if world.is_main:
        page = pooled_page(config.benchmark.runs)
        Path(config.benchmark.page).parent.mkdir(parents=True, exist_ok=True)
        Path(config.benchmark.page).write_text(page)
        print(page)


if __name__ == "__main__":
    run_recipe("benchmark", benchmark, check)
