"""Curation: traces in, what SFT and GRPO read out.

    python recipes/curate.py experiment=quickstart
    python recipes/curate.py data/source=gsm8k curate.sources.gsm8k.path=train.jsonl
    python recipes/curate.py data/source=[openr1_math,safety] curate.sources.openr1_math.path=... ...
    python recipes/curate.py ... run_dir=runs/mix resume=true            goes on where a kill left it
    python recipes/curate.py ... curate.work.num_shards=16 curate.work.shard=3 run_dir=runs/mix-03
    python recipes/curate.py ... curate.work.merge='runs/mix-*' run_dir=runs/mix

Writes traces.jsonl (SFT), dropped.jsonl (with the reason of each), summary.json and data_report.html. Without a source,
problems are generated: then also rl.jsonl, dev.jsonl, eval.jsonl.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.entry import run_recipe

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World


def check(config: Config) -> None:
    """What the user may have got wrong, found before any work: each source is opened, and its head is read."""
    from falcon_h1r.data.curation.check import check_sources
    from falcon_h1r.data.synthetic import check_synthetic

    if not config.curate.sources:
        check_synthetic(config.curate)
    check_sources(config.curate)


def curate(config: Config, folder: Path, world: World) -> Path:
    """Run the stage on the main rank, or what is left of it; the others wait."""
    world.on_main(lambda: _curate(config, folder, world))
    return folder


def _curate(config: Config, folder: Path, world: World) -> None:
    from falcon_h1r.data.curation.corpus import SUMMARY, remove_work
    from falcon_h1r.data.curation.report import write_report

    if not (config.resume and (folder / SUMMARY).is_file()):
        _curate_into(folder, config, world)
    if (folder / SUMMARY).is_file():  # of a shard there is none
        write_report(folder)
        remove_work(folder)


def _curate_into(folder: Path, config: Config, world: World) -> None:
    from rich.console import Console

    from falcon_h1r.data.curation.corpus import WORK, curate_corpus
    from falcon_h1r.data.synthetic import write_corpus
    from falcon_h1r.progress import ProgressReporter

    folder.mkdir(parents=True, exist_ok=True)
    if not config.curate.sources:
        config = copy.deepcopy(config)
        traces = write_corpus(config.curate.synthetic, config.seed, folder, folder / WORK)
        config.curate.sources = {"synthetic": SourceConfig(path=str(traces), curated=True)}
    with world.watch.long("curating"):
        summary = curate_corpus(
            config,
            folder,
            lambda total, what: ProgressReporter(total, f"curate: {what}", "chunks", console=Console()),
            world.watch.check,
        )
    if summary:
        print("curate: " + " -> ".join(f"{count:,} {step}" for step, count in summary["funnel"].items()), flush=True)


if __name__ == "__main__":
    run_recipe("curate", curate, check)
