"""Carrying out a check on all ranks: in a thread of its own, with a deadline, in groups that no other check meets in.

A check that raises becomes its red line, and so does one that does not come back in time; the others go on. What
cannot be had again is the devices' own group: where ranks left it at different places, later checks that need it would
pair their collectives with the wrong ones, and are skipped instead.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from falcon_h1r.distributed.world import World
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, SKIPPED, Finding, merge_ranks, name_ranks
from falcon_h1r.types import InputError

GRACE_SECONDS = 5.0
SLACK_SECONDS = 60.0  # beyond a check's deadline, until a rank that says nothing counts as lost


@dataclass(frozen=True, slots=True)
class Check:
    """A topic of the table."""

    name: str
    examine: Callable[[Examination], list[Finding]]
    on_devices: bool = False  # whether it meets other ranks in the devices' group
    advice: str = "doctor_tracebacks.txt in the run folder holds the traceback"  # where it raises


@dataclass(slots=True)
class Outcome:
    """Of one check, on all ranks."""

    name: str
    findings: list[Finding]
    seconds: float = 0.0
    tracebacks: dict[int, str] = field(default_factory=dict)  # by rank
    hung: bool = False


@dataclass(slots=True)
class _Local:
    """What became of a check on this rank."""

    findings: list[Finding]
    trace: str | None = None
    hung: bool = False


class LostRank(Exception):
    """Another rank no longer answers."""


class Runner:
    """Runs checks one after the other, on every rank the same ones."""

    def __init__(self, world: World, checks: Sequence[Check], seconds: float) -> None:
        """Every rank has to make one at the same time.

        Args:
            seconds: that each check may take.
        """
        self.world, self.checks, self.seconds = world, checks, seconds
        self._meeting = _own_group(world, seconds + SLACK_SECONDS)
        # All of them now: to make a group, ranks have to meet, which a later mishap may prevent.
        # A wait in them outlasts the check's deadline, so that who waits in vain is not taken for the cause.
        self._worlds = [_own_group(world, seconds + GRACE_SECONDS) for _ in checks]
        self._device_group_left_by: str | None = None

    def run(self, index: int, examination: Examination) -> Outcome:
        """Carry out a check.

        Raises:
            LostRank: where a rank did not even say that it failed.
        """
        check, started = self.checks[index], time.perf_counter()
        if check.on_devices and self._device_group_left_by is not None:
            why = f"ranks left the devices' group apart in '{self._device_group_left_by}': see to that first"
            return Outcome(check.name, [Finding(check.name, SKIPPED, "not tried", why)])
        examination.world = self._worlds[index]
        local = self._attempt(check, examination)
        by_rank = self.meet(local)
        outcome = Outcome(
            check.name,
            _blame([rank.findings for rank in by_rank], [rank.hung for rank in by_rank]),
            time.perf_counter() - started,
            {rank: each.trace for rank, each in enumerate(by_rank) if each.trace is not None},
            any(rank.hung for rank in by_rank),
        )
        came_apart = outcome.hung or 0 < len(outcome.tracebacks) < self.world.size
        if check.on_devices and came_apart and self.world.size > 1:
            self._device_group_left_by = check.name
        return outcome

    def meet(self, value: _Local) -> list[_Local]:
        """Every rank's, on every rank.

        Raises:
            LostRank: where one does not come.
        """
        try:
            return self._meeting.gather(value)
        except RuntimeError as error:
            raise LostRank(str(error).splitlines()[0]) from error

    def leave_together(self) -> None:
        """Wait until every rank is done, so that none is ended by a launcher before it has said its last word."""
        try:
            self._meeting.barrier()
        except RuntimeError:
            return  # a rank is lost, and has been named

    def _attempt(self, check: Check, examination: Examination) -> _Local:
        """The check in a thread that is left to itself after the deadline."""
        done: list[_Local] = []
        num_threads = torch.get_num_threads()

        def work() -> None:
            torch.set_num_threads(num_threads)  # a thread starts with torch's defaults
            if examination.world.device.type == "cuda":
                torch.cuda.set_device(examination.world.device)
            done.append(_examined(check, examination))

        thread = threading.Thread(target=work, name=f"doctor: {check.name}", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if done:
            return done[0]
        advice = "look for a rank that is late or dead, or raise doctor.seconds if the machine is merely slow"
        return _Local([Finding(check.name, FAILED, f"no answer within {self.seconds:g} s", advice)], hung=True)


def _examined(check: Check, examination: Examination) -> _Local:
    try:
        return _Local(check.examine(examination))
    except InputError as error:
        return _Local([Finding(check.name, FAILED, str(error), "correct this setting")])
    except Exception as error:  # whatever it is, it is this check's finding
        text = " ".join(str(error).split())[:300]
        finding = Finding(check.name, FAILED, f"{type(error).__name__}: {text}", check.advice)
        return _Local([finding], trace=traceback.format_exc())


def _blame(by_rank: list[list[Finding]], hung: list[bool]) -> list[Finding]:
    """All ranks' findings in one list. Ranks that waited in vain for one that failed do not speak over it."""
    waited = [rank for rank, is_hung in enumerate(hung) if is_hung]
    told = [[] if is_hung else findings for findings, is_hung in zip(by_rank, hung, strict=True)]
    merged = merge_ranks(told)
    if not waited:
        return merged
    if any(finding.status == FAILED for finding in merged):
        return merged
    (finding,) = by_rank[waited[0]]
    if len(waited) < len(hung):
        finding = replace(finding, measured=f"{name_ranks(waited)}: {finding.measured}")
    return [*merged, finding]


def _own_group(world: World, seconds: float) -> World:
    """The world, meeting in a CPU group of its own whose collectives fail after so many seconds."""
    if world.group is None:
        return world
    return replace(world, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)))
