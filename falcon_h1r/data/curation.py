"""Which traces SFT learns from, and how much each weighs (Falcon-H1R report, 2.2).

    one teacher -> reasoning and answer present -> a final \\boxed{} -> correct -> weighted by difficulty

A problem with tests has a fenced program in the place of the box, and programs are judged by those tests.
Cheap tests come first, so that only what passes them is verified. A trace that is dropped keeps its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from falcon_h1r.config_data import CurateConfig
from falcon_h1r.data.difficulty import difficulty_weight, hardness
from falcon_h1r.types import InputError, Trace, Verdict, to_row
from falcon_h1r.verifier.code.extract import extract_program
from falcon_h1r.verifier.extract import extract_boxed

CheckGold = Callable[[str], bool]
Score = Callable[[Sequence[str], Sequence[str]], list[Verdict]]  # predictions, golds or tests -> verdicts

SCORED_AT_ONCE = 4096
MAX_GOLDS_SHOWN = 20  # in the summary; dropped.jsonl has them all

# In the order in which they are looked for; NOT_CORRECT are the other statuses of a verdict.
OTHER_TEACHER = "other_teacher"
EMPTY_REASONING, EMPTY_ANSWER, NO_BOX, NO_PROGRAM = "empty_reasoning", "empty_answer", "no_box", "no_program"
INCOMPLETE = (EMPTY_REASONING, EMPTY_ANSWER, NO_BOX, NO_PROGRAM)
UNVERIFIABLE_GOLD = "unverifiable_gold"
NOT_CORRECT = (UNVERIFIABLE_GOLD, "undecided", "wrong")
NO_WEIGHT = "no_weight"
REASONS = (OTHER_TEACHER, *INCOMPLETE, *NOT_CORRECT, NO_WEIGHT)


@dataclass(frozen=True, slots=True)
class DroppedTrace:
    """A trace that is not learnt from, and why: one of REASONS, and in the verifier's own words."""

    trace: Trace
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CuratedTraces:
    """What curation made of its input: every trace is in one of the two lists."""

    kept: list[Trace]  # weighted
    dropped: list[DroppedTrace]

    def dropped_rows(self) -> Iterator[dict[str, Any]]:
        """The dropped traces as JSON-ready rows."""
        for dropped in self.dropped:
            yield {"reason": dropped.reason, "detail": dropped.detail, **to_row(dropped.trace)}

    def summary(self) -> dict[str, Any]:
        """Counts: the funnel from all traces to the kept, and both sides by teacher, family, difficulty."""
        reasons = Counter(dropped.reason for dropped in self.dropped)
        everything = self.kept + [dropped.trace for dropped in self.dropped]
        funnel = {"traces": len(everything)}
        for step, its_reasons in (
            ("of_the_teacher", (OTHER_TEACHER,)),
            ("complete", INCOMPLETE),
            ("correct", NOT_CORRECT),
            ("kept", (NO_WEIGHT,)),
        ):
            funnel[step] = list(funnel.values())[-1] - sum(reasons[reason] for reason in its_reasons)
        return {
            "funnel": funnel,
            "dropped_by_reason": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
            "kept_by_teacher": _count(trace.teacher for trace in self.kept),
            "dropped_by_teacher": _count(dropped.trace.teacher for dropped in self.dropped),
            "kept_by_family": _count(trace.problem.family for trace in self.kept),
            "dropped_by_family": _count(dropped.trace.problem.family for dropped in self.dropped),
            "kept_by_difficulty": _count(str(trace.problem.difficulty) for trace in self.kept),
            "dropped_by_difficulty": _count(str(dropped.trace.problem.difficulty) for dropped in self.dropped),
            "unverifiable_golds": sorted(
                {d.trace.problem.answer for d in self.dropped if d.reason == UNVERIFIABLE_GOLD and d.detail}
            )[:MAX_GOLDS_SHOWN],
            "mean_weight": round(sum(trace.weight for trace in self.kept) / max(1, len(self.kept)), 4),
        }


def curate_traces(
    traces: Sequence[Trace],
    config: CurateConfig,
    score: Score,
    score_code: Score | None = None,
    check_gold: CheckGold | None = None,
) -> CuratedTraces:
    """Drop what is not to be learnt from, weigh the rest; order is kept.

    Args:
        traces: of any teachers.
        config: `keep_teacher`, `filters` and `weights` are read.
        score: verdicts on the responses against the golds, as Verifier.score gives them.
        check_gold: whether a gold can be judged against, as Verifier.check_gold says; asked once for every gold. What
            cannot be is never scored: equal strings of broken notation prove nothing.
        score_code: on programs against the problems' tests, as CodeVerifier.score gives them.

    Raises:
        InputError: if the teacher to keep wrote none of the traces.
        ValueError: if a problem has tests and there is no `score_code`.
    """
    _check_teacher(traces, config.keep_teacher)
    reasons = [_incomplete(trace, config) for trace in traces]
    if check_gold is not None:
        reasons = _with_gold_check(traces, reasons, check_gold)
    to_verify = [index for index, reason in enumerate(reasons) if reason is None]
    with_tests = [index for index in to_verify if traces[index].problem.tests is not None]
    without = [index for index in to_verify if traces[index].problem.tests is None]
    if with_tests and score_code is None:
        raise ValueError("problems with tests need score_code")
    verdicts = dict(zip(without, _score_all([traces[index] for index in without], score), strict=True))
    if score_code is not None:
        verdicts |= zip(with_tests, _score_all([traces[index] for index in with_tests], score_code), strict=True)
    kept: list[Trace] = []
    dropped: list[DroppedTrace] = []
    for index, (trace, reason) in enumerate(zip(traces, reasons, strict=True)):
        if reason is not None:
            detail = f"gold: {trace.problem.answer[:200]!r} cannot be read" if reason == UNVERIFIABLE_GOLD else ""
            dropped.append(DroppedTrace(trace, reason, detail))
            continue
        verdict = verdicts[index]
        if not verdict.correct:
            dropped.append(DroppedTrace(trace, verdict.status, f"{verdict.stage}: {verdict.reason}"))
            continue
        weight = trace.weight * _weight(trace, config)
        if weight > 0:
            kept.append(replace(trace, weight=weight))
        else:
            dropped.append(DroppedTrace(trace, NO_WEIGHT))
    return CuratedTraces(kept, dropped)


def _check_teacher(traces: Sequence[Trace], keep_teacher: str | None) -> None:
    teachers = dict.fromkeys(trace.teacher for trace in traces)
    if keep_teacher is not None and keep_teacher not in teachers:
        raise InputError(
            f"curate.keep_teacher={keep_teacher}: wrote none of the traces (there are: {', '.join(teachers)})"
        )


def _with_gold_check(traces: Sequence[Trace], reasons: list[str | None], check_gold: CheckGold) -> list[str | None]:
    """The reasons so far, and UNVERIFIABLE_GOLD for what is left with a gold that cannot be read."""
    readable: dict[str, bool] = {}
    checked = list(reasons)
    for index, (trace, reason) in enumerate(zip(traces, reasons, strict=True)):
        if reason is None and trace.problem.tests is None:
            gold = trace.problem.answer
            if gold not in readable:
                readable[gold] = check_gold(gold)
            checked[index] = None if readable[gold] else UNVERIFIABLE_GOLD
    return checked


def _incomplete(trace: Trace, config: CurateConfig) -> str | None:
    """The reason to drop a trace that shows without verifying it."""
    if config.keep_teacher is not None and trace.teacher != config.keep_teacher:
        return OTHER_TEACHER
    if config.filters.require_reasoning and not trace.reasoning.strip():
        return EMPTY_REASONING
    if trace.problem.tests is not None:
        return None if extract_program(trace.response) else NO_PROGRAM
    if config.filters.require_reasoning and not (trace.response.strip() and trace.problem.answer.strip()):
        return EMPTY_ANSWER
    if config.filters.require_boxed:
        answer = extract_boxed(trace.response)
        if answer is None:
            return NO_BOX
        if not answer:
            return EMPTY_ANSWER
    return None


def _score_all(traces: list[Trace], score: Score) -> Iterator[Verdict]:
    for start in range(0, len(traces), SCORED_AT_ONCE):
        batch = traces[start : start + SCORED_AT_ONCE]
        yield from score([trace.response for trace in batch], [_gold(trace) for trace in batch])


def _gold(trace: Trace) -> str:
    return trace.problem.answer if trace.problem.tests is None else trace.problem.tests


def _weight(trace: Trace, config: CurateConfig) -> float:
    problem = trace.problem
    return difficulty_weight(
        problem.difficulty, hardness(problem) if problem.difficulty == "hard" else 0.0, config.weights
    )


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
