"""The collectives of the engine's device group: right results, and bus bandwidth at a few sizes.

Bus bandwidth, as nccl-tests define it, of n ranks for a buffer of S bytes (the whole one: what all-gather leaves on a
rank, and what reduce-scatter takes from it), done in t seconds:

    all-reduce                                S / t * 2 (n - 1) / n
    all-gather, reduce-scatter, all-to-all    S / t * (n - 1) / n

It does not depend on n where the network is the limit, so that it can be held against the hardware's figure.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from falcon_h1r.distributed.world import World
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, SKIPPED, WARN, Finding, graded

REPEATS = 5
LATENCY_REPEATS = 20
SLOW_MEETING_SECONDS = 0.1
SLOW_RANK = 1.5  # times the fastest
MIB = 2**20
DEFAULT_MIB = {"cpu": [0.0625, 1.0, 16.0], "cuda": [0.0625, 1.0, 16.0, 256.0]}

# What torch 2.13 renamed.
all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


Rows = Tensor  # the values of a buffer's chunks, one a chunk: small whole numbers, so that sums are exact


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind: how to run it, and what has to come out of it."""

    name: str
    bus_factor: Callable[[int], float]
    run: Callable[[Tensor, Tensor], object]  # (sent, received), both (chunks, chunk)
    case: Callable[[int, int], tuple[Rows, Rows]]  # (rank, size) -> what it sends and what it has to receive


def _all_reduce(sent: Tensor, received: Tensor) -> None:
    received.copy_(sent)
    dist.all_reduce(received)


def _sent_rows(rank: int, size: int) -> Rows:
    """Chunk j of rank r holds 10 r + j."""
    return 10.0 * rank + torch.arange(size)


def _sum_rows(size: int) -> Rows:
    """Over ranks, of those."""
    return 10.0 * size * (size - 1) / 2 + size * torch.arange(size)


def _share(n: int) -> float:
    return (n - 1) / n


COLLECTIVES = (
    Collective("all-reduce", lambda n: 2 * _share(n), _all_reduce, lambda r, n: (_sent_rows(r, n), _sum_rows(n))),
    Collective(
        "all-gather",
        _share,
        lambda sent, received: all_gather(received.view(-1), sent.view(-1)),
        lambda r, n: (_sent_rows(r, n)[:1], 10.0 * torch.arange(n)),
    ),
    Collective(
        "reduce-scatter",
        _share,
        lambda sent, received: reduce_scatter(received.view(-1), sent.view(-1)),
        lambda r, n: (_sent_rows(r, n), _sum_rows(n)[r : r + 1]),
    ),
    Collective(
        "all-to-all",
        _share,
        lambda sent, received: dist.all_to_all_single(received, sent),
        lambda r, n: (_sent_rows(r, n), 10.0 * torch.arange(n) + r),
    ),
)


def check_collectives(examination: Examination) -> list[Finding]:
    """Each kind at each size, ascending, for as long as a share of the deadline lasts."""
    world, settings = examination.world, examination.config.doctor
    if world.size == 1:
        return [Finding("collectives", SKIPPED, "one rank", "start as many ranks as the run will have")]
    budget = settings.seconds / 2
    return [check_latency(world), *(_examine(each, examination, budget / len(COLLECTIVES)) for each in COLLECTIVES)]


def check_latency(world: World) -> Finding:
    """A meeting of the CPU's group, of which a step has a few."""
    times = []
    for _ in range(LATENCY_REPEATS):
        started = time.perf_counter()
        world.sum([1.0])
        times.append(time.perf_counter() - started)
    seconds = max(world.gather(statistics.median(times)))
    advice = "gloo meets over a slow network: set GLOO_SOCKET_IFNAME to the fast interface"
    measured = f"{seconds * 1e3:.2f} ms a meeting (median, of the slowest rank)"
    return graded("CPU group", WARN if seconds > SLOW_MEETING_SECONDS else OK, measured, advice)


def _examine(collective: Collective, examination: Examination, budget_seconds: float) -> Finding:
    world, settings = examination.world, examination.config.doctor
    started, shown, slowest = time.perf_counter(), [], ""
    gigabytes = 0.0
    for mib in sorted(settings.collective_mib or DEFAULT_MIB[world.device.type]):
        is_right, seconds = measure(collective, mib, world)
        if wrong := [rank for rank, right in enumerate(world.gather(is_right)) if not right]:
            advice = "do not train: a faulty link or NCCL build? compare with NCCL_P2P_DISABLE=1, NCCL_DEBUG=INFO"
            return Finding(collective.name, FAILED, f"wrong result at {mib:g} MiB on ranks {wrong}", advice)
        by_rank = world.gather(seconds)
        longest = max(by_rank)
        gigabytes = _buffer_bytes(mib, world.size) * collective.bus_factor(world.size) / longest / 1e9
        shown.append(f"{gigabytes:.2f} at {mib:g} MiB")
        slowest = f"; slowest rank {by_rank.index(longest)}" if longest > SLOW_RANK * min(by_rank) else ""
        if world.any(time.perf_counter() - started > budget_seconds):
            break
    too_slow = gigabytes < settings.least_bus_gigabytes_per_second
    advice = "below doctor.least_bus_gigabytes_per_second: is the fast network in use (NCCL_DEBUG=INFO says)?"
    measured = f"bus GB/s: {', '.join(shown)}{slowest}"
    return graded(collective.name, WARN if too_slow else OK, measured, advice)


def measure(collective: Collective, mib: float, world: World) -> tuple[bool, float]:
    """Whether the result is right here, and the median seconds of one on this rank, begun together."""
    chunk = _buffer_bytes(mib, world.size) // 4 // world.size
    rows = (values.float().to(world.device) for values in collective.case(world.rank, world.size))
    sent, expected = (values[:, None].expand(-1, chunk).contiguous() for values in rows)
    received = torch.full_like(expected, -1.0)
    collective.run(sent, received)
    is_right = torch.equal(received, expected)
    times = []
    for _ in range(REPEATS):
        world.barrier()
        started = time.perf_counter()
        collective.run(sent, received)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return is_right and torch.equal(received, expected), statistics.median(times)


def _buffer_bytes(mib: float, num_ranks: int) -> int:
    """Whole float32 chunks of equal size for every rank."""
    return max(1, round(mib * MIB / 4 / num_ranks)) * 4 * num_ranks
