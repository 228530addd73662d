"""Instruction following: right where a rule says of every instruction that the response follows it."""

from __future__ import annotations

from collections.abc import Sequence

from falcon_h1r.evaluation.instructions import instructions_of
from falcon_h1r.evaluation.tasks import Judged
from falcon_h1r.types import InputError, Problem, Verdict
from falcon_h1r.verifier.extract import answering_part


class InstructionScorer:
    """Strict, by prompt: see `falcon_h1r.evaluation.instructions`. There are no answers to vote on."""

    def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        return [_judged(response, problem) for response, problem in zip(responses, problems, strict=True)]

    def close(self) -> None:
        pass


def _judged(response: str, problem: Problem) -> Judged:
    try:
        instructions = instructions_of(problem)
    except InputError as error:
        return Judged(Verdict("unverifiable_gold", "instructions", str(error)), None, None)
    answer = answering_part(response, after_think=True)
    if answer is None or not answer.strip():
        return Judged(Verdict("wrong", "extract", "no answer after </think>"), None, None)
    outcomes = [(each.name, each.is_followed(answer.strip())) for each in instructions]
    broken = [name for name, outcome in outcomes if outcome is False]
    open_ones = [name for name, outcome in outcomes if outcome is None]
    if broken:
        return Judged(Verdict("wrong", "instructions", f"not followed: {', '.join(broken)}"), None, None)
    if open_ones:
        return Judged(Verdict("undecided", "instructions", f"no rule decides {', '.join(open_ones)}"), None, None)
    return Judged(Verdict("correct", "instructions", f"all {len(instructions)} followed"), None, None)
