"""What draws traces for an evaluation: the torch sampler in this process, or a server elsewhere. One protocol."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.rollout.sampler import RolloutKey, SamplingSettings
from falcon_h1r.types import Problem, StopReason

GREEDY_INDEX = -1  # of a problem's greedy answer, beside samples 0, 1, ...


@dataclass(frozen=True, slots=True)
class Stop:
    """End a trace at the first token whose group's confidence is below `threshold` by more than the slack."""

    threshold: float
    measure: str = "top_k"
    slack: float = 0.0  # for rounding; see falcon_h1r.scaling.online

    @property
    def below(self) -> float:
        """What a group's confidence is compared with."""
        return self.threshold - self.slack


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One trace to be drawn. `settings.num_samples` is not looked at."""

    problem: Problem
    sample_index: int
    settings: SamplingSettings
    system_prompt: str = ""
    prompt: str = "{question}"  # the user's turn
    stop: Stop | None = None

    @property
    def key(self) -> RolloutKey:
        return self.problem.uid, self.sample_index

    @property
    def question(self) -> str:
        """The user's turn, filled in."""
        return self.prompt.replace("{question}", self.problem.question)


@dataclass(frozen=True, slots=True)
class DrawnTrace:
    """One response with the confidence of each of its tokens."""

    problem_uid: str
    sample_index: int
    text: str  # the decoded response, special tokens kept but for the stop token
    num_tokens: int  # the stop token included
    stop_reason: StopReason  # "confidence" where its `Stop` ended it, at its last token too; "abort": taken out
    confidences: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # measure -> (tokens)
    response_ids: list[int] | None = None  # None: the engine does not know them
    top_logprobs: NDArray[np.float32] | None = None  # (tokens, k), raw, where the settings ask for them

    @property
    def key(self) -> RolloutKey:
        return self.problem_uid, self.sample_index


@dataclass(frozen=True, slots=True)
class ConfidenceSettings:
    """How an engine measures while it draws; see falcon_h1r.scaling.confidence."""

    measures: tuple[str, ...] = ("top_k", "sampled")
    top_k: int = 20
    window_tokens: int = 2048
    partial_window: str = "mean"  # before the first whole window: the mean so far, or "wait": no group, no stop


class TraceEngine(Protocol):
    """Draws traces. Requests are told apart by their key: at most one such is in an engine at a time."""

    description: str  # one line for the summary: which engine, which model
    confidence: ConfidenceSettings | None  # None: measures nothing, and takes no request with a stop

    @property
    def free_slots(self) -> int:
        """Traces that could begin at once, beside those submitted."""
        ...

    def submit(self, requests: Iterable[TraceRequest]) -> None:
        """Queue requests.

        Raises:
            ValueError: where a key is there already.
            InputError: where the engine cannot do what is asked.
        """
        ...

    def advance(self) -> list[DrawnTrace]:
        """Go on until at least one trace has ended, and return all that have; empty where nothing is left.

        Raises:
            StopRequested: where the run is to stop; all that was submitted is forgotten.
            InputError: where a server is given up: one line that says which, and why.
        """
        ...

    def abort(self, keys: Collection[RolloutKey] | None = None) -> list[DrawnTrace]:
        """Take requests out, all of them or these, with what they have drawn so far. Unknown keys are ignored."""
        ...

    def close(self) -> None: ...
