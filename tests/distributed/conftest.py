"""Ranks under supervision, as processes that are seen to end: forked, so that they are there at once."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.supervision import Supervisor
from falcon_h1r.distributed.verdicts import STOPPED
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World

Work = Callable[[World], None]
HANGS_AFTER_SECONDS = 45.0  # a rank that has not met the others by then writes where it is
SHORT_LIMITS = SupervisionConfig(silent_seconds=2.0, lost_seconds=1.0, wait_seconds=60.0)


@dataclass
class SupervisedRanks:
    """Processes that run `work` as entry runs a recipe, with the console in a file."""

    folder: Path
    processes: list[multiprocessing.Process] = field(default_factory=list)

    def start(self, size: int, work: Work, settings: SupervisionConfig = SHORT_LIMITS) -> None:
        # A file outlives all ranks. A TCP store's client now and then hangs in a process forked from one with threads.
        store = str(self.folder / "store")
        context = multiprocessing.get_context("fork")

        def rank_main(rank: int) -> None:
            console = os.open(self.folder / "console", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(console, descriptor)
                setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115 -- not the test runner's
            faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS)
            torch.set_num_threads(1)
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
            world = World(rank, size, torch.device("cpu"), dist.group.WORLD)
            supervisor = Supervisor(world, settings)
            supervisor.open_log(self.folder)
            world.barrier()  # a signal finds every rank supervised
            faulthandler.cancel_dump_traceback_later()
            try:
                with supervisor.interruptible():
                    work(replace(world, watch=supervisor))
            except StopRequested:
                supervisor.leave(STOPPED, lambda: print(f"stopped by {supervisor.stop_signal}", flush=True))
                os._exit(STOPPED)
            except BaseException as error:
                supervisor.fail(error)
            supervisor.leave(0)
            os._exit(0)

        self.processes = [context.Process(target=rank_main, args=(rank,)) for rank in range(size)]
        for process in self.processes:
            process.start()

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid or 0, number)

    def reach(self, mark: str, seconds: float = 60.0) -> None:
        """Wait until the ranks have told, by a file of that name, that they have come so far."""
        deadline = time.monotonic() + seconds
        while not (self.folder / mark).exists():
            assert time.monotonic() < deadline, f"no {mark}: {self.console}"
            assert any(process.is_alive() for process in self.processes), self.console
            time.sleep(0.01)

    def statuses(self, seconds: float = 60.0) -> list[int | None]:
        """Exit statuses: of a rank that was killed, minus the signal; None for one that is still there."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    @property
    def console(self) -> str:
        return (self.folder / "console").read_text()

    def log(self, rank: int) -> str:
        return (self.folder / "logs" / f"rank_{rank:05d}.log").read_text()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[SupervisedRanks]:
    """None is left behind."""
    supervised = SupervisedRanks(tmp_path)
    yield supervised
    for process in supervised.processes:
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
