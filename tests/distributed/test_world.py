"""What ranks tell each other goes over a group of the CPU, with a deadline of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.distributed.world import World

CPU = torch.device("cpu")


def deadline_of(group: dist.ProcessGroup) -> float:
    return group._get_backend(CPU).options._timeout.total_seconds()


def test_meetings_and_collectives_have_deadlines_of_their_own() -> None:
    """Of two ranks that a launcher started, as `World.start` makes them."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    told: Any = context.SimpleQueue()

    def start(rank: int) -> None:
        PartialState._reset_state()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
        world = World.start(2, SupervisionConfig(wait_seconds=300.0, collective_seconds=100.0))
        groups = (world.group, dist.group.WORLD, world.sequence.group)
        told.put((dist.get_backend(world.group), [deadline_of(group) for group in groups if group is not None]))
        world.barrier()  # or the first would leave while the other still connects
        world.stop()

    processes = [context.Process(target=start, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [told.get() for _ in processes] == [("gloo", [360.0, 100.0, 100.0])] * 2


class Recorder(Watch):
    """Counts what is marked as waiting."""

    def __init__(self) -> None:
        self.num_waits = 0

    def waiting(self):
        self.num_waits += 1
        return super().waiting()


def test_every_meeting_is_on_the_cpus_group_and_marked_as_waiting(run_on_ranks, monkeypatch) -> None:
    def meet(world: World) -> tuple[int, list[bool]]:
        group = dist.new_group(backend="gloo")
        on_cpus_group = []

        def watched(collective):
            def call(*args, **options):
                on_cpus_group.append(options.get("group") is group)
                return collective(*args, **options)

            return call

        recorder = Recorder()
        world = replace(world, group=group, watch=recorder)
        with monkeypatch.context() as patch:
            for name in ("all_reduce", "all_gather_object", "broadcast_object_list", "barrier", "all_to_all_single"):
                patch.setattr(dist, name, watched(getattr(dist, name)))
            assert world.sum([1.0]) == [2.0]
            assert world.sum_over_data([1.0]) == [2.0]
            assert world.any(world.is_main)
            assert world.gather(world.rank) == [0, 1]
            assert world.broadcast(world.rank) == 0
            assert world.on_main(lambda: "told") == "told"
            assert world.exchange([world.rank, world.rank]) == [0, 1]
            world.barrier()
        return recorder.num_waits, on_cpus_group

    assert run_on_ranks(2, meet) == [(8, [True] * 9)] * 2  # an exchange tells sizes first


def test_an_exchange_brings_every_rank_what_the_others_had_for_it(run_on_ranks) -> None:
    def meet(world: World) -> list[Any]:
        return world.exchange([(world.rank, other, torch.arange(1000 * other * world.rank)) for other in range(4)])

    for rank, received in enumerate(run_on_ranks(4, meet)):
        assert [(sender, receiver) for sender, receiver, _ in received] == [(other, rank) for other in range(4)]
        assert [len(tensor) for *_, tensor in received] == [1000 * rank * other for other in range(4)]


def test_a_second_thread_meets_in_a_group_of_its_own(run_on_ranks) -> None:
    """The threads' meetings fall as they may: in one group they would be taken for each other."""

    def meet(world: World) -> tuple[list[int], list[int]]:
        recorder = Recorder()
        apart = world.apart(recorder, wait_seconds=60.0)
        assert apart.watch is recorder and apart.group is not world.group
        beside: list[int] = []

        def second() -> None:
            for number in range(20):
                beside.append(sum(apart.gather(number * (apart.rank + 1))))

        thread = threading.Thread(target=second)
        thread.start()
        main = [int(world.sum([1000.0 * number])[0]) for number in range(20)]
        thread.join()
        assert recorder.num_waits == 20
        return main, beside

    for main, beside in run_on_ranks(2, meet):
        assert main == [2000 * number for number in range(20)]
        assert beside == [3 * number for number in range(20)]
