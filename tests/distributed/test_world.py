"""What ranks tell each other goes over a group of the CPU, with a deadline of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from falcon_h1r.config import SupervisionConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.distributed.world import World
from tests.integration.test_launch import ROOT

CPU = torch.device("cpu")


def deadline_of(group: dist.ProcessGroup) -> timedelta:
    return group._get_backend(CPU).options._timeout


def test_meetings_and_collectives_have_deadlines_of_their_own(tmp_path) -> None:
    """Of two ranks that a launcher started, as `World.start` makes them."""
    script = tmp_path / "rank.py"
    script.write_text(
        "from tests.distributed.test_world import tell_deadlines\n"
        "tell_deadlines()\n"
    )  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["gloo,360,100,100"] * 2


def tell_deadlines() -> None:
    world = World.start(2, SupervisionConfig(wait_seconds=300.0, collective_seconds=100.0))
    assert world.group is not None and world.group is not dist.group.WORLD
    assert world.sequence.group is not None and dist.group.WORLD is not None
    seconds = [deadline_of(group).total_seconds() for group in (world.group, dist.group.WORLD, world.sequence.group)]
    told = ",".join(f"{number:g}" for number in seconds)
    os.write(1, f"{dist.get_backend(world.group)},{told}\n".encode())
    world.stop()


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
            for name in ("all_reduce", "all_gather_object", "broadcast_object_list", "barrier"):
                patch.setattr(dist, name, watched(getattr(dist, name)))
            assert world.sum([1.0]) == [2.0]
            assert world.sum_over_data([1.0]) == [2.0]
            assert world.any(world.is_main)
            assert world.gather(world.rank) == [0, 1]
            assert world.broadcast(world.rank) == 0
            assert world.on_main(lambda: "told") == "told"
            world.barrier()
        return recorder.num_waits, on_cpus_group

    assert run_on_ranks(2, meet) == [(7, [True] * 7)] * 2
