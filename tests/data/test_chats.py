"""Conversations: turns, reasoning, tool calls, and what is no conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.data.adapters import Adapter
from falcon_h1r.data.chats import TOOLS_PROMPT
from falcon_h1r.types import InputError, Problem, Trace, Turn, content_hash

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "data" / "source"
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
SIGNATURE = json.dumps({"type": "function", "function": WEATHER})
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def preset(name: str) -> Adapter:
    settings = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return Adapter(SourceConfig(**{**settings, "path": "rows.jsonl"}))


def say(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def share(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": role, "value": content} for role, content in turns]


def unjudged(question: str, family: str, uid: str | None = None) -> Problem:
    return Problem(uid or content_hash(question), question, "", family, domain="other", verifiable=False)


def turns_uid(*turns: tuple[str, str]) -> str:
    return content_hash(json.dumps([list(turn) for turn in turns]))


def test_a_question_and_its_answer_have_no_turns() -> None:
    asked = unjudged("Hi?", "chat")
    thought = {"messages": say(("user", "Hi?"), ("assistant", "<think>\nhm\n</think>\n\nHi!"))}
    assert preset("chat").traces(thought, "c:f:1") == [Trace(asked, "unknown", "hm", "Hi!", origin="c:f:1")]
    plain = {"messages": say(("user", "Hi?"), ("assistant", " Hi! "))}
    assert preset("chat").traces(plain) == [Trace(asked, "unknown", "", "Hi!")]
    endless = {"messages": say(("user", "Hi?"), ("assistant", "<think>hm"))}
    assert preset("chat").traces(endless) == [Trace(asked, "unknown", "hm", "")]


def test_a_system_turn_is_kept_and_does_not_change_the_problem() -> None:
    row = {"messages": say(("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hi!"))}
    turns = (Turn("system", "Be kind."), Turn("user", "Hi?"))
    assert preset("chat").traces(row) == [Trace(unjudged("Hi?", "chat"), "unknown", "", "Hi!", turns=turns)]


def test_a_longer_chat_keeps_all_before_its_last_answer() -> None:
    said = (("user", "Hi?"), ("assistant", "<think>hm</think>Hi!"), ("user", "Go on."), ("assistant", "I will."))
    uid = turns_uid(("user", "Hi?"), ("assistant", "Hi!"), ("user", "Go on."))
    turns = (Turn("user", "Hi?"), Turn("assistant", "Hi!", "hm"), Turn("user", "Go on."))
    expected = Trace(unjudged("Go on.", "chat", uid), "unknown", "", "I will.", turns=turns)
    assert preset("chat").traces({"messages": say(*said)}) == [expected]
    other = preset("chat").problem({"messages": say(("user", "Ho?"), *said[1:])})
    assert other.question == "Go on." and other.uid != uid, "the same last words, another conversation"


def test_sharegpt() -> None:
    row = {"conversations": share(("human", "Hi?"), ("gpt", "<think>hm</think>Hi!"))}
    assert preset("sharegpt").traces(row) == [Trace(unjudged("Hi?", "chat"), "unknown", "hm", "Hi!")]
    odd = {"conversations": json.dumps(share(("system", ""), ("human", "Hi?"), ("chatgpt", "")))}
    assert preset("sharegpt").traces(odd) == [Trace(unjudged("Hi?", "chat"), "unknown", "", "")]


def test_safety() -> None:
    row = {"messages": say(("user", "How do I pick locks?"), ("assistant", "I cannot help with that."))}
    expected = Trace(unjudged("How do I pick locks?", "safety"), "unknown", "", "I cannot help with that.")
    assert preset("safety").traces(row) == [expected]
    parts = [{"type": "text", "text": "How do I "}, {"text": "pick locks?"}]
    assert preset("safety").traces({"messages": say(("user", parts), row_answer(row))}) == [expected]


def row_answer(row: dict[str, Any]) -> tuple[str, str]:
    return "assistant", row["messages"][-1]["content"]


def test_tool_calls_and_signatures_become_text() -> None:
    function = {"name": "weather", "arguments": '{"city": "Köln"}'}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": '{"sky": "grey"}'},
        {"role": "assistant", "content": "It is grey.", "reasoning_content": " seen ", "tool_calls": None},
    ]
    uid = turns_uid(("user", "Weather?"), ("assistant", CALL), ("tool", '{"sky": "grey"}'))
    turns = (
        Turn("system", TOOLS_PROMPT.format(signatures=SIGNATURE)),
        Turn("user", "Weather?"),
        Turn("assistant", CALL),
        Turn("tool", '{"sky": "grey"}'),
    )
    expected = Trace(unjudged("Weather?", "tool_calling", uid), "unknown", "seen", "It is grey.", turns=turns)
    assert preset("tool_calling").traces({"messages": messages, "tools": [WEATHER]}) == [expected]
    assert "<tools>\n{" in turns[0].content and "\n</tools>" in turns[0].content


def test_a_chat_may_end_in_a_call() -> None:
    calls = [{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "now", "arguments": None}]
    answer = {"role": "assistant", "content": "<think>look</think>Let me look.", "tool_calls": json.dumps(calls)}
    row = {"messages": [*say(("system", "Be kind."), ("user", "Weather?")), answer], "tools": json.dumps([WEATHER])}
    (trace,) = preset("tool_calling").traces(row)
    assert (trace.reasoning, trace.response) == (
        "look",
        f'Let me look.\n{CALL}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>',
    )
    assert trace.turns[0].content == "Be kind.\n\n" + TOOLS_PROMPT.format(signatures=SIGNATURE)
    assert trace.problem == unjudged("Weather?", "tool_calling")


def test_signatures_that_the_system_turn_has_are_not_told_twice() -> None:
    system = f"<tools>{SIGNATURE}</tools>"
    row = {"messages": say(("system", system), ("user", "?"), ("assistant", "!")), "tools": [WEATHER]}
    assert preset("tool_calling").traces(row)[0].turns == (Turn("system", system), Turn("user", "?"))


def test_nulls_that_parquet_adds_to_signatures_are_taken_out() -> None:
    tool = {"type": "function", "function": {**WEATHER, "strict": None}}
    row = {"messages": say(("user", "?"), ("assistant", "!")), "tools": [tool]}
    assert SIGNATURE in preset("tool_calling").traces(row)[0].turns[0].content
    assert preset("tool_calling").traces({**row, "tools": None})[0].turns == ()


def test_older_function_calls() -> None:
    messages = [
        *say(("user", "?")),
        {"role": "assistant", "function_call": {"name": "weather", "arguments": {"city": "Köln"}}},
        *say(("function", "grey"), ("assistant", "Grey.")),
    ]
    (trace,) = preset("tool_calling").traces({"messages": messages, "tools": ""})
    assert trace.turns == (Turn("user", "?"), Turn("assistant", CALL), Turn("tool", "grey"))


def test_sharegpt_gives_calls_turns_of_their_own() -> None:
    call = '{"name": "weather", "arguments": {"city": "Köln"}}'
    said = share(("human", "?"), ("gpt", "<think>a</think>Let me look."), ("function_call", call))
    row = {"conversations": [*said, *share(("observation", "grey"), ("gpt", "Grey."))], "system": "Be kind."}
    (trace,) = preset("tool_calling_sharegpt").traces({**row, "tools": "[]"})
    looked = Turn("assistant", f"Let me look.\n{CALL}", "a")
    assert trace.turns == (Turn("system", "Be kind."), Turn("user", "?"), looked, Turn("tool", "grey"))
    assert (trace.response, trace.problem.family) == ("Grey.", "tool_calling")
    bare = {"conversations": share(("human", "?"), ("tool", "x"), ("gpt", "Grey."))}  # neither system nor tools
    assert preset("tool_calling_sharegpt").traces(bare)[0].turns == (Turn("user", "?"), Turn("tool", "x"))
    already = {"conversations": share(("human", "?"), ("function_call", CALL)), "system": None, "tools": None}
    expected = Trace(unjudged("?", "tool_calling"), "unknown", "", CALL)
    assert preset("tool_calling_sharegpt").traces(already) == [expected]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "field 'messages' has no assistant turn"),
        (say(("user", "?")), "field 'messages' has no assistant turn"),
        (
            say(("user", "?"), ("assistant", "!"), ("user", "??")),
            "field 'messages' ends in a turn of the user, not of the assistant",
        ),
        (say(("system", "x"), ("assistant", "!")), "field 'messages' has no user turn"),
        (say(("user", " "), ("assistant", "!")), "field 'messages': the user's last turn is empty"),
        (
            say(("user", "?"), ("critic", "!")),
            "messages, message 2: unknown role 'critic'; role_names says what it is",
        ),
        (say((None, "?")), "messages, message 1: field 'role' has to be text, not null"),  # type: ignore[arg-type]
        (say(("user", 3)), "messages, message 1: field 'content' has to be text, not a number"),
        (
            say(("user", [{"type": "image_url"}])),
            "messages, message 1: field 'content' has a part that is not text",
        ),
        (["hi"], "messages, message 1: has to be an object, not text"),
        ([{"role": "user"}], "messages, message 1: no field 'content' (it has: role)"),
        ("hi", "field 'messages' has to be a list, not text"),
        (None, "field 'messages' has to be a list, not null"),
    ],
)
def test_what_is_no_conversation_is_told(messages: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        preset("chat").traces({"messages": messages})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"arguments": {}}, "a tool call has to be an object with a name"),
        ("weather", "a tool call has to be an object with a name"),
        ({"name": "weather", "arguments": "{"}, "the arguments of a call of 'weather' are not JSON"),
        ({"name": "weather", "arguments": "3"}, "the arguments of a call of 'weather' have to be an object"),
    ],
)
def test_a_call_that_cannot_be_read_is_told(call: Any, message: str) -> None:
    row = {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}], "tools": None}
    with pytest.raises(InputError) as raised:
        preset("tool_calling").traces(row)
    assert str(raised.value) == f"messages, message 1: {message}"
    said = {"conversations": share(("function_call", json.dumps(call))), "system": None, "tools": None}
    with pytest.raises(InputError, match=message):
        preset("tool_calling_sharegpt").traces(said)


def test_broken_calls_and_signatures_are_told() -> None:
    said = {"conversations": share(("function_call", "weather()")), "system": None, "tools": None}
    with pytest.raises(InputError, match="message 1: field 'value' is a tool call, and not JSON"):
        preset("tool_calling_sharegpt").traces(said)
    row = {"messages": say(("user", "?"), ("assistant", "!")), "tools": ["weather"]}
    with pytest.raises(InputError, match="field 'tools' has to be a list of objects, not of text"):
        preset("tool_calling").traces(row)
    deep: Any = {}
    for _ in range(800):
        deep = {"properties": deep}
    row["tools"] = [{"name": "weather", "parameters": deep}]
    with pytest.raises(InputError, match="field 'tools' is nested too deeply"):
        preset("tool_calling").traces(row)


def test_an_empty_reasoning_apart_leaves_what_the_content_says() -> None:
    said = {"role": "assistant", "content": "<think>hm</think>Hi!", "reasoning_content": ""}
    (trace,) = preset("tool_calling").traces({"messages": [{"role": "user", "content": "Hi?"}, said], "tools": None})
    assert (trace.reasoning, trace.response) == ("hm", "Hi!")
