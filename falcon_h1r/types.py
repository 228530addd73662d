"""The nouns every room shares: problems, traces, rollouts, verdicts. Imports no torch.

Dimension letters used in comments across the package:
P problems, G rollouts a group, T packed tokens, V vocabulary, H heads, N SSM state, L layers, B batch slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the code sandbox imports this file where only the standard library can be found
    import numpy as np
    from numpy.typing import NDArray

Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")

THINK_START, THINK_END = "<think>", "</think>"  # around the reasoning of an assistant's turn

VerdictStatus = Literal["correct", "wrong", "undecided", "unverifiable_gold"]
ANSWER_FALLBACKS = ("answer", "hash", "math", "number")  # where an answer may be found without a box
StopReason = Literal["stop", "length", "abort", "confidence"]

# Fields that most rows have nothing to say in.
LEFT_OUT_AT_DEFAULT = ("verifiable", "pass_rate", "language", "turns", "given_verdict", "origin")


class InputError(ValueError):
    """A user's mistake: shown as one line that names the file, line or key, never as a traceback."""


def content_hash(text: str) -> str:
    """First 16 hex digits of SHA-256: a problem's identity, equal on every machine and in every process."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a gold answer that the verifier can judge, or with tests that a program has to pass."""

    uid: str  # content_hash(question), unless the source brings its own
    question: str
    answer: str  # the gold, in LaTeX or plain notation, without \boxed{}
    family: str = "unknown"  # "addition", "gsm8k", ...: the row of the accuracy table
    difficulty: Difficulty | None = None
    domain: str = "math"  # math, code, science or other
    tests: str | None = None  # JSON that falcon_h1r.verifier.code.parse_tests reads; the answer may be empty then
    verifiable: bool = True  # False: nothing to judge an answer by, as of proofs, chats and refusals
    pass_rate: float | None = None  # share of right rollouts, as the source says
    language: str | None = None  # the programming language that is asked for; null: Python

    @classmethod
    def from_question(cls, question: str, answer: str, **rest: Any) -> Problem:
        return cls(uid=content_hash(question), question=question, answer=answer, **rest)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, all text: tool calls and signatures stand in `content`, between their tags."""

    role: str  # system, user, assistant or tool
    content: str
    reasoning: str = ""  # of an assistant's turn: what stands between <think> and </think>


@dataclass(frozen=True, slots=True)
class Trace:
    """One teacher's worked solution of one problem: what SFT learns from."""

    problem: Problem
    teacher: str
    reasoning: str  # what stands between <think> and </think>
    response: str  # what follows </think>; holds the answer in \boxed{}, or a fenced program
    weight: float = 1.0  # multiplies the loss of every token of the assistant's turn
    turns: tuple[Turn, ...] = ()  # of a conversation: all before the assistant's last; empty: just the question
    origin: str = ""  # source, file, row and generation: "openr1:part-3.parquet:17#2"
    given_verdict: bool | None = None  # whether it is right, as the source says


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response. Logprobs are the sampler's own, at the sampling temperature, untruncated."""

    problem_uid: str
    sample_index: int  # 0..G-1 within the group
    prompt_ids: list[int]
    response_ids: list[int]  # ends with the stop token, unless cut by the limit
    sampler_logprobs: list[float]  # one per response token
    stop_reason: StopReason
    policy_version: int  # of the policy that drew the first token
    text: str  # the decoded response, special tokens kept but for the stop token
    later_versions: tuple[tuple[int, int], ...] = ()  # (index of the first token, version) where newer policies went on
    top_logprobs: NDArray[np.float32] | None = None  # (response tokens, k), raw, at temperature 1, best first


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier says of one prediction: which stage decided, why, and how long it took."""

    status: VerdictStatus
    stage: str  # "string", "number", "structure", "sympy", ...
    reason: str
    seconds: float = 0.0

    @property
    def correct(self) -> bool:
        return self.status == "correct"


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G rollouts of one problem with their rewards: the unit in which GRPO assigns credit."""

    problem: Problem
    rollouts: list[Rollout]  # (G)
    rewards: list[float]  # (G)
    verdicts: list[Verdict] = field(default_factory=list)  # (G)
    parts: list[dict[str, float]] = field(default_factory=list)  # (G), what each reward is summed from, by name

    @property
    def has_contrast(self) -> bool:
        """Whether any advantage differs from zero: a group of equal rewards carries no gradient."""
        return max(self.rewards) > min(self.rewards)


def to_row(record: Any) -> dict[str, Any]:
    """A dataclass as a JSON-ready row. What a newer field says only where it differs from its default is left out."""
    row = {}
    for field_ in fields(record):
        value = getattr(record, field_.name)
        if field_.name in LEFT_OUT_AT_DEFAULT and value == field_.default:
            continue
        if is_dataclass(value):
            value = to_row(value)
        elif field_.name == "turns":
            value = [to_row(turn) for turn in value]
        row[field_.name] = value
    return row


def problem_from_row(row: Mapping[str, Any]) -> Problem:
    return Problem(**row)


def trace_from_row(row: Mapping[str, Any]) -> Trace:
    turns = tuple(Turn(**turn) for turn in row.get("turns", ()))
    return Trace(**{**row, "problem": problem_from_row(row["problem"]), "turns": turns})
