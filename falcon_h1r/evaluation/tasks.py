"""One benchmark as the evaluation runs it: problems, how they are asked, how answers are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from falcon_h1r.rollout.sampler import SamplingSettings
from falcon_h1r.types import Problem, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """What a scorer says of one response."""

    verdict: Verdict
    prediction: str | None  # the answer as it was read, for people
    answer_key: str | None  # equal for equivalent answers: what votes are counted by


class TaskScorer(Protocol):
    """Judges responses. A response that was stopped for its confidence is not judged."""

    def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        """One for each response, in order; problems[i] is that of responses[i]."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark, ready to run."""

    name: str  # its folder
    problems: Sequence[Problem]
    settings: SamplingSettings  # num_samples: of each problem
    scorer: str  # math, choice, code or instructions; see falcon_h1r.evaluation.scorers
    prompt: str = "{question}"  # the user's turn
    system_prompt: str = ""
    greedy: bool = True  # one greedy answer beside the samples
    num_traces: int = 0  # the budget of online DeepConf; 0: none
    notes: tuple[str, ...] = ()  # lines about it for the start of a run, and for its summary
    reference_score: float | None = None
    reference_scaled_score: float | None = None
    reference_scaled_tokens: int | None = None
