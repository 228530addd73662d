"""The file system under run_dir: shared by all ranks, fast and large enough for checkpoints, and true to its word.

A checkpoint is written beside and renamed, and a run is locked with flock: both are promises that a network's file
system may not keep.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import torch

from falcon_h1r.config import Config
from falcon_h1r.distributed.world import World
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, SKIPPED, WARN, Finding, graded, name_ranks
from falcon_h1r.model.load import weightless_model
from falcon_h1r.model.lora import add_adapters
from falcon_h1r.model.precision import handed_over_dtype

FOLDER = "doctor_files"
BLOCK_BYTES = 4 * 2**20
RENAMES, RENAMED_BYTES = 50, 64 * 1024
STATE_BYTES = 12  # of a trained parameter: float32 weight and two moments
SLOW_CHECKPOINT_SECONDS = 600.0
APPEARS_SECONDS = 10.0  # for a file to be seen by the other ranks: NFS keeps names for some seconds


def check_file_system(examination: Examination) -> list[Finding]:
    """All of it. Where the ranks do not share the folder, what needs that is skipped."""
    world, folder = examination.world, examination.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    shared = check_shared(world, folder)
    needed_bytes, checkpoint_bytes = planned_bytes(examination)
    findings = [
        shared,
        *check_speed(world, folder, examination.config.doctor.file_mib, checkpoint_bytes),
        check_space(world, folder, needed_bytes),
    ]
    if shared.status == FAILED:
        findings += [Finding(name, SKIPPED, "not shared", "see run_dir") for name in ("rename", "locks")]
    else:
        findings += [check_rename(world, folder), check_locks(world, folder)]
    world.barrier()
    shutil.rmtree(folder, ignore_errors=True)
    return findings


def check_shared(world: World, folder: Path) -> Finding:
    """Rank 0 writes a file; who does not see it is elsewhere."""
    name = world.broadcast(f"seen_{os.getpid()}_{time.time_ns()}")
    if world.is_main:
        (folder / name).write_text(name)
    world.barrier()
    deadline = time.monotonic() + APPEARS_SECONDS
    while not (seen := name in os.listdir(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [rank for rank, sees in enumerate(world.gather(seen)) if not sees]
    measured = f"not seen by {name_ranks(blind)}" if blind else f"seen by {world.size} ranks"
    advice = "run_dir has to be on a file system that all nodes mount: checkpoints are written by every rank"
    return graded("run_dir", FAILED if blind else OK, measured, advice)


def check_speed(world: World, folder: Path, mib: int, checkpoint_bytes: int) -> list[Finding]:
    """All ranks at once, each a file of its own, synced; then read back past the cache."""
    path = folder / f"speed_{world.rank:05d}"
    world.barrier()
    write_seconds = write_synced(path, mib * 2**20)
    world.barrier()
    read_seconds, whole = read_back(path, mib * 2**20)
    path.unlink(missing_ok=True)
    by_rank = world.gather((write_seconds, read_seconds, whole))
    if broken := [rank for rank, (_, _, is_whole) in enumerate(by_rank) if not is_whole]:
        advice = "the file system returns other bytes than were written: do not save there"
        return [Finding("files", FAILED, f"{name_ranks(broken)} read back something else", advice)]
    total_mb = world.size * mib * 2**20 / 1e6
    slowest = max(write for write, _, _ in by_rank)
    write_speed, read_speed = total_mb / slowest, total_mb / max(read for _, read, _ in by_rank)
    minutes = checkpoint_bytes / 1e6 / write_speed / 60
    measured = (
        f"{write_speed:,.0f} MB/s written (with fsync), {read_speed:,.0f} MB/s read, all ranks together; "
        f"a checkpoint of {checkpoint_bytes / 1e9:.2f} GB: {minutes:.1f} min"
    )
    slow = 60 * minutes > SLOW_CHECKPOINT_SECONDS
    advice = "put run_dir on a faster file system, or save less often (checkpoint.every_minutes)"
    return [graded("files", WARN if slow else OK, measured, advice)]


def write_synced(path: Path, num_bytes: int) -> float:
    """Seconds to write so many bytes, on the disk at the end."""
    block = _pattern()
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(num_bytes // BLOCK_BYTES):
            rest = memoryview(block)
            while rest:  # a disk about to be full takes a part first
                rest = rest[file.write(rest) or 0 :]
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return time.perf_counter() - started


def read_back(path: Path, num_bytes: int) -> tuple[float, bool]:
    """Seconds to read the file, and whether it holds what was written."""
    block, whole, count = _pattern(), True, 0
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while part := file.read(BLOCK_BYTES):
            whole = whole and part == block[: len(part)]
            count += len(part)
    return time.perf_counter() - started, whole and count == num_bytes // BLOCK_BYTES * BLOCK_BYTES


def _pattern() -> bytes:
    return bytes(range(256)) * (BLOCK_BYTES // 256)


def check_space(world: World, folder: Path, needed_bytes: int) -> Finding:
    """Free space against what the run will keep, on every rank's view of the folder."""
    free = min(world.gather(shutil.disk_usage(folder).free))
    measured = f"{free / 1e9:,.1f} GB free, {needed_bytes / 1e9:,.2f} GB needed by checkpoints and the model"
    advice = "free some, or lower checkpoint.keep: one more than it keeps exists while one is written"
    return graded("free space", OK if free >= needed_bytes else FAILED, measured, advice)


def planned_bytes(examination: Examination) -> tuple[int, int]:
    """What the run's folder will hold at most, and one checkpoint of it."""
    config: Config = examination.config
    model = weightless_model(examination.shape, examination.dtype)
    handed_over = sum(p.numel() * handed_over_dtype(n, p.dtype).itemsize for n, p in model.named_parameters())
    if config.model.lora.rank:
        with torch.device("meta"):
            add_adapters(model, config.model.lora, seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    checkpoint = STATE_BYTES * trained
    return (config.checkpoint.keep + 1) * checkpoint + handed_over, checkpoint


def check_rename(world: World, folder: Path) -> Finding:
    """Rank 0 replaces a file again and again; whoever looks has to find a whole one, old or new."""
    path, stop = folder / "renamed", folder / "renamed_enough"
    if world.is_main:
        path.write_bytes(_content(0))
    world.barrier()
    writer = threading.Thread(target=_replace_repeatedly, args=(path, stop)) if world.is_main else None
    if writer is not None:
        writer.start()
    torn = looks = 0
    deadline = time.monotonic() + APPEARS_SECONDS
    while not stop.exists() and time.monotonic() < deadline:
        looks += 1
        try:
            found = path.read_bytes()
            torn += len(found) != RENAMED_BYTES or len(set(found)) != 1
        except FileNotFoundError:
            torn += 1
        except OSError:
            pass  # a stale handle of NFS: the name is whole, the reader was late
    if writer is not None:
        writer.join()
    total_torn, total_looks = world.sum([float(torn), float(looks)])
    measured = f"{RENAMES} renames, {total_looks:.0f} looks, {total_torn:.0f} at a missing or torn file"
    advice = "renaming is not atomic here, so that half a checkpoint may look whole: use another file system"
    return graded("rename", FAILED if total_torn else OK, measured, advice)


def _replace_repeatedly(path: Path, stop: Path) -> None:
    beside = path.with_suffix(".partial")
    for number in range(RENAMES):
        beside.write_bytes(_content(number))
        os.replace(beside, path)
    stop.touch()


def _content(number: int) -> bytes:
    return bytes([number % 256]) * RENAMED_BYTES


def check_locks(world: World, folder: Path) -> Finding:
    """Rank 0 holds a lock that nobody else may get before it lets go."""
    path = folder / "lock"
    advice = "mount with locks (Lustre: flock; NFS: a lock service), and until then never start a run twice"
    try:
        holder = path.open("a") if world.is_main else None
        if holder is not None:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fault = None
    except OSError as error:
        fault = f"flock fails: {error.strerror}"
    fault = world.broadcast(fault)
    if fault is not None:
        return Finding("locks", FAILED, fault, advice)
    refused = not _can_lock(path)
    world.barrier()
    if holder is not None:
        holder.close()
    world.barrier()
    granted = all(_in_turn(world, path))
    let_in = [rank for rank, was_refused in enumerate(world.gather(refused)) if not was_refused]
    if let_in:
        return Finding("locks", FAILED, f"{name_ranks(let_in)} got a lock that rank 0 held", advice)
    return graded("locks", OK if granted else FAILED, "flock keeps others out, and lets them in afterwards", advice)


def _in_turn(world: World, path: Path) -> list[bool]:
    """Whether each rank gets the free lock, one after the other."""
    got = False
    for rank in range(world.size):
        if rank == world.rank:
            got = _can_lock(path)
        world.barrier()
    return world.gather(got)


def _can_lock(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
