"""The processes of a run: who am I, how many are we, and the few things we tell each other.

One process needs no launcher. `relaunch` turns a plain `python recipes/x.py` into `launch.num_processes` ranks;
under torchrun or `accelerate launch` the ranks are there already.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from falcon_h1r.distributed.watch import Watch
from falcon_h1r.model.sequence import ALONE, SequenceGroup
from falcon_h1r.types import InputError

T = TypeVar("T")

# Ranks wait for each other while one samples, verifies or saves: on the CPU group, with a deadline of its own.
WAIT_LIMIT = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class World:
    """This rank among all. Collectives on Python objects and numbers go over a CPU group, never over the GPUs'.

    The ranks form a grid: `sequence.size` consecutive ones share each row, and so see the same data.
    """

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # gloo; None in a world of one
    sequence: SequenceGroup = ALONE
    watch: Watch = field(default_factory=Watch, compare=False)

    @classmethod
    def start(cls, sequence_parallel: int = 1) -> World:
        """Join the process group that the launcher describes, or be alone.

        Raises:
            InputError: where `sequence_parallel` does not divide the ranks.
        """
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT_LIMIT)
        group = dist.new_group(backend="gloo", timeout=WAIT_LIMIT) if state.num_processes > 1 else None
        sequence = join_sequence_group(state.process_index, state.num_processes, sequence_parallel)
        return cls(state.process_index, state.num_processes, state.device, group, sequence)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Among the groups of ranks that see data of their own."""
        return self.rank // self.sequence.size

    @property
    def data_size(self) -> int:
        return self.size // self.sequence.size

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over ranks, in float64."""
        if self.group is None:
            return list(values)
        totals = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(totals, group=self.group)
        return totals.tolist()

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """Sums over data ranks, on every rank: what the ranks of a sequence group all know counts once."""
        return self.sum(values if self.sequence.rank == 0 else [0.0] * len(values))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank, on every rank."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.group is None:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on every rank. An InputError of rank 0 is raised on all of them."""
        outcome: tuple[T | None, InputError | None] = (None, None)
        if self.is_main:
            try:
                outcome = work(), None
            except InputError as error:
                outcome = None, error
        result, mistake = self.broadcast(outcome)
        if mistake is not None:
            raise mistake
        return cast(T, result)

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.group is not None:
            dist.barrier(group=self.group)

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list: every size-th item from its rank on."""
        return list(items[self.rank :: self.size])

    @staticmethod
    def stop() -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join_sequence_group(rank: int, num_ranks: int, degree: int) -> SequenceGroup:
    """This rank's group of `degree` consecutive ranks. Every rank makes every group, as torch wants it.

    Raises:
        InputError: where the degree does not divide the ranks.
    """
    if num_ranks % degree:
        raise InputError(f"engine.sequence_parallel={degree}: does not divide the {num_ranks} processes")
    if degree == 1:
        return ALONE
    groups = [dist.new_group(list(range(first, first + degree))) for first in range(0, num_ranks, degree)]
    return SequenceGroup(rank % degree, degree, groups[rank // degree])


def launched() -> bool:
    """Whether a launcher already started this process as one of several ranks."""
    return "LOCAL_RANK" in os.environ or "RANK" in os.environ


def relaunch(num_processes: int) -> NoReturn:
    """Become the launcher of `num_processes` ranks with the same command line, one thread a rank; exits with them.

    This is torchrun without its own account of a failure: a rank that fails has already said why.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    options = [
        "--standalone",
        "--monitor-interval=1",  # seconds; its default looks ten times as often, at a tenth of a core
        f"--nproc-per-node={num_processes}",
    ]
    try:
        torchrun.run(torchrun.parse_args([*options, *sys.argv]))
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode < 0:
            print(f"error: rank {rank} was killed by signal {-first.exitcode}", file=sys.stderr)
        sys.exit(max(1, first.exitcode))
    sys.exit(0)
