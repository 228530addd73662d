"""Which tokens carry loss: of a question and its answer, of conversations, and where tools are called."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.config import ConversationConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.data.tokenisation import (
    CHAT_TEMPLATE,
    completion_text,
    encode,
    encode_prompts,
    encode_traces,
    prompt_text,
    train_tokenizer,
)
from falcon_h1r.types import InputError, Problem, Trace, Turn

SYSTEM = "Think first."
CHAT = (Turn("user", "1+1?"), Turn("assistant", "2", "One more than 1."), Turn("user", "And 2+2?"))
TOOLS = (
    Turn("user", "What is 17*23?"),
    Turn("assistant", '<tool_call>{"name": "calculate"}</tool_call>', "A tool is surer."),
    Turn("tool", "391"),
)
TEMPLATE_FILE = Path(__file__).resolve().parents[2] / "configs" / "model" / "chatml.jinja"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["system\nThink first.\nuser\nCompute 1+2.\nassistant\n"] * 20, vocab_size=330)


def trace(turns: tuple[Turn, ...] = (), response: str = r"It is \boxed{4}.", weight: float = 1.5) -> Trace:
    return Trace(Problem("a", "And 2+2?", "4"), "t", "Two and two.", response, weight, turns, origin="chats.jsonl:7")


def parts_with_loss(tokenizer: Any, document: Document) -> list[str]:
    """The text of each unbroken run of tokens with loss."""
    runs: list[list[int]] = []
    for place, (token, weight) in enumerate(zip(document.input_ids, document.loss_weights, strict=True)):
        if weight != 0:
            if document.loss_weights[place - 1] == 0:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def encoded(tokenizer: Any, one: Trace, system: str = SYSTEM, **rules: bool) -> Document:
    (document,) = encode_traces(tokenizer, [one], system, ConversationConfig(**rules))
    return document


def test_a_trace_without_turns_is_its_prompt_and_its_completion(tokenizer: Any) -> None:
    one = trace()
    document = encoded(tokenizer, one)
    (prompt,) = encode_prompts(tokenizer, [one.problem], SYSTEM)
    completion = tokenizer(completion_text(one), add_special_tokens=False)["input_ids"]
    assert document.input_ids == prompt + completion
    assert document.loss_weights == [0.0] * len(prompt) + [1.5] * len(completion)
    assert encoded(tokenizer, trace((Turn("user", "And 2+2?"),))) == document


def test_earlier_reasoning_is_left_out_and_the_last_turn_alone_carries_loss(tokenizer: Any) -> None:
    document = encoded(tokenizer, trace(CHAT))
    assert parts_with_loss(tokenizer, document) == [completion_text(trace())]
    assert tokenizer.decode(document.input_ids) == (
        "<|begin_of_text|><|im_start|>system\nThink first.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nAnd 2+2?<|im_end|>\n<|im_start|>assistant\n"
        r"<think>Two and two.</think>It is \boxed{4}.<|im_end|>"
    )


def test_earlier_reasoning_can_be_kept(tokenizer: Any) -> None:
    document = encoded(tokenizer, trace(CHAT), strip_earlier_thinking=False)
    assert "<think>One more than 1.</think>2<|im_end|>" in tokenizer.decode(document.input_ids)
    assert parts_with_loss(tokenizer, document) == [completion_text(trace())]


def test_where_tools_are_called_all_reasoning_stays_and_all_turns_carry_loss(tokenizer: Any) -> None:
    document = encoded(tokenizer, trace(TOOLS))
    called = '<think>A tool is surer.</think><tool_call>{"name": "calculate"}</tool_call><|im_end|>'
    assert parts_with_loss(tokenizer, document) == [called, completion_text(trace())]
    assert f"{called}\n<|im_start|>tool\n391<|im_end|>\n<|im_start|>assistant\n" in tokenizer.decode(document.input_ids)
    assert {weight for weight in document.loss_weights if weight} == {1.5}


def test_a_tool_that_is_asked_for_last_counts_as_called(tokenizer: Any) -> None:
    document = encoded(tokenizer, trace(CHAT, response="<tool_call>{}</tool_call>"))
    assert parts_with_loss(tokenizer, document) == [
        "<think>One more than 1.</think>2<|im_end|>",
        "<think>Two and two.</think><tool_call>{}</tool_call><|im_end|>",
    ]


def test_the_rule_for_tools_can_be_switched_off(tokenizer: Any) -> None:
    document = encoded(tokenizer, trace(TOOLS), tool_calls_keep_thinking=False)
    assert parts_with_loss(tokenizer, document) == [completion_text(trace())]
    assert "A tool is surer." not in tokenizer.decode(document.input_ids)


def test_a_conversation_needs_something_before_the_assistants_turn(tokenizer: Any) -> None:
    turns = CHAT[1:]
    assert "system\nThink first.<|im_end|>\n<|im_start|>assistant\n2" in tokenizer.decode(
        encoded(tokenizer, trace(turns)).input_ids
    )
    with pytest.raises(InputError, match="conversation chats.jsonl:7 begins with the assistant's turn"):
        encoded(tokenizer, trace(turns), system="")


def test_a_conversation_with_a_system_turn_keeps_its_own(tokenizer: Any) -> None:
    text = tokenizer.decode(encoded(tokenizer, trace((Turn("system", "Be brief."), *CHAT))).input_ids)
    assert text.count("<|im_start|>system\n") == 1
    assert "system\nBe brief.<|im_end|>" in text and SYSTEM not in text


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TEMPLATE_FILE.read_text()])
def test_our_templates_render_a_tool_and_keep_prefixes(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    messages = [{"role": turn.role, "content": turn.content} for turn in (*TOOLS, *CHAT)]
    rendered = [tokenizer.apply_chat_template(messages[:n], tokenize=False) for n in range(1, len(messages) + 1)]
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(rendered))
    assert "<|im_start|>tool\n391<|im_end|>\n" in rendered[2]
    tokenizer.chat_template = CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT_TEMPLATE.replace("in messages", "in messages[-1:]"), "turn 4 of conversation chats.jsonl:7 does not"),
        ("{{ raise_exception('no tools here') }}", "refuses conversation chats.jsonl:7 .no tools here"),
        (CHAT_TEMPLATE.replace("<|im_end|>", "<|end_of_text|>"), "turn 4 of conversation chats.jsonl:7 does not"),
    ],
)
def test_a_template_that_renders_otherwise_is_refused(tokenizer: Any, template: str, message: str) -> None:
    tokenizer.chat_template = template
    try:
        with pytest.raises(InputError, match=message):
            encoded(tokenizer, trace(CHAT))
    finally:
        tokenizer.chat_template = CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("response", "upto"),
    [
        (r"It is \boxed{\frac{1}{2}}, as asked.", r"\boxed{\frac{1}{2}}"),
        (r"First \boxed{1}, then \boxed{2}. ", r"\boxed{2}"),
        ("```python\nprint(4)\n```\n", "```"),
        (r"broken \boxed{1", r"\boxed{1"),
    ],
)
def test_the_answer_ends_with_its_last_box_or_with_the_response(tokenizer: Any, response: str, upto: str) -> None:
    (one,) = encode(tokenizer, [trace(response=response)], SYSTEM)
    kept = tokenizer.decode(one.input_ids[: one.answer_end])
    assert kept.endswith(upto)
    assert kept == prompt_text(tokenizer, "And 2+2?", SYSTEM) + completion_text(trace(response=response))[
        : len(kept) - len(prompt_text(tokenizer, "And 2+2?", SYSTEM))
    ]  # fmt: skip
    assert not tokenizer.decode(one.input_ids[: one.answer_end - 1]).endswith(upto)


def test_an_empty_response_has_an_answer_end_too(tokenizer: Any) -> None:
    (one,) = encode(tokenizer, [trace(response="")], SYSTEM)
    assert one.loss_spans[0][0] < one.answer_end < len(one.input_ids)
