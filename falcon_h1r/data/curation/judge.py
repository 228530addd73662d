"""One chunk judged: what speaks against each of its traces, and what else has to be known of it.

    the teacher -> complete, fitting, in its language -> not of an evaluation -> a readable gold -> right

Cheap tests come first, so that only what passes them is verified.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config import Config
from falcon_h1r.data.chunks import BadRow, Chunk, read_chunk
from falcon_h1r.data.curation.facts import KEPT, ChunkFiles, FactsWriter, Judged
from falcon_h1r.data.curation.second_check import SecondCheck
from falcon_h1r.data.decontamination import EvaluationIndex
from falcon_h1r.data.difficulty import hardness
from falcon_h1r.data.duplicates import signature
from falcon_h1r.data.filters import EMPTY_ANSWER, NO_BOX, NO_PROGRAM, find_excess, find_fault
from falcon_h1r.types import InputError, Problem, Trace, Verdict
from falcon_h1r.verifier import Verifier
from falcon_h1r.verifier.code import CodeVerifier

Score = Callable[[Sequence[str], Sequence[str]], list[Verdict]]  # predictions, golds or tests -> verdicts

# In the order in which they are looked for, around those of falcon_h1r.data.filters.
OTHER_TEACHER, CONTAMINATED, UNVERIFIABLE_GOLD, UNPROVED = (
    "other_teacher",
    "contaminated",
    "unverifiable_gold",
    "unproved",
)
SECOND_CHECK = "second_check"
NOT_CORRECT = (UNVERIFIABLE_GOLD, UNPROVED, "undecided", "wrong", SECOND_CHECK)

WITHOUT_ANSWER = (EMPTY_ANSWER, NO_BOX, NO_PROGRAM)
REDEEMABLE = (UNVERIFIABLE_GOLD, "undecided")  # reduce.py keeps those of very hard problems, where asked to

BY_COVERAGE = "by_coverage"
JUDGED_AT_ONCE = 512
RETRIES = 2  # of a verdict that the machine's load decided
LOADED_STAGES = ("deadline", "memory", "worker", "closed")


def open_judge(config: Config) -> ChunkJudge:
    """The judge of a run's config, with verifiers of its own."""
    stack = ExitStack()
    verifier = stack.enter_context(Verifier.from_config(config.verifier))
    code: list[CodeVerifier] = []

    def score_code(responses: Sequence[str], tests: Sequence[str]) -> list[Verdict]:
        if not code:  # no sandbox starts where no problem has tests
            code.append(stack.enter_context(_code_verifier(config)))
        return code[0].score(responses, tests)

    return ChunkJudge(config, verifier.score, score_code, verifier.check_gold, stack.close)


class ChunkJudge:
    """Judges traces as a config says.

    Args:
        score: verdicts on responses against golds, as Verifier.score gives them.
        score_code: on programs against tests, as CodeVerifier.score gives them.
        check_gold: whether a gold can be judged against. What cannot be is never scored: equal strings of broken
            notation prove nothing.
    """

    def __init__(
        self,
        config: Config,
        score: Score,
        score_code: Score,
        check_gold: Callable[[str], bool],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.curate = config, config.curate
        self._score, self._score_code, self._check_gold, self._close = score, score_code, check_gold, close
        self._second: SecondCheck | None = None
        self._evaluation = EvaluationIndex.from_config(config.curate.decontamination)
        self._count_tokens = token_counter(config)
        self._golds: dict[str, bool] = {}
        self._clock = StageClock("reading")
        weights = config.curate.weights
        teacher = config.curate.keep_teacher
        # Where a problem is as hard as its traces find it, other teachers' traces are judged for that alone.
        self._teacher = None if teacher == BY_COVERAGE else teacher
        self._judge_others = weights.measured_by == "pass_rate" and weights.pass_rates == "traces"

    def close(self) -> None:
        """End what was started."""
        if self._second is not None:
            self._second.close()
        self._close()

    def judge_chunk(self, chunk: Chunk, files: ChunkFiles) -> tuple[int, int]:
        """Read and judge a chunk and write its facts; returns its numbers of traces and tokens.

        Raises:
            InputError: for a row that cannot be read, unless curate.on_error is skip.
        """
        bad: list[BadRow] = []
        on_bad = bad.append if self.curate.on_error == "skip" else None
        max_bytes = int(self.curate.max_row_megabytes * 1e6)
        writer, signatures = FactsWriter(chunk.source), []
        source = self.curate.sources[chunk.source]
        traces = read_chunk(chunk, source, max_bytes, on_bad)
        if source.curated:  # its weights are those of another curation: difficulty is weighed anew
            traces = (replace(trace, weight=1.0) for trace in traces)
        self._golds.clear()
        self._clock = StageClock("reading")
        while batch := list(islice(traces, JUDGED_AT_ONCE)):
            for trace, judged in zip(batch, self.judge(batch), strict=True):
                writer.add(trace, judged)
                if self.curate.duplicates.of is not None:
                    signatures.append(self._signature(trace, judged))
            self._clock.enter("reading")
        writer.notes.num_unreadable = len(bad)
        writer.notes.unverifiable_golds = sorted(gold for gold, readable in self._golds.items() if not readable)
        writer.notes.seconds = {stage: round(seconds, 3) for stage, seconds in self._clock.stop().items()}
        files.write(writer, np.stack(signatures) if signatures else None)
        facts = writer.facts
        return len(facts), int(facts["prompt_tokens"].sum() + facts["response_tokens"].sum())

    def judge(self, traces: Sequence[Trace]) -> list[Judged]:
        """What is to be known of each, in order."""
        self._clock.enter("counting tokens")
        tokens = [self._tokens(trace) for trace in traces]
        self._clock.enter("filtering")
        faults = [self._find_fault(trace, *counts) for trace, counts in zip(traces, tokens, strict=True)]
        self._clock.enter("decontaminating")
        faults = [self._find_contamination(trace, *fault) for trace, fault in zip(traces, faults, strict=True)]
        self._clock.enter("verifying")
        faults = [self._find_unprovable(trace, *fault) for trace, fault in zip(traces, faults, strict=True)]
        verdicts = self._verdicts(traces, [index for index, (reason, _) in enumerate(faults) if reason == KEPT])
        objections = self._objections(traces, verdicts)
        self._clock.enter("signatures")
        judged = []
        for index, (trace, (reason, detail)) in enumerate(zip(traces, faults, strict=True)):
            verdict = verdicts.get(index)
            if verdict is not None:
                reason, detail = _reason_of(verdict, objections.get(index, ""))
            failed = reason in WITHOUT_ANSWER and _can_be_solved(trace.problem)
            status = verdict.status if verdict is not None else "no_answer" if failed else ""
            how_hard = hardness(trace.problem) if trace.problem.difficulty == "hard" else 0.0
            judged.append(Judged(reason, detail, status, how_hard, *tokens[index]))
        return judged

    def _signature(self, trace: Trace, judged: Judged) -> NDArray[np.uint32]:
        """Zeros for what is dropped already: nobody compares it."""
        if judged.reason == KEPT or judged.reason in REDEEMABLE:
            return signature(trace, self.curate.duplicates)
        return np.zeros(self.curate.duplicates.num_hashes, np.uint32)

    def _find_fault(self, trace: Trace, prompt_tokens: int, response_tokens: int) -> tuple[str, str]:
        """What speaks against a trace before it is verified: reason and detail; KEPT where nothing does."""
        if self._teacher is not None and trace.teacher != self._teacher and not self._judge_others:
            return OTHER_TEACHER, ""
        filters = self.curate.filters
        fault = find_fault(trace, filters) or find_excess(prompt_tokens, response_tokens, filters)
        if fault is not None:
            return fault.reason, fault.detail
        return KEPT, ""

    def _find_contamination(self, trace: Trace, reason: str, detail: str) -> tuple[str, str]:
        match = self._evaluation.find(trace) if reason == KEPT else None
        return (reason, detail) if match is None else (CONTAMINATED, match.describe())

    def _find_unprovable(self, trace: Trace, reason: str, detail: str) -> tuple[str, str]:
        """Nothing to judge by, where something is needed."""
        problem = trace.problem
        if reason != KEPT:
            return reason, detail
        if not problem.verifiable:
            proved = problem.domain == "other" or "proof" in self.curate.filters.keep_unproved
            return (KEPT, "") if proved else (UNPROVED, "")
        if problem.tests is None and not self._readable(problem.answer):
            return UNVERIFIABLE_GOLD, f"gold: {problem.answer[:200]!r} cannot be read"
        return KEPT, ""

    def _readable(self, gold: str) -> bool:
        if gold not in self._golds:
            self._golds[gold] = self._check_gold(gold)
        return self._golds[gold]

    def _verdicts(self, traces: Sequence[Trace], indices: Iterable[int]) -> dict[int, Verdict]:
        """On those of the traces that can be judged."""
        verdicts: dict[int, Verdict] = {}
        to_judge = [index for index in indices if traces[index].problem.verifiable]
        for has_tests, score in ((False, self._score), (True, self._score_code)):
            chosen = [index for index in to_judge if (traces[index].problem.tests is not None) == has_tests]
            for _ in range(1 + RETRIES):
                if not chosen:
                    break
                golds = [traces[index].problem.tests or traces[index].problem.answer for index in chosen]
                found = score([traces[index].response for index in chosen], golds)
                verdicts.update(zip(chosen, found, strict=True))
                chosen = [index for index in chosen if verdicts[index].stage in LOADED_STAGES]
        return verdicts

    def _objections(self, traces: Sequence[Trace], verdicts: Mapping[int, Verdict]) -> dict[int, str]:
        """What the second check has against traces that were found right."""
        correct = [index for index, verdict in verdicts.items() if verdict.correct]
        check = self.curate.filters.second_check
        if check == "given":
            return {index: "the source calls it wrong" for index in correct if traces[index].given_verdict is False}
        if check == "llm" and correct:
            self._clock.enter("second check")
            if self._second is None:
                self._second = SecondCheck(self.curate.second_check)
            return dict(zip(correct, self._second.objections([traces[index] for index in correct]), strict=True))
        return {}

    def _tokens(self, trace: Trace) -> tuple[int, int]:
        turns = [text for turn in trace.turns for text in (turn.reasoning, turn.content)]
        prompt = turns or [trace.problem.question]
        count = self._count_tokens
        return sum(count(text) for text in prompt), count(trace.reasoning) + count(trace.response)


def _can_be_solved(problem: Problem) -> bool:
    """Whether there is anything that a trace without an answer has failed at."""
    return problem.verifiable and (problem.tests is not None or bool(problem.answer.strip()))


def _reason_of(verdict: Verdict, objection: str) -> tuple[str, str]:
    """Reason and detail of a trace that was verified."""
    if not verdict.correct:
        return verdict.status, f"{verdict.stage}: {verdict.reason}"
    return (SECOND_CHECK, objection) if objection else (KEPT, "")


class StageClock:
    """Where the seconds of one process went."""

    def __init__(self, stage: str) -> None:
        self._seconds: dict[str, float] = {}
        self._stage, self._since = stage, time.perf_counter()

    def enter(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now

    def stop(self) -> dict[str, float]:
        self.enter("")
        return self._seconds


def token_counter(config: Config) -> Callable[[str], int]:
    """How many tokens a text has: by `curate.tokenizer` or the model's, else estimated from its characters.

    Raises:
        InputError: where that tokenizer cannot be loaded.
    """
    name = config.curate.tokenizer or config.model.path
    if name is None:
        return partial(_estimate, characters_per_token=config.curate.characters_per_token)
    from pathlib import Path

    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    try:
        if path.is_dir() or path.is_file():
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
        else:
            tokenizer = Tokenizer.from_pretrained(name)
    except Exception as error:  # whatever a library of another language raises
        raise InputError(f"curate.tokenizer={name}: cannot be loaded ({str(error).splitlines()[0]})") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False)) if text else 0


def _estimate(text: str, characters_per_token: float) -> int:
    return round(len(text) / characters_per_token)


def _code_verifier(config: Config) -> CodeVerifier:
    return CodeVerifier.from_config(config.verifier.code, config.seed)
