"""The rollouts under way at one server: each a request of its own whose tokens come in as they are drawn.

Many requests at once are what the server's continuous batching lives on; as one ends, the next is sent. Answers are
streamed, a few dozen tokens at a time: a request can then be let go of with what it has drawn, and one that failed goes
on from there. What the server drew after its last piece is lost, at most `STREAM_TOKENS` of each.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from falcon_h1r.rollout.http_server import Cut, LostAnswer, ModelServer
from falcon_h1r.rollout.sampler import RolloutKey
from falcon_h1r.rollout.vllm_draft import (
    Draft,
    best_logprobs,
    check_logprobs,
    checked_end,
    sampling_arguments,
)
from falcon_h1r.types import StopReason

STREAM_TOKENS = 64  # of a rollout in one piece: fewer cost the server and this process more work
LOOK_SECONDS = 0.5  # between two looks up from waiting
MAX_LOSSES = 4  # of one rollout in a row, without a token in between
FIRST_PAUSE_SECONDS = 1.0  # before it is asked for again; twice as long each time

Ended = tuple[Draft, StopReason]


@dataclass(slots=True, eq=False)
class _Flight:
    draft: Draft
    cut: Cut = field(default_factory=Cut)


class Streams:
    """Rollouts waiting and under way at one server. Its methods are the main thread's; each flight has its own."""

    def __init__(self, server: ModelServer, model: str, stop_ids: Collection[int], max_flights: int) -> None:
        """
        Args:
            model: the server's name for it.
        """
        self.server, self.model, self.stop_ids, self.max_flights = server, model, stop_ids, max_flights
        self.first_pause_seconds = FIRST_PAUSE_SECONDS
        self.policy_version = 0
        self._waiting: deque[Draft] = deque()
        self._flights: dict[RolloutKey, _Flight] = {}
        self._ended: list[Ended] = []
        self._num_drawn = 0
        self._failure: Exception | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Rollouts waiting and under way."""
        with self._changed:
            return len(self._waiting) + len(self._flights)

    def submit(self, drafts: Iterable[Draft]) -> None:
        with self._changed:
            for draft in drafts:
                if draft.tokens_left > 0:
                    self._waiting.append(draft)
                else:
                    self._ended.append((draft, "length"))
            self._send_waiting()

    def advance(self, num_tokens: int, look_up: Callable[[], None]) -> list[Ended]:
        """Wait until `num_tokens` have been drawn for each of those under way, or none is left.

        Args:
            look_up: called every half second.

        Raises:
            LostAnswer: where one rollout was lost too often in a row.
            InputError: where the server refuses one.
        """
        before = self._num_drawn
        while True:
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                if self._num_drawn - before >= num_tokens * len(self._flights):
                    ended, self._ended = self._ended, []
                    return ended
                self._changed.wait(LOOK_SECONDS)
            look_up()

    def take_out(self, keys: Collection[RolloutKey] | None = None) -> list[Draft]:
        """Let go of all, or of these, and return them with what they have drawn."""
        with self._changed:
            chosen = [key for key in self._flights if keys is None or key in keys]
            flying = [self._flights.pop(key) for key in chosen]
            waiting = [draft for draft in self._waiting if keys is None or draft.request.key in keys]
            stay = [] if keys is None else [draft for draft in self._waiting if draft.request.key not in keys]
            self._waiting = deque(stay)
            for flight in flying:
                flight.cut.make()
            self._send_waiting()
        return [*(flight.draft for flight in flying), *waiting]

    def clear(self) -> None:
        """Forget everything."""
        self.take_out()
        self._ended.clear()

    # -------------------------------------------------------------------------
    # A flight

    def _send_waiting(self) -> None:
        while self._waiting and len(self._flights) < self.max_flights:
            flight = _Flight(self._waiting.popleft())
            flight.draft.draw_with(self.policy_version)
            self._flights[flight.draft.request.key] = flight
            threading.Thread(target=self._fly, args=(flight,), name="vllm rollout", daemon=True).start()

    def _fly(self, flight: _Flight) -> None:
        """One rollout to its end, on a thread of its own. Any error is the main thread's to raise."""
        try:
            reason = self._drawn_to_end(flight)
        except Exception as error:
            with self._changed:
                if not flight.cut.made and self._failure is None:
                    self._failure = error
                self._changed.notify_all()
            return
        with self._changed:
            if not flight.cut.made:
                del self._flights[flight.draft.request.key]
                self._ended.append((flight.draft, reason))
                self._send_waiting()
            self._changed.notify_all()

    def _drawn_to_end(self, flight: _Flight) -> StopReason:
        losses, pause = 0, self.first_pause_seconds
        while True:
            tokens_before = len(flight.draft.tokens)
            try:
                return self._stream(flight)
            except LostAnswer as lost:
                if len(flight.draft.tokens) > tokens_before:
                    losses, pause = 0, self.first_pause_seconds
                losses += 1
                if flight.cut.made:
                    raise
                if losses >= MAX_LOSSES:
                    raise LostAnswer(f"vLLM: a rollout was lost {losses} times in a row, last by {lost}") from lost
            if flight.cut.wait(pause):
                raise LostAnswer("cut off")
            pause *= 2

    def _stream(self, flight: _Flight) -> StopReason:
        """Ask for the rest of the rollout, and take it in as it comes."""
        draft = flight.draft
        if draft.tokens_left == 0:  # the last answer broke off behind its last token
            return "length"
        payload = completion_payload(self.model, draft, self.stop_ids)
        events = self.server.stream("/v1/completions", payload, flight.cut)
        for event in events:
            for choice in event.get("choices", ()):
                tokens, logprobs, tops = read_choice(choice, draft.request.settings.num_top_logprobs)
                with self._changed:
                    if flight.cut.made:
                        raise LostAnswer("cut off")
                    draft.add(tokens, logprobs, tops)
                    self._num_drawn += len(tokens)
                    self._changed.notify_all()
                if choice.get("finish_reason") is not None:
                    with suppress(LostAnswer):  # all of it is here; the rest is politeness
                        deque(events, maxlen=0)
                    return checked_end(draft, choice["finish_reason"])
        raise LostAnswer("an answer without an end")


def completion_payload(model: str, draft: Draft, stop_ids: Collection[int]) -> dict[str, Any]:
    """What /v1/completions is sent for the rest of one rollout."""
    return {
        "model": model,
        "prompt": draft.input_ids,
        "add_special_tokens": False,
        **sampling_arguments(draft, stop_ids),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stream": True,
        "stream_interval": STREAM_TOKENS,
    }


def read_choice(choice: dict[str, Any], num_top: int) -> tuple[list[int], list[float], list[list[float]]]:
    """Tokens, their logprobs and the best `num_top` logprobs at each, from one piece of an answer.

    Raises:
        LostAnswer: where something is missing, or does not fit together.
    """
    tokens, said = choice.get("token_ids"), choice.get("logprobs")
    if tokens is None:
        raise LostAnswer("an answer without token ids")
    if not tokens:
        return [], [], []
    if not isinstance(said, dict):
        raise LostAnswer("an answer without logprobs")
    logprobs = said.get("token_logprobs") or []
    check_logprobs(logprobs, len(tokens))
    if said.get("tokens") != [f"token_id:{token}" for token in tokens]:
        raise LostAnswer("logprobs of other tokens than those drawn")
    if not num_top:
        return tokens, logprobs, []
    return tokens, logprobs, [best_logprobs((each or {}).values(), num_top) for each in said["top_logprobs"]]
