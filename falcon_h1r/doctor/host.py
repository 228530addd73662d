"""Limits and clocks of the ranks' machines."""

from __future__ import annotations

import resource
import shutil
import statistics
import time
from pathlib import Path

from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import OK, SKIPPED, WARN, Finding, graded

LEAST_OPEN_FILES = 4096
LEAST_PROCESSES = 4096
LEAST_SHARED_MEMORY_BYTES = 2**30
SHARED_MEMORY = Path("/dev/shm")
MOST_SKEW_SECONDS = 1.0
ROUNDS = 5


def check_host(examination: Examination) -> list[Finding]:
    """What a container or a scheduler sets too low, and whether clocks agree."""
    return [check_limits(), check_shared_memory(), check_clocks(examination)]


def check_limits() -> Finding:
    """Open files and processes (threads count as such)."""
    limits = {
        "open files": (resource.getrlimit(resource.RLIMIT_NOFILE)[0], LEAST_OPEN_FILES, "ulimit -n"),
        "processes": (resource.getrlimit(resource.RLIMIT_NPROC)[0], LEAST_PROCESSES, "ulimit -u"),
    }
    low = [f"{how} {least}" for soft, least, how in limits.values() if 0 <= soft < least]
    measured = ", ".join(
        f"{name} {'unlimited' if soft == resource.RLIM_INFINITY else soft}" for name, (soft, _, _) in limits.items()
    )
    return graded("limits", WARN if low else OK, measured, f"raise before the start: {', '.join(low)}")


def check_shared_memory() -> Finding:
    """Through which NCCL's ranks of one machine and data loaders speak."""
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", WARN, f"no {SHARED_MEMORY}", "mount a tmpfs there: NCCL needs it")
    size = shutil.disk_usage(SHARED_MEMORY).total
    advice = "give the container more: --shm-size=16g or --ipc=host"
    status = OK if size >= LEAST_SHARED_MEMORY_BYTES else WARN
    return graded("shared memory", status, f"{SHARED_MEMORY} {size / 2**30:.1f} GiB", advice)


def check_clocks(examination: Examination) -> Finding:
    """Every rank's clock against rank 0's, read after a barrier: right to how long a barrier's end takes to spread."""
    world = examination.world
    if world.size == 1:
        return Finding("clocks", SKIPPED, "one rank", "")
    rounds = []
    for _ in range(ROUNDS):
        world.barrier()
        rounds.append(world.gather(time.time()))
    skews = [statistics.median(readings[rank] - readings[0] for readings in rounds) for rank in range(world.size)]
    worst = max(range(world.size), key=lambda rank: abs(skews[rank]))
    measured = f"{abs(skews[worst]):.3f} s between rank 0 and rank {worst}, the farthest"
    advice = "synchronise clocks (chrony, NTP): logs and deadlines of different nodes do not line up"
    return graded("clocks", WARN if abs(skews[worst]) > MOST_SKEW_SECONDS else OK, measured, advice)
