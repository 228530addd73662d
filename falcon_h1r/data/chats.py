"""Conversations as turns: messages of any of the common shapes, tool calls as text, reasoning apart.

Tool calls and signatures are written as Hermes and Qwen write them: `<tool_call>` with one JSON object in the
assistant's content, `<tools>` with one signature a line in the system turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.fields import Row, as_json, as_text, has_value, list_of, optional_text, value_of
from falcon_h1r.data.jsonl import json_type
from falcon_h1r.data.source_checks import ROLES, TOOL_CALL
from falcon_h1r.types import InputError, Turn, content_hash

TOOLS_PROMPT = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def read_turns(row: Row, source: SourceConfig, marks: tuple[str, str], strip: Callable[[str], str] = str) -> list[Turn]:
    """All turns of a row's conversation, the system turn first where there is one.

    Args:
        marks: what stands before and after an assistant's reasoning.
        strip: takes out of an assistant's text what is not to be learnt.

    Raises:
        InputError: for a message without a known role, or whose content or calls cannot be read.
    """
    assert source.messages_field is not None
    turns: list[Turn] = []
    for number, message in enumerate(list_of(row, source.messages_field), start=1):
        try:
            turn, is_call = _turn(message, source, marks, strip)
        except InputError as error:
            raise InputError(f"{source.messages_field}, message {number}: {error}") from None
        if is_call and turns and turns[-1].role == "assistant":  # said and called in one turn, as models do
            said = turns.pop()
            turn = replace(said, content="\n".join(filter(None, (said.content, turn.content))))
        turns.append(turn)
    system = optional_text(row, source.system_field) if has_value(row, source.system_field) else ""
    return _with_system(turns, system, _signatures(row, source.tools_field))


def split_conversation(turns: Sequence[Turn], name: str) -> tuple[list[Turn], Turn]:
    """What an assistant's last turn answers, and that turn.

    Raises:
        InputError: where the conversation does not end in an assistant's turn, or no user speaks before.
    """
    if not any(turn.role == "assistant" for turn in turns):
        raise InputError(f"field {name!r} has no assistant turn")
    if turns[-1].role != "assistant":
        raise InputError(f"field {name!r} ends in a turn of the {turns[-1].role}, not of the assistant")
    return list(turns[:-1]), turns[-1]


def last_question(turns: Sequence[Turn], name: str) -> str:
    """What the user asks last."""
    for turn in reversed(turns):
        if turn.role == "user":
            return turn.content
    raise InputError(f"field {name!r} has no user turn")


def is_single_question(turns: Sequence[Turn]) -> bool:
    """Whether nothing but a system turn and the question precedes the answer."""
    return [turn.role for turn in turns if turn.role != "system"] == ["user"]


def conversation_uid(turns: Sequence[Turn]) -> str:
    """A hash of the question; of a longer conversation, of all turns: "go on" is asked in many."""
    if is_single_question(turns):
        return content_hash(last_question(turns, ""))
    return content_hash(json.dumps([[turn.role, turn.content] for turn in turns if turn.role != "system"]))


def split_reasoning(text: str, marks: tuple[str, str]) -> tuple[str, str]:
    """(what stands between the marks, what follows): without marks there is no reasoning."""
    before, end, after = text.rpartition(marks[1])
    if end:
        return without_start(before, marks), after.strip()
    text = text.strip()
    return (without_start(text, marks), "") if text.startswith(marks[0]) else ("", text)


def without_start(reasoning: str, marks: tuple[str, str]) -> str:
    return reasoning.strip().removeprefix(marks[0]).strip()


# -----------------------------------------------------------------------------
# One message


def _turn(message: Any, source: SourceConfig, marks: tuple[str, str], strip: Callable[[str], str]) -> tuple[Turn, bool]:
    """The turn, and whether it is a call that ShareGPT gives a turn of its own."""
    if not isinstance(message, Mapping):
        raise InputError(f"has to be an object, not {json_type(message)}")
    theirs = as_text(value_of(message, source.role_field), source.role_field)
    role = source.role_names.get(theirs, theirs)
    if role not in ROLES:
        raise InputError(f"unknown role {theirs[:40]!r}; role_names says what it is")
    content = _content(message, source.content_field)
    if role == TOOL_CALL:
        return Turn("assistant", _call_text(content, source.content_field)), True
    if role != "assistant":
        return Turn(role, content), False
    reasoning, content = split_reasoning(strip(content), marks)
    if source.message_reasoning_field is not None and message.get(source.message_reasoning_field) is not None:
        apart = as_text(message[source.message_reasoning_field], source.message_reasoning_field)
        reasoning = apart.strip() or reasoning
    return Turn(role, "\n".join(filter(None, (content, *_calls(message)))), reasoning), False


def _content(message: Row, name: str) -> str:
    """A message's text: as such, as null beside calls, or in parts of type text."""
    value = value_of(message, name) if name in message or not _calls(message) else None
    if value is None:
        return ""
    if not isinstance(value, list):
        return as_text(value, name)
    parts = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            raise InputError(f"field {name!r} has a part that is not text")
        parts.append(as_text(value_of(part, "text"), f"{name}.text"))
    return "".join(parts)


# -----------------------------------------------------------------------------
# Tools


def _calls(message: Row) -> list[str]:
    """The calls beside a message's content, rendered: `tool_calls`, or the older `function_call`."""
    calls = []
    if message.get("tool_calls"):
        calls = list_of(message, "tool_calls")
    elif message.get("function_call"):
        calls = [message["function_call"]]
    return [_render_call(call) for call in calls]


def _call_text(content: str, name: str) -> str:
    """A call, or a list of them, that is written as a turn's content."""
    if "<tool_call>" in content:
        return content.strip()
    try:
        calls = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(f"field {name!r} is a tool call, and not JSON") from None
    return "\n".join(_render_call(call) for call in (calls if isinstance(calls, list) else [calls]))


def _render_call(call: Any) -> str:
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise InputError("a tool call has to be an object with a name")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise InputError(f"the arguments of a call of {call['name'][:40]!r} are not JSON") from None
    if arguments is not None and not isinstance(arguments, Mapping):
        raise InputError(f"the arguments of a call of {call['name'][:40]!r} have to be an object")
    shown = as_json({"name": call["name"], "arguments": arguments or {}}, "arguments")
    return f"<tool_call>\n{shown}\n</tool_call>"


def _signatures(row: Row, name: str | None) -> list[str]:
    """Signatures of a row's tools, one JSON text each; a bare function is wrapped as OpenAI does."""
    if name is None or not has_value(row, name):
        return []
    signatures = []
    for tool in list_of(row, name):
        if not isinstance(tool, Mapping):
            raise InputError(f"field {name!r} has to be a list of objects, not of {json_type(tool)}")
        whole = tool if isinstance(tool.get("function"), Mapping) else {"type": "function", "function": tool}
        try:
            signatures.append(as_json(_without_nulls(whole), name))
        except RecursionError:
            raise InputError(f"field {name!r} is nested too deeply") from None
    return signatures


def _without_nulls(value: Any) -> Any:
    """Parquet gives every signature the keys of all others, as nulls."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _with_system(turns: list[Turn], system: str, signatures: list[str]) -> list[Turn]:
    """The turns with the signatures in their system turn, unless it lists some itself."""
    if turns and turns[0].role == "system":
        system = turns[0].content
        turns = turns[1:]
    if signatures and "<tools>" not in system:
        prompt = TOOLS_PROMPT.format(signatures="\n".join(signatures))
        system = f"{system.rstrip()}\n\n{prompt}" if system.strip() else prompt
    return [Turn("system", system), *turns] if system.strip() else turns
