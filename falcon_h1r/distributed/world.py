"""The processes of a run: who am I, how many are we, and the few things we tell each other.

Whoever started the ranks (falcon_h1r.distributed.launcher, torchrun, deepspeed, accelerate) described them in the
environment.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState

from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.model.sequence import ALONE, SequenceGroup
from falcon_h1r.types import InputError

T = TypeVar("T")

# The supervisor watches over supervision.wait_seconds, and names who was waited for; gloo's own deadline, which names
# nobody, comes after it.
BACKSTOP_SECONDS = 60.0
# What was under way when a collective of NCCL missed its deadline; where nobody has set it otherwise.
FLIGHT_RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "2000",  # collectives
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


@dataclass(frozen=True, slots=True)
class World:
    """This rank among all. Collectives on Python objects and numbers, "meetings", go over a CPU group, never the GPUs'.

    A rank may wait in a meeting while another samples, verifies, tokenises, downloads or saves: they have a deadline of
    hours, and the watch knows that the rank waits. Work of uneven length ends with one before a collective of the GPUs.

    The ranks form a grid: `sequence.size` consecutive ones share each row, and so see the same data.
    """

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # gloo; None in a world of one
    sequence: SequenceGroup = ALONE
    watch: Watch = field(default_factory=Watch, compare=False)

    @classmethod
    def start(cls, sequence_parallel: int = 1, supervision: SupervisionConfig | None = None) -> World:
        """Join the process group that the launcher describes, or be alone.

        Args:
            supervision: the deadlines of meetings (`wait_seconds`, on the CPU's group) and of the GPUs' collectives.

        Raises:
            InputError: where `sequence_parallel` does not divide the ranks.
        """
        limits = supervision or SupervisionConfig()
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        if torch.cuda.is_available():
            for name, value in FLIGHT_RECORDER.items():
                os.environ.setdefault(name, value)
        collectives = timedelta(seconds=limits.collective_seconds)
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=collectives)
        wait = timedelta(seconds=limits.wait_seconds + BACKSTOP_SECONDS)
        group = dist.new_group(backend="gloo", timeout=wait) if state.num_processes > 1 else None
        world = cls(state.process_index, state.num_processes, state.device, group)
        return world.sharing_rows(sequence_parallel, collectives)

    def sharing_rows(self, degree: int, collectives: timedelta | None = None) -> World:
        """This world with groups of `degree` consecutive ranks that share each row; every rank has to make them.

        Args:
            collectives: the deadline of the groups' collectives, which are the GPUs'; None: torch's own.

        Raises:
            InputError: where the degree does not divide the ranks.
        """
        return replace(self, sequence=join_sequence_group(self.rank, self.size, degree, collectives))

    def apart(self, watch: Watch, wait_seconds: float | None = None) -> World:
        """The same ranks with a group for meetings of its own, so that a second thread may meet beside the first.

        Every rank has to make it at the same time. Its meetings are on the CPU; the sequence group stays the first
        thread's alone.

        Args:
            watch: the second thread's.
            wait_seconds: the deadline of its meetings; None: torch's own.
        """
        if self.group is None:
            return replace(self, watch=watch)
        wait = timedelta(seconds=wait_seconds + BACKSTOP_SECONDS) if wait_seconds is not None else None
        return replace(self, group=dist.new_group(backend="gloo", timeout=wait), watch=watch)

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
        with self.watch.waiting():
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
        with self.watch.waiting():
            dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def exchange(self, values: Sequence[T]) -> list[T]:
        """`values[r]` goes to rank r; what every rank had for this one comes back, in the order of ranks.

        Each rank receives what is meant for it and nothing else, where `gather` would bring everything to all.
        """
        assert len(values) == self.size
        if self.group is None:
            return list(values)
        sent = [pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL) for value in values]
        sent_bytes = torch.tensor([len(each) for each in sent])
        received_bytes = torch.empty_like(sent_bytes)
        outgoing = torch.frombuffer(bytearray(b"".join(sent)), dtype=torch.uint8)
        with self.watch.waiting():
            dist.all_to_all_single(received_bytes, sent_bytes, group=self.group)
            incoming = torch.empty(int(received_bytes.sum()), dtype=torch.uint8)
            dist.all_to_all_single(incoming, outgoing, received_bytes.tolist(), sent_bytes.tolist(), group=self.group)
        return [pickle.loads(part.numpy().data) for part in incoming.split(received_bytes.tolist())]

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.group is None:
            return value
        box = [value]
        with self.watch.waiting():
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
            with self.watch.waiting():
                dist.barrier(group=self.group)

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list: every size-th item from its rank on."""
        return list(items[self.rank :: self.size])

    @staticmethod
    def stop() -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join_sequence_group(rank: int, num_ranks: int, degree: int, collectives: timedelta | None = None) -> SequenceGroup:
    """This rank's group of `degree` consecutive ranks. Every rank makes every group, as torch wants it.

    Raises:
        InputError: where the degree does not divide the ranks.
    """
    if num_ranks % degree:
        raise InputError(f"engine.sequence_parallel={degree}: does not divide the {num_ranks} processes")
    if degree == 1:
        return ALONE
    groups = [
        dist.new_group(list(range(first, first + degree)), timeout=collectives) for first in range(0, num_ranks, degree)
    ]
    return SequenceGroup(rank % degree, degree, groups[rank // degree])
