"""What speaks against a trace that shows without verifying it: docs/filters.md has each rule with an example.

    complete -> in its scripts -> its tools reliable -> its program sound -> not too long

Cheap tests come first. Chats, safety and proofs (problems that are not verifiable) need neither box nor gold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from falcon_h1r.config_data import TraceFiltersConfig
from falcon_h1r.data.programs import find_syntax_error, program_language, same_language
from falcon_h1r.data.scripts import find_other_scripts
from falcon_h1r.data.tool_calls import find_unreliable_call
from falcon_h1r.types import Problem, Trace
from falcon_h1r.verifier.code.extract import extract_program
from falcon_h1r.verifier.extract import extract_boxed

EMPTY_REASONING, EMPTY_ANSWER, NO_BOX, NO_PROGRAM = "empty_reasoning", "empty_answer", "no_box", "no_program"
CODE_SYNTAX, WRONG_LANGUAGE = "code_syntax", "wrong_language"
WRONG_SCRIPT, UNRELIABLE_TOOL = "wrong_script", "unreliable_tool"
TOO_LONG_PROMPT, TOO_LONG_RESPONSE = "too_long_prompt", "too_long_response"
INCOMPLETE = (EMPTY_REASONING, EMPTY_ANSWER, NO_BOX, NO_PROGRAM)
REASONS = (  # in the order in which they are looked for
    *INCOMPLETE,
    WRONG_SCRIPT,
    UNRELIABLE_TOOL,
    WRONG_LANGUAGE,
    CODE_SYNTAX,
    TOO_LONG_PROMPT,
    TOO_LONG_RESPONSE,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a trace is not learnt from: one of REASONS, and what was found."""

    reason: str
    detail: str = ""


def find_fault(
    trace: Trace, config: TraceFiltersConfig, count_tokens: Callable[[str], int] | None = None
) -> Fault | None:
    """The first fault of a trace; None where nothing speaks against it.

    Args:
        count_tokens: how long a text is. None: lengths are not looked at, as where `find_excess` is asked instead.
    """
    if reason := _incomplete(trace, config):
        return Fault(reason)
    if detail := find_other_scripts(_named_texts(trace), config.scripts, config.max_other_scripts):
        return Fault(WRONG_SCRIPT, detail)
    if config.require_reliable_tools and (detail := find_unreliable_call(trace)):
        return Fault(UNRELIABLE_TOOL, detail)
    if config.require_compiling_code and (fault := _unsound_program(trace)):
        return fault
    limited = config.max_prompt_tokens is not None or config.max_response_tokens is not None
    if limited and count_tokens is not None:
        return find_excess(*_token_counts(trace, count_tokens), config)
    return None


def find_excess(prompt_tokens: int, response_tokens: int, config: TraceFiltersConfig) -> Fault | None:
    """The fault of a trace that is so long, reasoning included."""
    for reason, tokens, most in (
        (TOO_LONG_PROMPT, prompt_tokens, config.max_prompt_tokens),
        (TOO_LONG_RESPONSE, response_tokens, config.max_response_tokens),
    ):
        if most is not None and tokens > most:
            return Fault(reason, f"{tokens} tokens, and {most} are allowed")
    return None


def _incomplete(trace: Trace, config: TraceFiltersConfig) -> str | None:
    """The first part that is missing."""
    problem = trace.problem
    says_nothing = not (trace.reasoning.strip() or trace.response.strip())
    if says_nothing or (config.require_reasoning and not trace.reasoning.strip()):
        return EMPTY_REASONING
    if problem.tests is not None:
        return None if extract_program(trace.response) else NO_PROGRAM
    if config.require_reasoning and not (trace.response.strip() and (problem.answer.strip() or not problem.verifiable)):
        return EMPTY_ANSWER
    if config.require_boxed and problem.verifiable and problem.domain == "math":
        answer = extract_boxed(trace.response)
        if not answer:
            return NO_BOX if answer is None else EMPTY_ANSWER
    return None


def _unsound_program(trace: Trace) -> Fault | None:
    """A program in another language than asked for, or that does not parse. An answer without one is no fault."""
    problem = trace.problem
    if not _asks_for_code(problem) or (program := extract_program(trace.response)) is None:
        return None
    asked = problem.language or "python"
    written = program_language(trace.response, program)
    if written is not None and not same_language(written, asked):
        return Fault(WRONG_LANGUAGE, f"{written}, and {asked} was asked for")
    if same_language("python", asked) and (error := find_syntax_error(program)):
        return Fault(CODE_SYNTAX, error)
    return None


def _named_texts(trace: Trace) -> dict[str, str]:
    """What is said, and not what a tool put out or a system prompt demands."""
    texts = {"question": trace.problem.question}
    for number, turn in enumerate(trace.turns, 1):
        if turn.role in ("user", "assistant"):
            texts[f"turn {number}"] = f"{turn.reasoning}\n{turn.content}"
    return {**texts, "reasoning": trace.reasoning, "response": trace.response}


def _asks_for_code(problem: Problem) -> bool:
    return problem.tests is not None or problem.domain == "code"


def _token_counts(trace: Trace, count_tokens: Callable[[str], int]) -> tuple[int, int]:
    """Of the prompt, earlier reasoning included, and of what the last turn says."""
    turns = [text for turn in trace.turns for text in (turn.reasoning, turn.content)]
    prompt = turns or [trace.problem.question]
    return sum(count_tokens(text) for text in prompt if text), sum(map(count_tokens, (trace.reasoning, trace.response)))
