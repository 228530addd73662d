"""Confidence of every token inside a sampler's running batch, and the end of a trace the moment its group falls.

The same numbers as falcon_h1r.scaling.confidence has for the whole trace, bit by bit: sums run in the same order.

Shapes: R rows of rollouts under way, B of them in a burst, T tokens that a row can hold, k best tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.rollout.sampler import RolloutKey, RolloutRequest
from falcon_h1r.scaling.confidence import next_group, token_confidence
from falcon_h1r.scaling.engine import ConfidenceSettings, Stop

SAMPLED = "sampled"


class ConfidenceStops:
    """An `Overseer` of the torch sampler. Which requests are stopped, and where, is said in `stops` beforehand."""

    def __init__(self, settings: ConfidenceSettings) -> None:
        self.settings = settings
        self.num_top_logprobs = settings.top_k if "top_k" in settings.measures else 0
        self.stops: dict[RolloutKey, Stop] = {}
        self.top_k_confidences: dict[RolloutKey, NDArray[np.float64]] = {}  # of rollouts that ended; to be taken out
        self._top_k = np.zeros((0, 0))  # (R, T), each token's confidence
        self._sums = np.zeros((0, 0))  # (R, T + 1), running sums of the measure by which a row is stopped
        self._thresholds = np.zeros(0)  # (R); -inf where nothing stops a row
        self._by_sampled = np.zeros(0, np.bool_)  # (R)

    def began(self, row: int, request: RolloutRequest, num_drawn: int) -> None:
        if num_drawn:
            raise ValueError(f"{request.key}: the confidence of tokens drawn elsewhere is not known")
        own = request.max_response_tokens
        self._make_room(row + 1, request.settings.max_response_tokens if own is None else own)
        stop = self.stops.get(request.key)
        self._thresholds[row] = -np.inf if stop is None else stop.below
        self._by_sampled[row] = stop is not None and stop.measure == SAMPLED
        self._sums[row, 0] = 0.0

    def _make_room(self, num_rows: int, num_tokens: int) -> None:
        rows, columns = self._top_k.shape
        if num_rows <= rows and num_tokens <= columns:
            return
        more_rows = max(rows, num_rows - rows) if num_rows > rows else 0  # doubled: rows come one at a time
        grow = ((0, more_rows), (0, max(0, num_tokens - columns)))
        self._top_k = np.pad(self._top_k, grow)
        if not self._sums.size:
            self._sums = np.zeros((0, 1))
        self._sums = np.pad(self._sums, grow)
        self._thresholds, self._by_sampled = np.pad(self._thresholds, grow[0]), np.pad(self._by_sampled, grow[0])

    def drew(
        self,
        rows: NDArray[np.int64],
        before: NDArray[np.int64],
        drawn: NDArray[np.int64],
        logprobs: NDArray[np.float64],
        top_logprobs: NDArray[np.float32] | None,
    ) -> NDArray[np.int64]:
        halts = np.zeros(len(rows), np.int64)
        for step in range(len(logprobs)):
            live = np.flatnonzero((step < drawn) & (halts == 0))
            if not len(live):
                break
            row, token = rows[live], before[live] + step
            confidences = logprobs[step, live]
            if self.num_top_logprobs:
                assert top_logprobs is not None
                top_k = token_confidence(top_logprobs[step, live, : self.num_top_logprobs])
                self._top_k[row, token] = top_k
                confidences = np.where(self._by_sampled[row], confidences, top_k)
            halts[live[self._is_below(row, token, confidences)]] = step + 1
        return halts

    def _is_below(
        self, row: NDArray[np.int64], token: NDArray[np.int64], confidences: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether the group that ends at this token of each row is below the row's threshold. All: (B)."""
        window, ends = self.settings.window_tokens, token + 1
        self._sums[row, ends] = self._sums[row, token] + confidences
        starts = np.maximum(ends - window, 0)
        groups = next_group(self._sums[row, ends], self._sums[row, starts], ends - starts)
        below: NDArray[np.bool_] = groups < self._thresholds[row]
        if self.settings.partial_window == "wait":
            below &= ends >= window
        return below

    def ended(self, row: int, request: RolloutRequest, num_tokens: int) -> None:
        if self.num_top_logprobs:
            self.top_k_confidences[request.key] = self._top_k[row, :num_tokens].copy()
