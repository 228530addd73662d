"""What a vote and a stop need to know of a trace: its answer, its length, and how its confidence went.

Shapes: T tokens of a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEASURES = ("top_k", "sampled")  # of a token's confidence; see falcon_h1r.scaling.confidence
SCORES = ("mean", "bottom_10", "lowest_group", "tail")  # of a whole trace


@dataclass(frozen=True, slots=True)
class ConfidenceSummary:
    """One trace by one measure. `minima` is all that a stop can depend on, whatever its threshold.

    Higher is surer, by either measure.
    """

    mean: float
    bottom_10: float  # mean of the lowest tenth of the groups
    lowest_group: float
    tail: float  # mean of the last window
    minima: tuple[tuple[int, float], ...]  # (token, its group's confidence) wherever that is lower than all before

    def tokens_until_below(self, threshold: float) -> int | None:
        """How many tokens are drawn before a group's confidence is below the threshold, that group's last included.

        None where it never is.
        """
        return next((token + 1 for token, lowest in self.minima if lowest < threshold), None)


@dataclass(frozen=True, slots=True)
class ScoredTrace:
    """A trace that ended, or was stopped."""

    sample_index: int
    answer: str | None  # the verifier's canonical key; None: it gave none, and does not vote
    num_tokens: int  # drawn, the stop token included
    was_stopped: bool  # for its confidence: it does not vote
    confidence: Mapping[str, ConfidenceSummary]  # by measure
    is_right: bool | None = None  # known to whoever evaluates; no vote looks at it
