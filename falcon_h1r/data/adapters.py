r"""One row of a source -> a problem, or its traces, as a SourceConfig says.

Where a row's parts come from:

    question    question_field, with the choices below it; of a chat, the last user's turn
    gold        answer_field; with `answer_after`, what follows its last mark: `... #### 42` -> `42`; with
                `answer_in_box`, its last \boxed{}; of multiple choice, the letter
    reasoning   reasoning_field; without one, what precedes that mark. `strip_pattern` is removed from it
    response    response_field; else what follows `</think>` in the reasoning; else its last \boxed{}; else \boxed{gold}
    tests       tests_field; a row that has some needs no gold, and its response is else the last fenced program

so that a trace which states a result of its own is judged by that, and only one that states none is taken at
its source's word. A generation is a model's: it is divided at its own `answer_after`, too, and never given the gold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.adapted_problems import UNKNOWN, gold_and_solution, read_problem
from falcon_h1r.data.chats import (
    conversation_uid,
    is_single_question,
    last_question,
    read_turns,
    split_conversation,
    split_reasoning,
    without_start,
)
from falcon_h1r.data.fields import Row, as_text, as_verdict, list_of, number_of, optional_text, text_of, value_of
from falcon_h1r.data.jsonl import json_type
from falcon_h1r.data.source_checks import TRACE_KEYS, check_source
from falcon_h1r.types import THINK_END, THINK_START, InputError, Problem, Trace, Turn
from falcon_h1r.verifier.code.extract import extract_program
from falcon_h1r.verifier.extract import extract_boxed


class Adapter:
    """A source's schema, checked once, and what it makes of rows.

    Raises:
        InputError: by the constructor for a wrong setting, by the methods for a row that does not fit.
    """

    def __init__(self, source: SourceConfig, key: str = "") -> None:
        check_source(source, key)
        self.source = source
        self._strip = re.compile(source.strip_pattern) if source.strip_pattern is not None else None
        start, end = source.reasoning_marks or (THINK_START, THINK_END)
        self._marks = (start, end)

    @property
    def has_traces(self) -> bool:
        """Whether the schema says where solutions are: without, rows are problems only."""
        keys = (*TRACE_KEYS, "response_field", "answer_after")
        return any(getattr(self.source, key) for key in keys)

    def problem(self, row: Row) -> Problem:
        """The problem of a row; one without a gold is an error, unless the source has none."""
        if self.source.messages_field is None:
            return read_problem(row, self.source, self._question(row), require_gold=True)
        turns = read_turns(row, self.source, self._marks, self._stripped)
        if turns and turns[-1].role == "assistant":  # a problem may be asked by a chat that nobody has answered
            turns, _ = split_conversation(turns, self.source.messages_field)
        return self._chat_problem(row, turns, require_gold=True)

    def traces(self, row: Row, origin: str = "", with_empty: bool = False) -> list[Trace]:
        """The traces of a row, in its order. Empty parts pass: curation counts and drops them.

        Args:
            origin: of the row; its generations are told apart by "#1", "#2", ...
            with_empty: whether a generation that is null is a trace that says nothing, and so is a row without any.
        """
        source = self.source
        if source.messages_field is not None:
            return [replace(self._chat(row), origin=origin)]
        problem = read_problem(row, self.source, self._question(row), require_gold=False)
        teacher = optional_text(row, source.teacher_field) or source.teacher
        weight = 1.0 if source.weight_field is None else number_of(row, source.weight_field)
        if source.generations_field is None and not source.generations:
            reasoning, response = self._solution(row, problem)
            verdict = self._verdict(row)
            return [Trace(problem, teacher or UNKNOWN, reasoning, response, weight, (), origin, verdict)]
        traces = []
        for number, name, text, verdict in self._generations(row):
            if text is None and not with_empty:
                continue
            reasoning, response = self._split_generation(text or "", problem)
            its_origin = f"{origin}#{number}" if origin else ""
            traces.append(Trace(problem, teacher or name, reasoning, response, weight, (), its_origin, verdict))
        if with_empty and not traces:
            traces.append(Trace(problem, teacher or UNKNOWN, "", "", weight, (), origin))
        return traces

    # -------------------------------------------------------------------------
    # The problem

    def _question(self, row: Row) -> str:
        question = text_of(row, self.source.question_field)
        if not question.strip():
            raise InputError(f"field {self.source.question_field!r} is empty")
        return question

    # -------------------------------------------------------------------------
    # Solutions and generations

    def _solution(self, row: Row, problem: Problem) -> tuple[str, str]:
        """Reasoning and response of a row with one solution: see the head of this file."""
        source = self.source
        if source.reasoning_field is not None:
            text = optional_text(row, source.reasoning_field)
        elif source.response_field is None and problem.tests is None:
            text = gold_and_solution(row, source)[1]
        else:
            text = ""
        text = self._stripped(text)
        if source.response_field is not None:
            reasoning, end, _ = text.rpartition(self._marks[1])
            return without_start(reasoning if end else text, self._marks), optional_text(row, source.response_field)
        divided = self._divided(text, problem)
        if divided is not None:
            return divided
        if not problem.verifiable:  # as of a proof: the text is the answer
            return split_reasoning(text, self._marks)
        return without_start(text, self._marks), rf"\boxed{{{problem.answer}}}" if problem.answer else ""

    def _split_generation(self, text: str, problem: Problem) -> tuple[str, str]:
        """Reasoning and response of what a model wrote: the gold is not put in its mouth."""
        text = self._stripped(text)
        mark = self.source.answer_after
        if mark and mark in text and self._marks[1] not in text:
            before, _, answer = text.rpartition(mark)
            return before.strip(), rf"\boxed{{{answer.strip()}}}" if answer.strip() else ""
        divided = self._divided(text, problem)
        if divided is not None:
            return divided
        return (without_start(text, self._marks), "") if problem.verifiable else split_reasoning(text, self._marks)

    def _divided(self, text: str, problem: Problem) -> tuple[str, str] | None:
        """Reasoning and response of a text that says itself where its result is."""
        if self._marks[1] in text:
            return split_reasoning(text, self._marks)
        reasoning = without_start(text, self._marks)
        if problem.tests is not None:
            program = extract_program(text)
            return reasoning, "" if program is None else f"```python\n{program.rstrip()}\n```"
        stated = extract_boxed(text)
        if stated or (stated is not None and problem.answer):
            return reasoning, rf"\boxed{{{stated}}}"
        return None

    def _stripped(self, text: str) -> str:
        return text if self._strip is None else self._strip.sub("", text)

    def _generations(self, row: Row) -> Iterator[tuple[int, str, str | None, bool | None]]:
        """(number from 1, teacher, text, verdict) of each generation, which may be null."""
        source = self.source
        if source.generations_field is not None:
            values = list_of(row, source.generations_field)
            names = [f"{source.generations_field}[{place}]" for place in range(len(values))]
        else:
            names = source.generations
            values = [value_of(row, name) for name in names]
        verdicts = self._verdicts(row, len(values))
        for number, (name, value, verdict) in enumerate(zip(names, values, verdicts, strict=True), start=1):
            if value is None:
                yield number, UNKNOWN if source.generations_field else name, None, None
                continue
            if (key := source.generation_verdict) is not None:
                verdict = as_verdict(_inner(value, key, name), f"{name}.{key}")
            if source.generation_text is not None:
                value = _inner(value, source.generation_text, name)
            yield number, UNKNOWN if source.generations_field else name, as_text(value, name), verdict

    def _verdict(self, row: Row) -> bool | None:
        name = self.source.verdict_field
        return None if name is None else as_verdict(value_of(row, name), name)

    def _verdicts(self, row: Row, count: int) -> list[bool | None]:
        """As many verdicts as there are generations; a null list says nothing of any."""
        name = self.source.verdict_field
        if name is None or value_of(row, name) is None:
            return [None] * count
        verdicts = list_of(row, name)
        if len(verdicts) != count:
            raise InputError(f"field {name!r} has {len(verdicts)} verdicts for {count} generations")
        return [as_verdict(verdict, name) for verdict in verdicts]

    # -------------------------------------------------------------------------
    # Chats

    def _chat(self, row: Row) -> Trace:
        source = self.source
        assert source.messages_field is not None
        before, last = split_conversation(read_turns(row, source, self._marks, self._stripped), source.messages_field)
        problem = self._chat_problem(row, before, require_gold=False)
        return Trace(
            problem,
            teacher=optional_text(row, source.teacher_field) or source.teacher or UNKNOWN,
            reasoning=last.reasoning,
            response=last.content,
            weight=1.0 if source.weight_field is None else number_of(row, source.weight_field),
            turns=() if [turn.role for turn in before] == ["user"] else tuple(before),
            given_verdict=self._verdict(row),
        )

    def _chat_problem(self, row: Row, before: list[Turn], require_gold: bool) -> Problem:
        name = self.source.messages_field
        assert name is not None
        question = last_question(before, name)
        if not question.strip():
            raise InputError(f"field {name!r}: the user's last turn is empty")
        problem = read_problem(row, self.source, question, require_gold)
        if self.source.uid_field is not None or is_single_question(before):
            return problem
        return replace(problem, uid=conversation_uid(before))


def _inner(value: Any, key: str, name: str) -> Any:
    """The part of a generation that is an object."""
    if not isinstance(value, Mapping):
        raise InputError(f"field {name!r} has to be an object, not {json_type(value)}")
    if key not in value:
        raise InputError(f"no field {key!r} in {name!r} (it has: {', '.join(map(str, value)) or 'none'})")
    return value[key]
