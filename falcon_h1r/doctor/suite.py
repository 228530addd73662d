"""All checks in their order: what is a rank's own first, then what ranks do together, then what stands on that."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

from falcon_h1r.config import Config
from falcon_h1r.distributed.world import World
from falcon_h1r.doctor.collectives import check_collectives
from falcon_h1r.doctor.engine import check_engine
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.file_system import check_file_system
from falcon_h1r.doctor.finding import FAILED, Finding
from falcon_h1r.doctor.host import check_host
from falcon_h1r.doctor.inspection import check_checkpoint
from falcon_h1r.doctor.kernels import check_kernels
from falcon_h1r.doctor.report import is_fit, print_table, write_files
from falcon_h1r.doctor.resume import check_resume
from falcon_h1r.doctor.runner import Check, LostRank, Outcome, Runner
from falcon_h1r.doctor.sampler import check_sampler
from falcon_h1r.doctor.verifier import check_verifier
from falcon_h1r.doctor.versions import check_versions

CHECKS = (
    Check("versions", check_versions),
    Check("host", check_host),
    Check("checkpoint", check_checkpoint),
    Check("file system", check_file_system, advice="run_dir has to be a folder that every rank can write to"),
    Check("verifier", check_verifier),
    Check("kernels", check_kernels),
    Check("collectives", check_collectives, on_devices=True),
    Check("engine", check_engine, on_devices=True),
    Check("sampler", check_sampler, on_devices=True),
    Check("resume", check_resume, on_devices=True),
)


def examine(config: Config, folder: Path, world: World) -> bool:
    """Run the checks, print the table, leave doctor.json; whether nothing is red, on every rank.

    Where a check still hangs, the process ends here with status 1: a thread that never comes back would keep it.
    """
    started = time.perf_counter()
    warnings.simplefilter("ignore", FutureWarning)  # libraries about each other's next releases: not in this table
    settings = config.doctor
    checks = [check for check in CHECKS if not settings.only or check.name in settings.only]
    runner = Runner(world, checks, settings.seconds)
    examination = Examination(config, folder, world)
    outcomes: list[Outcome] = []
    for index, check in enumerate(checks):
        world.watch.beat(f"doctor: {check.name}")
        try:
            outcomes.append(runner.run(index, examination))
        except LostRank as lost:
            advice = "a rank died or was killed (memory?): look at its own output"
            outcomes.append(Outcome(check.name, [Finding("ranks", FAILED, f"one is lost: {lost}", advice)], hung=True))
            break
    if world.is_main:
        _report(outcomes, time.perf_counter() - started, world.size, folder)
    runner.leave_together()
    if any(outcome.hung for outcome in outcomes):
        sys.stdout.flush()
        os._exit(1)
    return is_fit(outcomes)


def _report(outcomes: list[Outcome], seconds: float, num_ranks: int, folder: Path) -> None:
    print_table(outcomes, seconds)
    try:
        write_files(outcomes, seconds, num_ranks, folder)
    except OSError as error:
        print(f"warning: {folder}: cannot write the report ({error.strerror})", file=sys.stderr)
