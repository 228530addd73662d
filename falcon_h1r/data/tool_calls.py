r"""Whether the tool calls of a conversation are well formed, answered, and answered by more than an error.

    system     <tools>[{"type": "function", "function": {"name": "weather", ...}}]</tools>
    assistant  <tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>
    tool       {"celsius": 21}

A call is an object with a name and arguments; every call has one output, and the turns after it wait for that. A
conversation may end in calls: that is what function-calling data teaches.
"""

from __future__ import annotations

import json
import re
from typing import Any

from falcon_h1r.types import Trace, Turn

_SHOWN = 80
_MOST_WRAPPED = 8  # objects around an output that are looked into
_BEGINNING = 300  # characters of an output in which an error would show

# How an output begins that is an error; what a page or a document says further on is not.
_ERROR_START = re.compile(
    r"(?i)\W*(?:traceback \(most recent call last\)|(?:\w+\.)*\w*(?:error|exception)\b\s*(?:[:({]|$)|"
    r"an? (?:\w+ )?(?:error|exception) (?:occurred|has occurred|while)|error (?:executing|calling|while|in|fetching)\b|"
    r"(?:http|https)(?:/\d(?:\.\d)?)?(?: error| status)?(?: code)?:?\s*[45]\d\d\b|"
    r"(?:status|status code|code)\s*[:=]\s*[45]\d\d\b|"
    r"[45]\d\d (?:bad request|unauthorized|forbidden|not found|too many requests|internal server error|bad gateway|"
    r"service unavailable|gateway time-?out)|"
    r"(?:internal server error|bad gateway|service unavailable|too many requests|rate limit exceeded)\b|"
    r"(?:the )?(?:\w+ ){0,3}timed out\b|timeout\b(?: (?:error|exceeded|expired|after|of)|\W*$)|failed to \w+)"
)
_TRACEBACK = re.compile(r"^[ \t]*Traceback \(most recent call last\):", re.MULTILINE)
_BAD_STATUS = ("error", "fail", "failed", "failure", "timeout")


def find_unreliable_call(trace: Trace) -> str | None:
    """The first thing wrong with a trace's tools, with the number of its turn (the last is the response); or None."""
    turns = [*trace.turns, Turn("assistant", trace.response)]
    names: set[str] | None = None  # of the tools there are; None: no turn says
    waiting = 0  # calls without an output so far
    for number, turn in enumerate(turns, 1):
        where = f"turn {number}"
        if turn.role == "tool":
            outputs = _outputs_of(turn.content, waiting)
            if len(outputs) > waiting:
                return f"{where}: an output without a call"
            if fault := next(filter(None, map(_bad_output, outputs)), None):
                return f"{where}: {fault}"
            waiting -= len(outputs)
            continue
        if waiting:
            return f"{where}: a call without an output before it"
        if turn.role == "system" and "<tools>" in turn.content:
            names = _names_of(turn.content)
            if names is None:
                return f"{where}: signatures that cannot be read"
        if turn.role == "assistant":
            calls, fault = _calls_of(turn.content)
            if fault is None and names is not None:
                fault = next((f"a call of {name!r}, which is no tool" for name in calls if name not in names), None)
            if fault is not None:
                return f"{where}: {fault}"
            waiting = len(calls)
    return None


def _calls_of(content: str) -> tuple[list[str], str | None]:
    """The names of the tools that a turn calls, and what is wrong with its calls."""
    bodies = _between(content, "tool_call")
    if bodies is None:
        return [], "a call that does not close"
    names = []
    for body in bodies:
        call = _parsed(body)
        if not (isinstance(call, dict) and isinstance(call.get("name"), str)):
            return [], f"a call that is no JSON with a name: {_shown(body)}"
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):  # as OpenAI's interface writes them
            arguments = _parsed(arguments) if arguments.strip() else {}
        if not isinstance(arguments, dict):
            return [], f"a call whose arguments are no JSON object: {_shown(body)}"
        names.append(call["name"])
    return names, None


def _outputs_of(content: str, waiting: int) -> list[str]:
    """The outputs that a tool's turn holds: between tags, one for each of several calls as a JSON list, or one."""
    outputs = _between(content, "tool_response") or []
    if not outputs and waiting > 1:
        values = _parsed(content)
        if isinstance(values, list) and len(values) == waiting:
            outputs = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return outputs or [content.strip()]


def _bad_output(output: str) -> str | None:
    """What is wrong with a tool's output. An empty list or object is an answer: nothing was found."""
    if output in ("", "None", "null", '""', "''"):
        return "an empty output"
    value = _parsed(output)
    text = value if isinstance(value, str) else output
    if (isinstance(value, dict) and _says_error(value)) or (
        _ERROR_START.match(text[:_BEGINNING]) or _TRACEBACK.search(text)
    ):
        return f"an error: {_shown(text)}"
    return None


def _says_error(output: dict[str, Any], most_wrapped: int = _MOST_WRAPPED) -> bool:
    for key in ("error", "errors", "exception", "traceback"):
        value = output.get(key)
        if value is True or (value and not isinstance(value, int | float)):  # a number is an error of measurement
            return True
    if output.get("success") is False:
        return True
    codes = ["status", "status_code", *(["code"] if "message" in output else [])]
    if any(re.fullmatch(r"[45]\d\d", str(output.get(code))) for code in codes):
        return True
    if str(output.get("status", "")).lower() in _BAD_STATUS:
        return True
    return any(  # {"name": ..., "content": ...} wraps the output itself
        most_wrapped and isinstance(inner := output.get(key), dict) and _says_error(inner, most_wrapped - 1)
        for key in ("content", "result", "output")
    )


def _names_of(content: str) -> set[str] | None:
    """The tools' names, of one JSON list or of a JSON object a line, between tags; None where they cannot be read."""
    names: set[str] = set()
    entries: list[Any] = []
    for block in _between(content, "tools") or [""]:
        whole = _parsed(block)
        lines = [_parsed(line) for line in block.splitlines() if line.strip()] if whole is None else [whole]
        entries += whole if isinstance(whole, list) else lines
    for entry in entries:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            return None
        names.add(function["name"])
    return names


def _between(text: str, tag: str) -> list[str] | None:
    """What stands between each tag and its end, stripped; None where they do not alternate. Linear in the text."""
    parts = re.split(rf"(</?{tag}>)", text)
    if parts[1::2] != [f"<{tag}>", f"</{tag}>"] * (len(parts) // 4):
        return None
    return [part.strip() for part in parts[2::4]]


def _parsed(text: str) -> Any:
    """The JSON value of a text; None where it is none, or nested beyond what the parser bears."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shown(text: str) -> str:
    return repr(text.strip()[:_SHOWN])
