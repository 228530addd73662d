"""A trace while a server draws it: the text put together again, and the confidence watched token by token.

Shapes: T tokens, k best tokens of a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.rollout.http_server import LostAnswer
from falcon_h1r.scaling.confidence import LEAST_LOGPROB, token_confidence
from falcon_h1r.scaling.endpoint_protocol import Piece, Token
from falcon_h1r.scaling.engine import ConfidenceSettings, DrawnTrace, TraceRequest
from falcon_h1r.types import THINK_END, THINK_START, InputError, StopReason

PIECES_WITHOUT_LOGPROBS = 8  # so many with text and no logprob among them: the server gives none
MOST_GAPS = 8  # tokens without logprobs in a trace, or half of it: the stop token, tags, halves of a character


class TraceDraft:
    """One attempt at one trace. A lost one is begun anew: a chat cannot be gone on with."""

    def __init__(self, request: TraceRequest, confidence: ConfidenceSettings | None) -> None:
        self.request, self._confidence = request, confidence
        self.num_top = logprobs_asked_for(request, confidence)
        self.tokens: list[Token] = []
        self._text: list[str] = []
        self._is_reasoning = False
        self._num_pieces = 0  # with text
        self._num_counted: int | None = None  # tokens, as the server counts
        self._finish_reason: str | None = None
        self._sums = [0.0]  # running, of the confidence that the stop looks at
        self._was_stopped = False

    @property
    def is_whole(self) -> bool:
        """Whether the server has said how it ended, and after how many tokens: nothing is missing then."""
        return self._finish_reason is not None and self._num_counted is not None

    def add(self, piece: Piece) -> bool:
        """Take a piece in; whether the trace is to stop here, for its confidence. Nothing behind that is taken.

        Raises:
            InputError: where the server gives no logprobs and some are asked for.
        """
        for index, token in enumerate(piece.tokens):
            self.tokens.append(token)
            if self._is_below(token):
                self._was_stopped = True
                self._add_text(_upto(piece, index))
                return True
        self._add_text(piece)
        self._num_counted = piece.num_tokens if piece.num_tokens is not None else self._num_counted
        self._finish_reason = piece.finish_reason or self._finish_reason
        self._num_pieces += bool(piece.text or piece.reasoning)
        if self.num_top and not self.tokens and (self._num_pieces >= PIECES_WITHOUT_LOGPROBS or self._finish_reason):
            raise InputError("it streams no logprobs, which confidence is measured by (scaling)")
        return False

    def _is_below(self, token: Token) -> bool:
        stop, settings = self.request.stop, self._confidence
        if stop is None or settings is None:
            return False
        value = _top_k(token.top_logprobs[: settings.top_k]) if stop.measure == "top_k" else token.logprob
        self._sums.append(self._sums[-1] + value)
        ends = len(self._sums) - 1
        start = max(ends - settings.window_tokens, 0)
        if settings.partial_window == "wait" and ends < settings.window_tokens:
            return False
        return (self._sums[ends] - self._sums[start]) / (ends - start) < stop.below

    def _add_text(self, piece: Piece) -> None:
        if piece.reasoning:
            self._text += [piece.reasoning] if self._is_reasoning else [THINK_START, piece.reasoning]
            self._is_reasoning = True
        if piece.text:
            self._text += [THINK_END, piece.text] if self._is_reasoning else [piece.text]
            self._is_reasoning = False

    # -------------------------------------------------------------------------
    # What becomes of it

    def end(self) -> DrawnTrace:
        """Once all of it has come.

        Raises:
            LostAnswer: where it broke off.
            InputError: where the server cut it off below its limit, or tells of too few of its tokens.
        """
        if self._was_stopped:
            return self.drawn("confidence")
        limit, counted = self.request.settings.max_response_tokens, self._num_counted
        if counted is None and not self.num_top:
            raise InputError("it counts no tokens (usage.completion_tokens), and gives no logprobs to count them by")
        gaps = (counted or 0) - len(self.tokens)
        if self.num_top and gaps > max(MOST_GAPS, len(self.tokens)):
            raise InputError(
                f"it gave logprobs of {len(self.tokens)} of {counted} tokens: confidence needs all of them"
            )
        if self._finish_reason == "stop":
            return self.drawn("stop")
        if self._finish_reason != "length":
            raise LostAnswer(f"ended by {self._finish_reason} after {len(self.tokens)} tokens")
        if counted is not None and counted < limit:
            raise InputError(
                f"it cut a response off after {counted} tokens, below its limit of {limit}: has the server room for "
                "prompt and response together?"
            )
        return self.drawn("length")

    def drawn(self, stop_reason: StopReason) -> DrawnTrace:
        """As far as it has come."""
        tokens, counted = self.tokens, self._num_counted
        ids = [token.token_id for token in tokens if token.token_id is not None]
        num_kept = self.request.settings.num_top_logprobs
        kept = [token.top_logprobs[:num_kept] for token in tokens]
        return DrawnTrace(
            problem_uid=self.request.problem.uid,
            sample_index=self.request.sample_index,
            text="".join(self._text),
            # Servers send no logprob with a stop token, and count it.
            num_tokens=max(len(tokens), counted or 0) if stop_reason in ("stop", "length") else len(tokens),
            stop_reason=stop_reason,
            confidences=self._confidences(),
            response_ids=ids if tokens and len(ids) == len(tokens) else None,
            top_logprobs=np.array(kept, np.float32).reshape(len(tokens), num_kept) if num_kept else None,
        )

    def _confidences(self) -> dict[str, NDArray[np.float64]]:
        """Of each token with logprobs, by each measure."""
        if self._confidence is None:
            return {}
        k = self._confidence.top_k
        tops = np.array([token.top_logprobs[:k] for token in self.tokens])
        sampled = np.array([token.logprob for token in self.tokens], dtype=np.float64)
        if not self.tokens:
            return dict.fromkeys(self._confidence.measures, sampled)
        known = {"sampled": lambda: sampled, "top_k": lambda: token_confidence(tops)}
        return {measure: known[measure]() for measure in self._confidence.measures}


def _top_k(logprobs: Sequence[float]) -> float:
    """`token_confidence` of one position and, above, `group_confidence` at one token: the same sums in the same order,
    and the same bits, without numpy's cost of 50 us for each token of each stream.
    """
    total, given = 0.0, 0
    for logprob in logprobs:
        if logprob > LEAST_LOGPROB:
            total += logprob
            given += 1
    return -(total / given)


def logprobs_asked_for(request: TraceRequest, confidence: ConfidenceSettings | None) -> int:
    """How many of the best logprobs at each token; 0: none, and the sampled token's neither."""
    measured = 0
    if confidence is not None:  # with none of the best, some servers give none at all
        measured = confidence.top_k if "top_k" in confidence.measures else 1
    return max(measured, request.settings.num_top_logprobs)


def _upto(piece: Piece, index: int) -> Piece:
    """The text of the piece's first tokens, as far as their texts spell it; of a few only the last is told apart."""
    if index == len(piece.tokens) - 1:
        return piece
    texts = [token.text for token in piece.tokens]
    if "".join(texts) != piece.reasoning + piece.text or (piece.reasoning and piece.text):
        return Piece()
    kept = "".join(texts[: index + 1])
    return Piece(reasoning=kept) if piece.reasoning else Piece(text=kept)
