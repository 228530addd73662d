"""The traces under way at several servers: each a connection of its own, dropped the moment its trace is to stop.

A trace goes to the server that has the fewest under way. One that is lost is begun anew from its start, with the same
seed, and preferably at another server; after `max_losses` in a row it is given up, and with it everything. A server
that loses as many in a row, whoever they are, is set aside while others work: after a rest it is tried with one trace.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass, field

from falcon_h1r.config_evaluate import EndpointConfig
from falcon_h1r.rollout.http_server import Cut, LostAnswer, ModelServer, Refused
from falcon_h1r.rollout.sampler import RolloutKey
from falcon_h1r.scaling.endpoint_draft import TraceDraft
from falcon_h1r.scaling.endpoint_protocol import PATHS, Prompt, ServedModel, read_piece, trace_payload
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, TraceRequest
from falcon_h1r.types import InputError

LOOK_SECONDS = 0.5  # between two looks up from waiting
REST_SECONDS = 60.0  # of a server that was set aside


@dataclass(slots=True, eq=False)
class Station:
    """One server and what is under way there."""

    server: ModelServer
    served: ServedModel
    in_flight: int = 0
    losses: int = 0  # in a row, of any trace
    rests_until: float = 0.0  # monotonic


@dataclass(slots=True, eq=False)
class _Flight:
    request: TraceRequest
    prompt: Prompt | None
    draft: TraceDraft
    cut: Cut = field(default_factory=Cut)


class TraceStreams:
    """Traces waiting and under way. Its methods are the main thread's; each flight has a thread of its own."""

    def __init__(self, stations: list[Station], config: EndpointConfig, confidence: ConfidenceSettings | None) -> None:
        self.stations, self.config, self._confidence = stations, config, confidence
        self._waiting: deque[_Flight] = deque()
        self._flights: dict[RolloutKey, _Flight] = {}
        self._ended: list[DrawnTrace] = []
        self._failure: Exception | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Traces waiting and under way."""
        with self._changed:
            return len(self._waiting) + len(self._flights)

    @property
    def num_slots(self) -> int:
        """Traces that can be under way at once, at the servers that are not set aside."""
        with self._changed:
            return sum(self._capacity(station) for station in self._working())

    def submit(self, requests: Iterable[tuple[TraceRequest, Prompt | None]]) -> None:
        """
        Raises:
            ValueError: where a key is there already; none is then submitted.
        """
        flights = [_Flight(each, prompt, TraceDraft(each, self._confidence)) for each, prompt in requests]
        with self._changed:
            known = {*self._flights, *(flight.request.key for flight in self._waiting)}
            known |= {trace.key for trace in self._ended}
            for flight in flights:
                if flight.request.key in known:
                    raise ValueError(f"{flight.request.key} is under way already")
                known.add(flight.request.key)
            self._waiting.extend(flights)
            self._send_waiting()

    def advance(self, look_up: Callable[[], None]) -> list[DrawnTrace]:
        """Wait until at least one trace has ended. A failure is raised once all that ended before it was returned.

        Args:
            look_up: called every half second.

        Raises:
            InputError: where one trace was lost too often in a row, or a server refuses or lacks something; all
                others are let go of.
        """
        while True:
            with self._changed:
                if self._ended:
                    ended, self._ended = self._ended, []
                    return ended
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    self._take_out(None)
                    raise failure
                if not self._flights:
                    return []
                self._changed.wait(LOOK_SECONDS)
            look_up()

    def take_out(self, keys: Collection[RolloutKey] | None = None) -> list[DrawnTrace]:
        """Let go of all, or of these; of a trace that ended and was not returned yet, all of it is."""
        with self._changed:
            return self._take_out(keys)

    # -------------------------------------------------------------------------
    # Under the lock

    def _take_out(self, keys: Collection[RolloutKey] | None) -> list[DrawnTrace]:
        def chosen(key: RolloutKey) -> bool:
            return keys is None or key in keys

        ended = [trace for trace in self._ended if chosen(trace.key)]
        self._ended = [trace for trace in self._ended if not chosen(trace.key)]
        flying = [flight for key, flight in self._flights.items() if chosen(key)]
        waiting = [flight for flight in self._waiting if chosen(flight.request.key)]
        self._waiting = deque(flight for flight in self._waiting if not chosen(flight.request.key))
        for flight in flying:
            del self._flights[flight.request.key]
            flight.cut.make()
        self._send_waiting()
        return [*ended, *(flight.draft.drawn("abort") for flight in [*flying, *waiting])]

    def _send_waiting(self) -> None:
        most = self.config.max_in_flight * len(self.stations)
        while self._waiting and len(self._flights) < most and self._failure is None:
            flight = self._waiting.popleft()
            self._flights[flight.request.key] = flight
            threading.Thread(target=self._fly, args=(flight,), name="trace", daemon=True).start()

    def _working(self) -> list[Station]:
        """Those not set aside; where all are, each is worth a try."""
        now = time.monotonic()
        working = [station for station in self.stations if now >= station.rests_until]
        return working or self.stations

    def _capacity(self, station: Station) -> int:
        return 1 if station.losses >= self.config.max_losses else self.config.max_in_flight

    def _free_station(self, last: Station | None) -> Station | None:
        """That with the fewest under way, but not the one that has just lost this trace while there is another."""
        working = self._working()
        others = [station for station in working if station is not last] or working
        free = [station for station in others if station.in_flight < self._capacity(station)]
        return min(free, key=lambda station: station.in_flight, default=None)

    # -------------------------------------------------------------------------
    # A flight, on a thread of its own

    def _fly(self, flight: _Flight) -> None:
        """One trace to its end. Any error is the main thread's to raise."""
        drawn: DrawnTrace | None = None
        failure: Exception | None = None
        try:
            drawn = self._drawn_to_end(flight)
        except Exception as error:
            failure = error
        with self._changed:
            if not flight.cut.made:
                if drawn is not None:
                    del self._flights[flight.request.key]
                    self._ended.append(drawn)
                    self._send_waiting()
                elif self._failure is None:
                    self._failure = failure
            self._changed.notify_all()

    def _drawn_to_end(self, flight: _Flight) -> DrawnTrace:
        losses, pause, station = 0, self.config.first_pause_seconds, None
        while True:
            station = self._boarded(flight, station)
            try:
                return self._stream(flight, station)
            except LostAnswer as lost:
                self._count_loss(station)
                losses += 1
                if flight.cut.made:
                    raise
                where = station.server.address
                if losses >= self.config.max_losses:
                    raise InputError(
                        f"evaluate.endpoint.urls: a trace was lost {losses} times in a row, the last time at {where}: "
                        f"{_without(where, str(lost))}"
                    ) from lost
                asked = min(lost.pause_seconds, station.server.silent_seconds)
            finally:
                with self._changed:
                    station.in_flight -= 1
                    self._changed.notify_all()
            if flight.cut.wait(max(pause, asked)):
                raise LostAnswer("cut off")
            pause *= 2

    def _boarded(self, flight: _Flight, last: Station | None) -> Station:
        """A server with a place for this trace, which it then holds."""
        with self._changed:
            while True:
                if flight.cut.made:
                    raise LostAnswer("cut off")
                station = self._free_station(last)
                if station is not None:
                    station.in_flight += 1
                    flight.draft = TraceDraft(flight.request, self._confidence)
                    return station
                self._changed.wait(LOOK_SECONDS)

    def _count_loss(self, station: Station) -> None:
        with self._changed:
            station.losses += 1
            if station.losses >= self.config.max_losses:
                station.rests_until = time.monotonic() + REST_SECONDS

    def _stream(self, flight: _Flight, station: Station) -> DrawnTrace:
        """Ask for the trace, and take it in as it comes."""
        draft, server = flight.draft, station.server
        try:
            payload = trace_payload(flight.request, station.served, flight.prompt, draft.num_top)
            with closing(server.stream(PATHS[self.config.api], payload, flight.cut)) as events:
                try:
                    for event in events:
                        piece = read_piece(event, draft.num_top)
                        with self._changed:
                            if flight.cut.made:
                                raise LostAnswer("cut off")
                            station.losses = 0
                            if draft.add(piece):
                                break
                except LostAnswer:
                    if not draft.is_whole:  # a few servers close without the protocol's last line
                        raise
            return draft.end()
        except Refused as refused:
            raise InputError(f"{_key_of(refused)}: {refused}") from refused
        except InputError as lack:
            raise InputError(f"evaluate.endpoint.urls: {server.address}: {lack}") from lack


def _key_of(refused: Refused) -> str:
    """The setting that is probably at fault."""
    keys = {401: "api_key_variable", 403: "api_key_variable", 404: "model"}
    return f"evaluate.endpoint.{keys.get(refused.status, 'urls')}"


def _without(address: str, said: str) -> str:
    return said.removeprefix(address).lstrip(": ")
