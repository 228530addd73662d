"""What ends a job, and how that is put: the rules of supervision as functions of what ranks have last been heard of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FAILED = 1  # exit statuses; docs/supervision.md has the table
USAGE_ERROR = 2
STOPPED = 75  # EX_TEMPFAIL: not finished, the same command with resume=true goes on

LAUNCHER = "FALCON_H1R_LAUNCHER"  # in the environment of ranks: the process id of our own launcher
STOP_GRACE_SECONDS = 5.0  # for a rank that waits for one that has left because of a stop


@dataclass(slots=True)
class RankState:
    """What is known of a rank. Times are of the observer's monotonic clock, in seconds."""

    rank: int
    host: str = ""
    pid: int = 0
    started: str = ""  # when its process started, as /proc has it
    machine: str = ""  # boot and PID namespace: where pid means something
    beats: int = 0
    step: int | None = None
    phase: str = "starting"
    is_waiting: bool = False
    heard_at: float = 0.0  # its last sign of life
    changed_at: float = 0.0  # its last progress
    left_with: int | None = None  # the status with which its recipe has ended

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host})"

    @property
    def place(self) -> str:
        """`in step 17, sampling`."""
        doing = f"{self.phase}, waiting for others" if self.is_waiting else self.phase
        return f"in step {self.step}, {doing}" if self.step is not None else f"in {doing}"


@dataclass(frozen=True, slots=True)
class Ending:
    """Why all ranks end now."""

    text: str  # for the console
    status: int
    lost: list[int] = field(default_factory=list)  # ranks that will not hear of it
    with_places: bool = False  # rank 0, which knows, adds where every rank is

    def as_message(self) -> dict[str, object]:
        return {"kind": "end", **asdict(self)}

    @classmethod
    def of_message(cls, message: dict[str, object]) -> Ending:
        return cls(**{key: value for key, value in message.items() if key != "kind"})  # type: ignore[arg-type]


def find_silent(states: Sequence[RankState], now: float, lost_seconds: float) -> Ending | None:
    """A rank that still had to be heard of, and was not for so long."""
    silent = [state for state in states if state.left_with is None and now - state.heard_at > lost_seconds]
    if not silent:
        return None
    lines = [
        f"{state.name} was lost {state.place}: no sign of life for {now - state.heard_at:.0f} s{_condition(state)}"
        for state in silent
    ]
    return Ending("\n".join(f"error: {line}" for line in lines), FAILED, [state.rank for state in silent])


def lost_process(state: RankState) -> Ending:
    """A rank whose connection closed without a word."""
    text = f"error: {state.name} was lost {state.place}: its process ended without a word (killed, or out of memory?)"
    return Ending(text, FAILED, [state.rank])


def find_deadlock(states: Sequence[RankState], now: float, silent_seconds: float) -> Ending | None:
    """All who are still there wait, for each other or for one that has left, and nobody has moved for so long."""
    here = [state for state in states if state.left_with is None]
    if not here or not all(state.is_waiting for state in here):
        return None
    if any(now - state.changed_at <= silent_seconds for state in states):
        return None
    return Ending(
        f"error: all ranks have waited for each other for {silent_seconds:g} s:\n{list_places(states, now)}", FAILED
    )


def find_forsaken(states: Sequence[RankState], now: float) -> Ending | None:
    """After a stop: all who are still there wait for ranks that have already left because of it."""
    here = [state for state in states if state.left_with is None]
    if STOPPED not in [state.left_with for state in states] or not here:
        return None
    if all(state.is_waiting and now - state.changed_at > STOP_GRACE_SECONDS for state in here):
        return Ending("", STOPPED)
    return None


def find_overdue(states: Sequence[RankState], now: float, wait_seconds: float) -> Ending | None:
    """A rank has waited for others for longer than anything should take."""
    for state in states:
        if state.left_with is None and state.is_waiting and now - state.changed_at > wait_seconds:
            text = f"error: {state.name} has waited for others for supervision.wait_seconds={wait_seconds:g}:"
            return Ending(f"{text}\n{list_places(states, now)}", FAILED)
    return None


def list_places(states: Sequence[RankState], now: float) -> str:
    """A line a rank: where it is, and for how long."""
    return "\n".join(
        f"  {state.name}: has ended"
        if state.left_with is not None
        else f"  {state.name}: {state.place}, without progress for {now - state.changed_at:.0f} s"
        for state in states
    )


# -----------------------------------------------------------------------------
# Processes of this machine


def this_machine() -> str:
    """Boot and PID namespace, or "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_fields(pid: int) -> list[str]:
    """/proc/PID/stat after the command's name: the state's letter first; [] where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def process_start(pid: int) -> str:
    """When a process started, in ticks since boot: with its id, it names one process for good."""
    fields = process_fields(pid)
    return fields[19] if len(fields) > 19 else ""


def is_here(state: RankState) -> bool:
    """Whether a rank's process is one of this machine, and still there."""
    return bool(state.machine) and state.machine == this_machine() and process_start(state.pid) == state.started != ""


def _condition(state: RankState) -> str:
    """What this machine knows of a process that says nothing, as the end of a line."""
    if not is_here(state):
        return " (killed, or its machine is gone?)"
    if process_fields(state.pid)[0] in "Tt":
        return " (its process is stopped)"
    return " (its process is there, but Python's lock is held or it waits in the kernel)"
