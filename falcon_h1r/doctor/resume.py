"""A save and a resume: the state after a step, written by all ranks, read by a fresh engine, equal bit for bit."""

from __future__ import annotations

import gc
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from falcon_h1r.distributed.engine import Engine
from falcon_h1r.doctor.engine import take_step
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, Finding, graded

FOLDER = "doctor_state"
OTHER_SEED = 1  # other weights than those that were saved: what is not read shows

Lines = dict[str, Tensor]  # a rank's stretches by "name|kind|start"


def check_resume(examination: Examination) -> list[Finding]:
    """Save the state of a step, load it into a fresh engine, compare every stretch."""
    world, root = examination.world, examination.folder / FOLDER
    engine = examination.opened_engine()
    take_step(engine, examination)
    saved, position = own_lines(engine), (engine.steps_done, engine.updates_done)
    started = time.perf_counter()
    write_state(saved, root, world.rank)
    world.barrier()
    save_seconds = time.perf_counter() - started
    examination.engine = None
    del engine
    gc.collect()
    fresh = examination.open_engine(seed=OTHER_SEED)
    started = time.perf_counter()
    read_state(fresh, root, world.size, position)
    load_seconds = time.perf_counter() - started
    differing = differing_lines(saved, own_lines(fresh))
    outcome, _ = take_step(fresh, examination)
    all_differing = [name for names in world.gather(differing) for name in names]
    if world.is_main:
        shutil.rmtree(root, ignore_errors=True)
    num_bytes = sum(world.gather(sum(line.nbytes for line in saved.values())))
    size = f"{num_bytes / 1e6:.1f} MB saved in {save_seconds:.2f} s, loaded in {load_seconds:.2f} s"
    if all_differing:
        advice = "a resumed run would not go on as it was: see the file system's lines"
        measured = f"{len(all_differing)} stretches differ after loading, {all_differing[0]} among them"
        return [Finding("save and resume", FAILED, measured, advice)]
    advice = "the step after loading was refused: the state that was read is not finite"
    return [graded("save and resume", OK if outcome.applied else FAILED, f"bit for bit; {size}", advice)]


def own_lines(engine: Engine) -> Lines:
    """Copies of this rank's part of the training state, on the CPU."""
    return {
        f"{fragment.name}|{kind}|{fragment.start}": tensor.detach().cpu().clone()
        for fragment in engine.fragments()
        for kind, tensor in fragment.tensors.items()
    }


def write_state(lines: Lines, root: Path, rank: int) -> None:
    """This rank's file."""
    root.mkdir(parents=True, exist_ok=True)
    save_file({name: line for name, line in lines.items() if line.numel()}, rank_file(root, rank))


def read_state(engine: Engine, root: Path, num_ranks: int, position: tuple[int, int]) -> None:
    """Every rank's files into the engine."""
    stretches: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
    for rank in range(num_ranks):
        path = rank_file(root, rank)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: written by rank {rank}, not seen by rank {engine.world.rank}")
        for key, line in load_file(path).items():
            name, kind, start = key.split("|")
            stretches.setdefault((name, kind), []).append((int(start), line))

    def read(name: str, kind: str, start: int, length: int) -> Tensor:
        parts = sorted(stretches[name, kind], key=lambda part: part[0])
        return torch.cat([line for _, line in parts])[start : start + length]

    engine.load_state(read, *position)


def rank_file(root: Path, rank: int) -> Path:
    return root / f"rank_{rank:05d}.safetensors"


def differing_lines(saved: Lines, loaded: Lines) -> list[str]:
    """Stretches that are not equal to the last bit, or are on one side only."""
    names = saved.keys() | loaded.keys()
    same = {n for n in saved.keys() & loaded.keys() if torch.equal(saved[n], loaded[n])}
    return sorted(names - same)
