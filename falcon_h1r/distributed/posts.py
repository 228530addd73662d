"""The two ends of supervision: rank 0 hears all, applies the rules and pronounces; every other rank hears rank 0.

Both are driven by the supervisor's thread of their process and by nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.lines import Line, LineClosed, Message
from falcon_h1r.distributed.verdicts import (
    Ending,
    RankState,
    find_deadlock,
    find_forsaken,
    find_overdue,
    find_silent,
    list_places,
    lost_process,
)

ANSWER_SECONDS = 5.0  # for rank 0 to pronounce what another has found; then that one does


class Post(ABC):
    """What this rank knows of the others, and has been told."""

    def __init__(
        self, rank: int, lines: Mapping[int, Line], states: Mapping[int, RankState], settings: SupervisionConfig
    ) -> None:
        """
        Args:
            states: of all ranks on rank 0; of rank 0 and oneself elsewhere.
        """
        self.own = states[rank]
        self.lines, self.states, self.settings = dict(lines), dict(states), settings
        self.stop: tuple[str, str] | None = None  # the signal, and the name of the rank that got it
        self.ending: Ending | None = None
        self.is_alone = False  # with the ending: rank 0 did not pronounce it
        self.is_released = False  # every rank's recipe has ended: the processes may end

    @abstractmethod
    def ask_stop(self, signal: str, name: str) -> None:
        """This rank, by name, has been told by a signal to stop the run."""

    @abstractmethod
    def propose(self, ending: Ending, now: float) -> None:
        """This rank has found why the job ends."""

    @abstractmethod
    def receive(self, now: float) -> None:
        """Read what has arrived on all lines."""

    @abstractmethod
    def report(self, now: float) -> None:
        """Send this rank's own state (`own`), and judge by what has been heard."""

    def forgive(self, now: float) -> None:
        """This process was away itself (suspended): it cannot tell for how long the others were silent."""
        for state in self.states.values():
            state.heard_at = state.changed_at = now

    def _hear(self, state: RankState, message: Message, now: float) -> None:
        """A pulse."""
        if (message["beats"], message["is_waiting"]) != (state.beats, state.is_waiting):
            state.changed_at = now
        state.beats, state.is_waiting = message["beats"], message["is_waiting"]
        state.phase, state.step, state.heard_at = message["phase"], message["step"], now
        if state.left_with != message["left_with"]:
            state.left_with, state.changed_at = message["left_with"], now

    def _pulse(self) -> Message:
        names = ("beats", "is_waiting", "phase", "step", "left_with")
        return {"kind": "pulse", **{name: getattr(self.own, name) for name in names}}


class MainPost(Post):
    """Rank 0's. The first ending that it hears of is the one that counts."""

    announce: Callable[[str], None] = staticmethod(print)  # tells the console of a stop

    def ask_stop(self, signal: str, name: str) -> None:
        if self.stop is None:
            self.stop = (signal, name)
            self.announce(
                f"stopping on {signal} to {name}: the unfinished step is discarded and the state of training saved; "
                "a second signal ends at once"
            )
            self._tell({"kind": "stop", "signal": signal, "name": name})

    def propose(self, ending: Ending, now: float) -> None:
        if self.ending is None:
            if ending.with_places and len(self.states) > 1:
                places = list_places(list(self.states.values()), now)
                ending = replace(ending, text=f"{ending.text}\nall ranks:\n{places}")
            self.ending = ending
            self._tell(ending.as_message())

    def receive(self, now: float) -> None:
        for rank, line in list(self.lines.items()):
            try:
                messages = line.receive()
            except LineClosed:
                self._lose(rank, now)
                continue
            for message in messages:
                if message["kind"] == "pulse":
                    self._hear(self.states[rank], message, now)
                elif message["kind"] == "stop":
                    self.ask_stop(message["signal"], message["name"])
                elif message["kind"] == "end":
                    self.propose(Ending.of_message(message), now)

    def report(self, now: float) -> None:
        self._tell(self._pulse())
        others = [state for rank, state in self.states.items() if rank != self.own.rank]
        everybody = list(self.states.values())
        found = (
            find_silent(others, now, self.settings.lost_seconds)
            or find_forsaken(everybody, now)
            or find_deadlock(everybody, now, self.settings.silent_seconds)
            or find_overdue(everybody, now, self.settings.wait_seconds)
        )
        if found is not None:
            self.propose(found, now)

    @property
    def all_left(self) -> bool:
        """Every rank's recipe has ended in order."""
        return all(state.left_with is not None for state in self.states.values())

    def release(self) -> None:
        """All have left: the processes may end."""
        self._tell({"kind": "release"})
        self.is_released = True

    def _tell(self, message: Message) -> None:
        for line in self.lines.values():
            with suppress(LineClosed):  # `receive` reads what the rank still said, and then finds the same
                line.send(message)

    def _lose(self, rank: int, now: float) -> None:
        self.lines.pop(rank).close()
        if self.states[rank].left_with is None and self.ending is None:
            self.propose(lost_process(self.states[rank]), now)


class SidePost(Post):
    """Every other rank's. If rank 0 cannot pronounce, this one does."""

    def __init__(
        self, rank: int, lines: Mapping[int, Line], states: Mapping[int, RankState], settings: SupervisionConfig
    ) -> None:
        super().__init__(rank, lines, states, settings)
        self.line, self.main = self.lines[0], self.states[0]
        self._proposed: tuple[Ending, float] | None = None

    def ask_stop(self, signal: str, name: str) -> None:
        self.stop = self.stop or (signal, name)
        self._send({"kind": "stop", "signal": signal, "name": name})

    def propose(self, ending: Ending, now: float) -> None:
        if self._proposed is None:
            self._proposed = ending, now
            self._send(ending.as_message())

    def receive(self, now: float) -> None:
        try:
            messages = self.line.receive()
        except LineClosed:
            if not self.is_released and self.ending is None:
                # Rank 0 closes its lines only after it has pronounced or released: it has died.
                self._pronounce(self._proposed[0] if self._proposed else lost_process(self.main))
            return
        for message in messages:
            if message["kind"] == "pulse":
                self._hear(self.main, message, now)
            elif message["kind"] == "stop":
                self.stop = self.stop or (message["signal"], message["name"])
            elif message["kind"] == "end":
                self.ending = self.ending or Ending.of_message(message)
            elif message["kind"] == "release":
                self.is_released = True

    def report(self, now: float) -> None:
        self._send(self._pulse())
        if self._proposed is not None and now - self._proposed[1] > ANSWER_SECONDS:
            self._pronounce(self._proposed[0])
        elif (found := find_silent([self.main], now, self.settings.lost_seconds)) is not None:
            self._pronounce(found)

    def _pronounce(self, ending: Ending) -> None:
        if self.ending is None and not self.is_released:
            self.ending, self.is_alone = ending, True

    def _send(self, message: Message) -> None:
        with suppress(LineClosed):  # `receive` reads what rank 0 still said, and then finds the same
            self.line.send(message)
