"""Stands in for a recipe where only starting and stopping are tested: counts steps, saves, resumes, requeues.

    counting_recipe.py run_dir=FOLDER [resume=true] [steps=N] [step_seconds=S] [save_seconds=S]
        [supervision.requeue=false]

Like a recipe, it writes a line to metrics.jsonl for every step (rank 0), saves when SIGTERM or SIGUSR1 tells it to
stop, and after SIGUSR1 has slurm put the job back into its queue. Every rank notes its signals in signals.rankN.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

SETTINGS = {
    "resume": "false",
    "steps": "3",
    "step_seconds": "0.1",
    "save_seconds": "0",
    "supervision.requeue": "true",
    **dict(argument.split("=", 1) for argument in sys.argv[1:]),
}
RUN = Path(SETTINGS["run_dir"])
RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])
received: list[str] = []


def receive(number: int, frame: FrameType | None) -> None:
    received.append(signal.Signals(number).name)
    with (RUN / f"signals.rank{RANK}").open("a") as notes:
        notes.write(received[-1] + "\n")


def count_steps() -> int:
    """Go on from the saved step; returns the last one finished."""
    saved = RUN / f"saved.rank{RANK}"
    step = int(saved.read_text()) if SETTINGS["resume"] == "true" and saved.exists() else 0
    saved.unlink(missing_ok=True)  # whoever is told to stop writes a new one
    (RUN / f"started.rank{RANK}").touch()
    while step < int(SETTINGS["steps"]):
        time.sleep(float(SETTINGS["step_seconds"]))
        if received:
            break
        step += 1
        if RANK == 0:
            with (RUN / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps({"step": step, "ranks": WORLD_SIZE}) + "\n")
    return step


def save(step: int) -> None:
    """Write the step down; rank 0 waits until all have."""
    time.sleep(float(SETTINGS["save_seconds"]))
    (RUN / f"saved.rank{RANK}").write_text(str(step))
    while RANK == 0 and len(list(RUN.glob("saved.rank*"))) < WORLD_SIZE:
        time.sleep(0.1)


RUN.mkdir(parents=True, exist_ok=True)
for expected in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(expected, receive)
last = count_steps()
if received:
    save(last)
    asks = RANK == 0 and SETTINGS["supervision.requeue"] == "true" and "SLURM_JOB_ID" in os.environ
    if asks and received[0] == "SIGUSR1":
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
else:
    (RUN / f"done.rank{RANK}").touch()
