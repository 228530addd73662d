"""Who judges a benchmark's responses, by the name that its config gives."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_h1r.config import VerifierConfig
from falcon_h1r.evaluation.scorer_choice import ChoiceScorer
from falcon_h1r.evaluation.scorer_code import CodeScorer
from falcon_h1r.evaluation.scorer_instructions import InstructionScorer
from falcon_h1r.evaluation.tasks import Judged, TaskScorer
from falcon_h1r.types import InputError, Problem
from falcon_h1r.verifier import Verifier, canonical_answer, extract_answer

SCORERS = ("math", "choice", "code", "instructions")


def open_scorer(name: str, config: VerifierConfig) -> TaskScorer:
    """The scorer of that name; close it in the end. All of them read what follows `</think>` alone.

    Raises:
        InputError: for a name that there is not, and for code where programs cannot be confined.
    """
    if name == "math":
        return MathScorer(config)
    if name == "choice":
        return ChoiceScorer()
    if name == "code":
        return CodeScorer(config.code)
    if name == "instructions":
        return InstructionScorer()
    raise InputError(f"scorer={name}: not one of {', '.join(SCORERS)}")


class MathScorer:
    """Answers in a box, by the verifier; votes are counted by its canonical key."""

    def __init__(self, config: VerifierConfig) -> None:
        self._verifier = Verifier.from_config(config, after_think=True)

    def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        verdicts = self._verifier.score(responses, [problem.answer for problem in problems])
        fallbacks = self._verifier.fallbacks
        return [
            Judged(verdict, extract_answer(response, True, fallbacks), canonical_answer(response, True, fallbacks))
            for response, verdict in zip(responses, verdicts, strict=True)
        ]

    def close(self) -> None:
        self._verifier.close()
