"""Ranks that are told to stop, fail, die, are stopped or hang: all of them end, and why is told once."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.collective_errors import is_lost_connection
from falcon_h1r.distributed.supervision import Supervisor
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.distributed.world import World
from falcon_h1r.types import InputError
from tests.distributed.conftest import SHORT_LIMITS, SupervisedRanks

PATIENT = replace(SHORT_LIMITS, silent_seconds=60.0, lost_seconds=20.0)
LAST_STEP = 10_000


def train(ranks: SupervisedRanks, befall=lambda world: None, rank: int = 1, at_step: int = 20):
    """Steps that end with a meeting; what befalls a rank in one of them; on a stop, all leave together."""

    def work(world: World) -> None:
        for step in range(LAST_STEP):
            world.watch.beat("training", step)
            time.sleep(0.01)
            if (world.rank, step) == (rank, at_step):
                befall(world)
            if world.any(world.watch.stop_requested):
                (ranks.folder / f"saved_{world.rank}").touch()
                raise StopRequested
            if step == at_step:
                (ranks.folder / "under_way").touch()

    return work


def fail(world: World) -> None:
    raise ValueError("the twentieth step is unlucky")


def hang(world: World) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def test_a_signal_to_one_rank_stops_all_in_the_same_step(ranks: SupervisedRanks) -> None:
    ranks.start(3, train(ranks), PATIENT)
    ranks.reach("under_way")
    ranks.signal(2, signal.SIGTERM)
    assert ranks.statuses() == [75, 75, 75]
    assert all((ranks.folder / f"saved_{rank}").exists() for rank in range(3))
    assert "stopping on SIGTERM to rank 2" in ranks.console
    assert ranks.console.count("stopp") == 2, "that it stops and that it has stopped, both from rank 0 alone"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_reaches_every_rank_is_one_stop(ranks: SupervisedRanks, number: signal.Signals) -> None:
    ranks.start(2, train(ranks), PATIENT)
    ranks.reach("under_way")
    for rank in (0, 1, 0, 1):  # as a launcher does, and slurm beside it
        ranks.signal(rank, number)
    assert ranks.statuses() == [75, 75]
    assert ranks.console.endswith(f"stopped by {number.name}\n")


def test_a_stop_reaches_a_main_thread_that_python_cannot_interrupt(ranks: SupervisedRanks) -> None:
    """Rank 1 waits in a meeting, in C++, for as long as rank 0 takes to see the stop that only rank 1 was told of."""

    def work(world: World) -> None:
        if world.is_main:
            (ranks.folder / "under_way").touch()
            while not world.watch.stop_requested:
                time.sleep(0.01)
        world.barrier()
        raise StopRequested

    ranks.start(2, work, PATIENT)
    ranks.reach("under_way")
    time.sleep(0.3)
    ranks.signal(1, signal.SIGTERM)
    assert ranks.statuses() == [75, 75]


@pytest.mark.slow
def test_a_rank_that_waits_for_one_that_has_stopped_ends_with_it(ranks: SupervisedRanks) -> None:
    def work(world: World) -> None:
        (ranks.folder / "under_way").touch()
        while world.is_main:
            world.watch.check()
            time.sleep(0.01)
        world.barrier()

    ranks.start(2, work, PATIENT)
    ranks.reach("under_way")
    ranks.signal(0, signal.SIGTERM)
    assert ranks.statuses() == [75, 75]
    assert "error" not in ranks.console


@pytest.mark.slow
def test_work_that_has_nothing_to_save_is_left_at_once(ranks: SupervisedRanks) -> None:
    """Rank 0 curates, and never asks; the others wait for it. The signal is rank 1's."""

    def work(world: World) -> None:
        if world.is_main:
            (ranks.folder / "under_way").touch()
            time.sleep(60.0)
        world.barrier()

    ranks.start(2, work, PATIENT)
    ranks.reach("under_way")
    ranks.signal(1, signal.SIGTERM)
    assert ranks.statuses(seconds=30) == [75, 75]
    assert "error" not in ranks.console


def test_work_that_beats_is_not_interrupted(ranks: SupervisedRanks) -> None:
    def work(world: World) -> None:
        world.watch.beat("training", 0)
        (ranks.folder / "under_way").touch()
        while not world.watch.stop_requested:
            time.sleep(0.01)
        time.sleep(0.5)  # an exception would come by now
        (ranks.folder / "saved").touch()
        raise StopRequested

    ranks.start(1, work, PATIENT)
    ranks.reach("under_way")
    ranks.signal(0, signal.SIGTERM)
    assert ranks.statuses() == [75]
    assert (ranks.folder / "saved").exists()


def test_a_second_signal_ends_at_once(ranks: SupervisedRanks) -> None:
    def work(world: World) -> None:
        world.watch.beat("training", 0)
        world.barrier()  # before its first beat, a rank would be interrupted
        (ranks.folder / "under_way").touch()
        with world.watch.long("saving"):
            time.sleep(60.0)

    ranks.start(2, work, PATIENT)
    ranks.reach("under_way")
    ranks.signal(1, signal.SIGINT)
    time.sleep(2.5)
    ranks.signal(1, signal.SIGINT)
    assert ranks.statuses(seconds=30) == [130, 130]
    assert ranks.console.count("a second SIGINT reached rank 1") == 1


@pytest.mark.slow
def test_slurms_repeated_sigterm_is_one_stop(ranks: SupervisedRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")

    def work(world: World) -> None:
        world.watch.beat("training", 0)
        (ranks.folder / "under_way").touch()
        with world.watch.long("saving"):
            time.sleep(3.5)
        raise StopRequested

    ranks.start(1, work, PATIENT)
    ranks.reach("under_way")
    ranks.signal(0, signal.SIGTERM)
    time.sleep(2.5)
    ranks.signal(0, signal.SIGTERM)
    assert ranks.statuses() == [75]


def test_an_exception_is_told_once_and_ends_all(ranks: SupervisedRanks) -> None:
    ranks.start(3, train(ranks, fail), PATIENT)
    assert ranks.statuses() == [1, 1, 1]
    assert ranks.console.count("Traceback") == 1
    assert ranks.console.count("ValueError: the twentieth step is unlucky") == 1
    assert "error: rank 1 (" in ranks.console and "failed in step 20, training:" in ranks.console
    for rank in (0, 2):
        assert "Thread 0x" in ranks.log(rank), "stacks of those that had to end"


def test_a_mistake_of_one_rank_is_one_line(ranks: SupervisedRanks) -> None:
    def mistake(world: World) -> None:
        raise InputError("rows.jsonl, line 7: not JSON")

    ranks.start(2, train(ranks, mistake), PATIENT)
    assert ranks.statuses() == [2, 2]
    assert ranks.console.splitlines()[0].endswith("): rows.jsonl, line 7: not JSON")
    assert len(ranks.console.splitlines()) == 1


def test_a_mistake_that_all_ranks_meet_is_told_by_rank_0(ranks: SupervisedRanks) -> None:
    def work(world: World) -> None:
        raise InputError("rows.jsonl, line 7: not JSON")

    ranks.start(3, work, PATIENT)
    assert ranks.statuses() == [2, 2, 2]
    assert ranks.console == "error: rows.jsonl, line 7: not JSON\n"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_ends_all(ranks: SupervisedRanks, victim: int) -> None:
    ranks.start(3, train(ranks), PATIENT)
    ranks.reach("under_way")
    ranks.signal(victim, signal.SIGKILL)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL
    assert ranks.statuses(seconds=15) == expected  # well before lost_seconds: its connection has closed
    assert ranks.console.count("error:") == 1
    assert f"error: rank {victim} (" in ranks.console and "killed, or out of memory?" in ranks.console
    assert "Traceback" not in ranks.console


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named_and_ends_all(ranks: SupervisedRanks, victim: int) -> None:
    ranks.start(3, train(ranks))
    ranks.reach("under_way")
    ranks.signal(victim, signal.SIGSTOP)
    expected = [1, 1, 1]
    expected[victim] = -signal.SIGKILL  # by another rank, so that nobody has to wait for it
    assert ranks.statuses(seconds=20) == expected
    assert ranks.console.count("error:") == 1
    assert f"error: rank {victim} (" in ranks.console and "(its process is stopped)" in ranks.console


def test_a_hung_rank_is_named_and_its_stack_shown(ranks: SupervisedRanks) -> None:
    ranks.start(2, train(ranks, hang))
    assert ranks.statuses() == [1, 1]
    assert ranks.console.count("error:") == 1
    assert "hangs in step 20, training: no progress for" in ranks.console
    assert "in hang\n    lock.acquire()" in ranks.console
    assert "rank 0 (" in ranks.console and "in step 20, training, waiting for others" in ranks.console


@pytest.mark.slow
def test_a_rank_that_never_lets_go_of_pythons_lock_is_lost_and_its_stack_shown(ranks: SupervisedRanks) -> None:
    def hold(world: World) -> None:
        import ctypes

        ctypes.PyDLL(None).sleep(600)

    ranks.start(2, train(ranks, hold, at_step=50))
    assert ranks.statuses() == [1, -signal.SIGKILL]
    assert ranks.console.count("error:") == 1
    assert "no sign of life" in ranks.console and " in hold\n" in ranks.console


def test_ranks_that_wait_for_each_other_are_all_listed(ranks: SupervisedRanks) -> None:
    ranks.start(2, train(ranks, lambda world: world.barrier() or world.barrier()))
    assert ranks.statuses() == [1, 1]
    assert ranks.console.count("error:") == 1
    assert "all ranks have waited for each other for 2 s" in ranks.console
    assert ranks.console.count("in step 20, training, waiting for others, without progress for") == 2


@pytest.mark.slow
def test_a_rank_that_waits_too_long_says_for_whom(ranks: SupervisedRanks) -> None:
    def work(world: World) -> None:
        if world.rank == 1:
            world.watch.beat("sampling", 7)
            with world.watch.long("sampling"):
                time.sleep(60.0)
        world.barrier()

    ranks.start(2, work, replace(SHORT_LIMITS, wait_seconds=2.0))
    assert ranks.statuses() == [1, 1]
    assert "rank 0" in ranks.console.splitlines()[0] and "supervision.wait_seconds=2" in ranks.console
    assert "in step 7, sampling, without progress" in ranks.console


@pytest.mark.slow
def test_long_work_and_long_waits_are_no_hang(ranks: SupervisedRanks) -> None:
    def work(world: World) -> None:
        world.watch.beat("training", 0)
        if world.rank == 1:
            with world.watch.long("loading"):
                time.sleep(2 * SHORT_LIMITS.silent_seconds)
        world.barrier()

    ranks.start(2, work)
    assert ranks.statuses() == [0, 0]
    assert ranks.console == ""


def test_only_rank_0_writes_to_the_console(ranks: SupervisedRanks) -> None:
    def work(world: World) -> None:
        print(f"printed by rank {world.rank}", flush=True)
        os.system(f"echo by a child of rank {world.rank}")

    ranks.start(2, work, PATIENT)
    assert ranks.statuses() == [0, 0]
    for text in ("printed by rank", "by a child of rank"):
        assert f"{text} 0" in ranks.console and f"{text} 1" not in ranks.console
        assert f"{text} 1" in ranks.log(1)


def test_a_failing_supervisor_ends_the_job_and_says_so(ranks: SupervisedRanks) -> None:
    def spoil(world: World) -> None:
        world.watch.post.report = None  # type: ignore[attr-defined]

    ranks.start(2, train(ranks, spoil), PATIENT)
    assert ranks.statuses() == [1, 1], ranks.console + ranks.log(1)
    assert ranks.console.count("error:") == 1
    assert "the supervision of rank 1" in ranks.console, ranks.log(1) and "TypeError" in ranks.console


def test_a_rank_alone_is_supervised_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(0, 1, torch.device("cpu"))
    before = signal.getsignal(signal.SIGTERM)
    supervisor = Supervisor(world, SupervisionConfig())
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not supervisor.stop_requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert supervisor.stop_signal == "SIGUSR1"
        with pytest.raises(StopRequested):
            supervisor.check()
        with pytest.raises(ValueError):
            supervisor.fail(ValueError())
    finally:
        supervisor.close()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "supervisor" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"), True),
        (RuntimeError("NCCL communicator was aborted"), True),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("a gloomy one"), False),
    ],
)
def test_what_only_tells_that_another_rank_has_gone_is_told_from_a_failure(error: Exception, expected: bool) -> None:
    wrapped = RuntimeError("a step failed")
    wrapped.__cause__ = error
    assert is_lost_connection(error) is expected
    assert is_lost_connection(wrapped) is expected
