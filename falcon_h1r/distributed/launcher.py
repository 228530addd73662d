"""Our own launcher: a plain `python recipes/x.py` with launch.num_processes=N becomes N ranks on this machine.

Not torchrun: that one kills the ranks 30 s after a signal, also while they save, does not pass on SIGUSR1, hides their
exit status and prints a table of its own when one fails.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from falcon_h1r.distributed.verdicts import FAILED, LAUNCHER, STOPPED

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
POLL_SECONDS = 0.1
GRACE_SECONDS = 15.0  # after a rank has failed, for the others to say why and end by themselves
PR_SET_PDEATHSIG = 1


def relaunch(num_processes: int) -> NoReturn:
    """Become the launcher of `num_processes` ranks with the same command line, one thread a rank; exits with them.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP are passed on; what they mean is the ranks' business. Exits with 0 if all ranks
    did, else with the status of the first that failed: 1 if it was killed, 75 if by a signal that was passed on.
    """
    limit = timedelta(seconds=300)
    store = dist.TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)  # type: ignore[attr-defined]
    environment = {
        **{"OMP_NUM_THREADS": "1"},
        **os.environ,
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        **{"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes), LAUNCHER: str(os.getpid())},
    }
    ranks: list[subprocess.Popen[bytes]] = []
    passed = _pass_on_signals(ranks)
    for rank in range(num_processes):
        described = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        # A session of its own: the terminal's Ctrl-C reaches it once, through this process.
        ranks.append(subprocess.Popen([sys.executable, *sys.argv], env=described, start_new_session=True))
    sys.exit(_wait_for(ranks, passed))


def run_command(command: Sequence[str]) -> int:
    """A command to its end; returns its exit status. Signals are passed on, as to ranks."""
    processes: list[subprocess.Popen[bytes]] = []
    passed = _pass_on_signals(processes)
    processes.append(subprocess.Popen(command, start_new_session=True))
    return _wait_for(processes, passed)


def _pass_on_signals(processes: list[subprocess.Popen[bytes]]) -> Collection[int]:
    """From now on; returns those that have been, as it fills."""
    passed: set[int] = set()

    def pass_on(number: int, frame: object) -> None:
        passed.add(number)
        for process in processes:
            process.send_signal(number)  # does nothing once it has been seen to end

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    return passed


def _wait_for(ranks: list[subprocess.Popen[bytes]], passed: Collection[int] = ()) -> int:
    """The exit status of the launcher. Nothing is left of the ranks when it returns.

    Args:
        passed: signals passed on so far. A rank that one of them has killed did not take signals yet.
    """
    first_failure: tuple[int, int] | None = None  # rank, return code
    deadline = float("inf")
    try:
        while None in [rank.poll() for rank in ranks]:  # each is asked: `returncode` is of when it last was
            if first_failure is None:
                failed = [(index, rank.returncode) for index, rank in enumerate(ranks) if rank.returncode]
                if failed:
                    first_failure, deadline = failed[0], time.monotonic() + GRACE_SECONDS
            elif time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    codes = [rank.returncode for rank in ranks]
    if first_failure is None:
        first_failure = next(((index, code) for index, code in enumerate(codes) if code), (0, 0))
    index, code = first_failure
    if -code in passed:
        print(f"{signal.Signals(-code).name}: stopped before the run had begun", file=sys.stderr)
        return STOPPED
    if all(each <= 0 for each in codes) and code < 0:  # a rank that ends by itself has said why
        print(f"error: rank {index} was killed by {signal.Signals(-code).name}", file=sys.stderr)
    return code if code >= 0 else FAILED


def end_with_launcher() -> None:
    """Have the kernel send this rank a SIGTERM should our launcher die: it then saves, and ends."""
    parent = os.environ.get(LAUNCHER)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
