"""Supervision of a distributed run: every rank's signals, signs of life and end. docs/supervision.md tells the rules.

A thread in each process does all of it, so that a main thread that is stuck, in a collective or anywhere else, does not
matter. Signals reach it without Python's main thread: the C handler writes their number into a pipe that it reads.
"""

from __future__ import annotations

import faulthandler
import math
import os
import queue
import secrets
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from falcon_h1r.config_errors import CONFIG_ERRORS, one_line
from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.collective_errors import is_lost_connection
from falcon_h1r.distributed.lines import connect_ranks
from falcon_h1r.distributed.posts import MainPost, SidePost
from falcon_h1r.distributed.rank_log import RankLog, main_thread_stack
from falcon_h1r.distributed.signals import SignalPipe
from falcon_h1r.distributed.verdicts import (
    FAILED,
    USAGE_ERROR,
    Ending,
    RankState,
    is_here,
    process_start,
    this_machine,
)
from falcon_h1r.distributed.watch import StopRequested, Watch
from falcon_h1r.distributed.world import World

PULSE_SECONDS = 1.0
SAME_STOP_SECONDS = 2.0  # launchers and slurm send a stop twice, by different ways
LINGER_SECONDS = 3.0  # rank 0 stays so long for the others to hear of the end
END_SECONDS = 20.0  # within which a process has ended, once it knows that it has to
AGREE_SECONDS = 3.0  # within which all ranks meet the same mistake; then the one that did tells it
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOPS = (*ENDS, signal.SIGUSR1)

Command = Callable[[float], None]


class Supervisor(Watch):
    """One for each rank, made by the main thread. Unless it is closed, the process keeps its signal handlers."""

    def __init__(self, world: World, settings: SupervisionConfig) -> None:
        """Every rank has to make one at the same time.

        Raises:
            TimeoutError: where the ranks do not find each other.
        """
        self.settings, self.log = settings, RankLog(world.rank)
        about = {"host": socket.gethostname(), "pid": os.getpid(), "machine": this_machine()}
        about["started"] = process_start(os.getpid())
        lines, described = connect_ranks(world, about)
        self.job = world.broadcast(secrets.token_hex(4))
        now = time.monotonic()
        known = described if world.is_main else {rank: described[rank] for rank in (0, world.rank)}
        states = {rank: RankState(rank, heard_at=now, changed_at=now, **told) for rank, told in known.items()}
        post = MainPost if world.is_main else SidePost
        self.post: MainPost | SidePost = post(world.rank, lines, states, settings)
        self.own, self.is_main, self.size = states[world.rank], world.is_main, world.size
        if isinstance(self.post, MainPost):
            self.post.announce = self.log.say

        # Written by the main thread alone
        self._beats, self._step, self._phase = 0, None, "starting"  # type: int, int | None, str
        self._is_waiting, self._left_with = False, None  # type: bool, int | None
        self._beat_at, self._is_held, self._excused_until = now, False, 0.0

        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._all_left, self._closed = threading.Event(), threading.Event()
        self._first_signal_at: float | None = None
        self._pulse_seconds = min(PULSE_SECONDS, settings.lost_seconds / 4)
        self._ticked_at = now
        self._can_interrupt, self._interrupts = False, False
        self._signals = SignalPipe(STOPS, self._interrupt_main)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------
    # What the main thread tells. `beat` is called often: it assigns, and nothing else.

    def beat(self, phase: str, step: int | None = None) -> None:
        self._phase = phase
        if step is not None:
            self._step = step
        self._beats += 1
        self._beat_at = time.monotonic()
        self._is_held = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._is_waiting = True
        try:
            yield
        finally:
            self._beats += 1
            self._beat_at = time.monotonic()
            self._is_waiting = False

    @contextmanager
    def long(self, phase: str, seconds: float = math.inf) -> Iterator[None]:
        before = self._phase, self._excused_until
        self._phase, self._excused_until = phase, time.monotonic() + seconds
        self._beats += 1
        try:
            yield
        finally:
            self._beats += 1
            self._beat_at = time.monotonic()
            self._phase, self._excused_until = before

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While it lasts, a stop before the first beat raises StopRequested in the main thread, wherever that is.

        Before there are steps there is no state to save, and nothing that would ask whether to stop.
        """
        self._can_interrupt = True
        try:
            yield
        finally:
            self._can_interrupt = False

    @property
    def stop_requested(self) -> bool:
        return self.post.stop is not None

    @property
    def stop_signal(self) -> str | None:
        """The name of the signal by which the run was told to stop, on any rank."""
        return self.post.stop[0] if self.post.stop is not None else None

    def open_log(self, run_folder: Path) -> None:
        """From here on the ranks write to RUN/logs; see `RankLog`."""
        self.log.open(run_folder)

    def leave(self, status: int, last: Callable[[], None] = lambda: None) -> None:
        """This rank's recipe has ended in order: wait until all have. Their processes then end together.

        Args:
            status: that this process is going to end with.
            last: done by rank 0 when all have left, and before any process ends.
        """
        with self.waiting():
            self._left_with = status
            self._command(lambda now: None)
            if isinstance(self.post, MainPost):
                self._all_left.wait()
                last()
                self._command(lambda now: self._release())
            self._closed.wait()

    def fail(self, error: BaseException) -> NoReturn:
        """This rank's recipe has raised: tell it once, and end all ranks. Of a job of one, the error itself tells.

        Ranks whose collectives break because another has failed leave it to that one to tell.
        """
        if self.size == 1:
            raise error
        trace = "".join(traceback.format_exception(error)).rstrip()
        self.log.note(trace)
        if isinstance(error, CONFIG_ERRORS):
            if not self.is_main:
                time.sleep(AGREE_SECONDS)  # rank 0 meets most mistakes too, and its line ends this process
            whose = "" if self.is_main else f"{self.own.name}: "
            ending = Ending(f"error: {whose}{one_line(error)}", USAGE_ERROR)
        else:
            if is_lost_connection(error):
                time.sleep(self.settings.lost_seconds + 2 * PULSE_SECONDS)  # whoever has gone is found meanwhile
            ending = Ending(f"error: {self.own.name} failed {self._place()}:\n{trace}", FAILED)
        self._command(lambda now: self.post.propose(ending, now))
        while True:
            time.sleep(1.0)  # the thread ends this process

    def close(self) -> None:
        """Give the signals back and end the thread, for a process that goes on."""
        self._closed.set()
        self._command(lambda now: None)
        self._thread.join()
        self._signals.close()
        for line in self.post.lines.values():
            line.close()

    # -------------------------------------------------------------------------
    # The thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._tick()
        except Exception:  # a thread that ends in silence would leave the rank without supervision
            trace = traceback.format_exc().rstrip()
            ending = Ending(f"error: the supervision of {self.own.name} failed:\n{trace}", FAILED)
            self.post.propose(ending, time.monotonic())
            self._end(ending, is_speaker=self.is_main)
        faulthandler.cancel_dump_traceback_later()

    def _tick(self) -> None:
        """Wait for news for at most a pulse, then tell, hear and judge."""
        due = max(0.0, self._ticked_at + self._pulse_seconds - time.monotonic())
        poll = select.poll()  # not `select`, which refuses descriptors above 1023
        poll.register(self._signals, select.POLLIN)
        for line in self.post.lines.values():
            poll.register(line, select.POLLIN)
        poll.poll(1000 * due)
        now = time.monotonic()
        for number in self._signals.read():
            self._take_signal(number, now)
        is_due = now >= self._ticked_at + self._pulse_seconds
        while not self._commands.empty():
            self._commands.get()(now)
            is_due = True
        if now - self._ticked_at > self.settings.lost_seconds / 2:
            self.post.forgive(now)  # this process was stopped, or Python's lock was held
            self._beat_at = now
        self._copy_state(now)
        self.post.receive(now)
        if is_due:
            self._ticked_at = now
            self.post.report(now)
            self._judge_self(now)
            # If Python's lock is held, this thread cannot look after its own; the stacks are written without it.
            seconds = 0.8 * self.settings.lost_seconds
            faulthandler.dump_traceback_later(seconds, file=self.log.file or self.log.console)
        if self.post.stop is not None and self._can_interrupt and not self._is_held and not self._interrupts:
            self._interrupts = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)  # also out of a system call
        if self.post.ending is not None:
            self._end(self.post.ending, is_speaker=self.is_main)
        if isinstance(self.post, MainPost) and self.post.all_left:
            self._all_left.set()
        if self.post.is_released:
            self._closed.set()

    def _copy_state(self, now: float) -> None:
        own = self.own
        if (self._beats, self._is_waiting, self._left_with) != (own.beats, own.is_waiting, own.left_with):
            own.changed_at = now
        own.beats, own.is_waiting, own.left_with = self._beats, self._is_waiting, self._left_with
        own.step, own.phase, own.heard_at = self._step, self._phase, now

    def _judge_self(self, now: float) -> None:
        """A main thread that was seen to beat, and neither beats nor waits nor is excused, hangs."""
        if not self._is_held or self._is_waiting or now < self._excused_until:
            return
        silent = now - self._beat_at
        if silent > self.settings.silent_seconds:
            text = f"error: {self.own.name} hangs {self._place()}: no progress for {silent:.0f} s. Its main thread:"
            self.post.propose(Ending(f"{text}\n{main_thread_stack()}", FAILED, with_places=True), now)

    def _take_signal(self, number: signal.Signals, now: float) -> None:
        if number in ENDS and self._first_signal_at is None:
            self._first_signal_at = now
        elif number in ENDS and self._is_second(number, now):
            text = f"error: a second {number.name} reached {self.own.name}: ended at once, without saving"
            self.post.propose(Ending(text, 128 + number), now)
            return
        self.post.ask_stop(number.name, self.own.name)

    def _is_second(self, number: signal.Signals, now: float) -> bool:
        """Whether somebody has lost patience. Slurm repeats its SIGTERM, and kills when it has."""
        if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            return False
        return self._first_signal_at is not None and now - self._first_signal_at > SAME_STOP_SECONDS

    def _interrupt_main(self, number: int, frame: FrameType | None) -> None:
        """Called in the main thread, after the pipe has been written."""
        if self._interrupts and self._can_interrupt and not self._is_held:
            self._can_interrupt = False
            raise StopRequested

    def _release(self) -> None:
        assert isinstance(self.post, MainPost)
        self.post.release()

    def _end(self, ending: Ending, is_speaker: bool) -> NoReturn:
        """End this process, whatever its main thread does. Rank 0's ends last, so that all have heard why."""
        # Should writing the last words take for ever (a file system that hangs), the process ends without this thread.
        faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=self.log.file or self.log.console)
        if self.post.is_alone:
            is_speaker = self.log.claim_ending(self.job, ending.text)
        self.log.note(f"ended with status {ending.status}: {ending.text}")
        if self.log.file is not None:
            faulthandler.dump_traceback(self.log.file)
        if is_speaker and ending.text:
            self.log.flush()
            self.log.say("\n".join([ending.text, *filter(None, map(self.log.stacks_of, ending.lost))]))
        for rank in ending.lost:
            state = self.post.states.get(rank)
            if state is not None and is_here(state):
                os.kill(state.pid, signal.SIGKILL)  # it is stopped, or hears nothing; no launcher should wait for it
        if self.is_main:
            self._linger(ending)
        self.log.flush()
        os._exit(ending.status)

    def _linger(self, ending: Ending) -> None:
        """Until the others have hung up, or for a while."""
        deadline = time.monotonic() + LINGER_SECONDS
        while time.monotonic() < deadline and set(self.post.lines) - set(ending.lost):
            time.sleep(0.02)
            self.post.receive(time.monotonic())

    def _command(self, command: Command) -> None:
        self._commands.put(command)
        self._signals.wake()

    def _place(self) -> str:
        return RankState(0, step=self._step, phase=self._phase).place
