"""What speaks against a trace that shows without verifying it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.config_data import TraceFiltersConfig
from falcon_h1r.data.filters import REASONS, Fault, find_excess, find_fault
from falcon_h1r.data.programs import MAX_CHARACTERS, find_syntax_error, program_language
from falcon_h1r.data.scripts import KNOWN, count_scripts, script_of
from falcon_h1r.data.tool_calls import find_unreliable_call
from falcon_h1r.types import InputError, Problem, Trace, Turn

STRICT = TraceFiltersConfig(
    require_compiling_code=True, require_reliable_tools=True, scripts=["latin"], max_prompt_tokens=50
)
MATH = Problem("u", "1+1?", "2")
CODE = Problem("u", "Print 1.", "1", domain="code")
TESTED = Problem("u", "Print 1.", "", domain="code", tests='{"inputs": [""], "outputs": ["1"]}')
CHAT = Problem("u", "Hello", "", domain="other", verifiable=False)
PROOF = Problem("u", "Prove it.", "", verifiable=False)


def trace(response: str = r"\boxed{2}", problem: Problem = MATH, reasoning: str = "think", **rest: Any) -> Trace:
    return Trace(problem, "a", reasoning, response, **rest)


def reason_of(trace: Trace, config: TraceFiltersConfig = STRICT) -> str | None:
    fault = find_fault(trace, config, len)
    assert fault is None or fault.reason in REASONS
    return fault.reason if fault else None


# -----------------------------------------------------------------------------
# Completeness


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (trace(), None),
        (trace(reasoning=" \n"), "empty_reasoning"),
        (trace(response=""), "empty_answer"),
        (trace(response=r"\boxed{ }"), "empty_answer"),
        (trace(problem=Problem("u", "1+1?", "")), "empty_answer"),
        (trace(response="It is 2."), "no_box"),
        (trace(response=r"\boxed{2"), "no_box"),
        (trace("It is C.", Problem("u", "Which?", "C", domain="science")), None),
        (trace("Hello.", CHAT), None),
        (trace(" ", CHAT), "empty_answer"),
        (trace("Let x be given.", PROOF), None),
        (trace("no fence", TESTED), "no_program"),
        (trace("```python\nprint(1)\n", TESTED), "no_program"),
        (trace("```python\nprint(1)\n```", TESTED), None),
        (trace("A decorator wraps a function.", CODE), None),
    ],
)
def test_a_trace_has_reasoning_an_answer_and_the_place_to_find_it(one: Trace, reason: str | None) -> None:
    assert reason_of(one) == reason


def test_what_is_not_required_may_be_missing() -> None:
    config = TraceFiltersConfig(require_reasoning=False, require_boxed=False)
    assert find_fault(trace("2", reasoning=""), config) is None
    assert find_fault(trace("```\nint main( {\n```", TESTED), config) is None


# -----------------------------------------------------------------------------
# Programs

CPP = "#include <iostream>\nusing namespace std;\nint main() { cout << 1; }"


@pytest.mark.parametrize(
    ("response", "language", "reason"),
    [
        ("```python\nprint(1)\n```", None, None),
        ("```\nprint(1)\n```", None, None),
        ("```output\n1\n```\n```py\nprint(1)\n```", "Python 3", None),
        ("```python\nprint(1\n```", None, "code_syntax"),
        ("```\nprint 1\n```", None, "code_syntax"),
        ("```python\nprint(1)\n```\nbut\n```python\nprint(\n```", None, "code_syntax"),
        (f"```cpp\n{CPP}\n```", None, "wrong_language"),
        (f"```\n{CPP}\n```", None, "wrong_language"),
        (f"```python\n{CPP}\n```", None, "wrong_language"),
        ("```\npublic class A {\n  public static void main(String[] a) {}\n}\n```", None, "wrong_language"),
        ("```\n#include <stdio.h>\nx = 1\n```", None, None),
        ("```python\n'''\nconst x = 1;\n'''\n```", None, None),
        (f"```c++\n{CPP}\n```", "cpp", None),
        (f"```\n{CPP}\n```", "C++17 (GCC 9.2.1)", None),
        ("```c\nint main(void) {}\n```", "cpp", None),
        ("```python\nprint(1)\n```", "cpp", "wrong_language"),
        ("```\ndef f(x):\n    return x\n```", "java", "wrong_language"),
        ("```java\nclass A {\n```", "java", None),
    ],
)
def test_a_program_parses_and_is_in_the_language_asked_for(
    response: str, language: str | None, reason: str | None
) -> None:
    for tests in (None, TESTED.tests):
        problem = Problem("u", "Print 1.", "1", domain="code", tests=tests, language=language)
        assert reason_of(trace(response, problem)) == reason


def test_the_fault_says_what_is_wrong_with_the_program() -> None:
    assert find_fault(trace("```python\nx = 1\ny = (\n```", TESTED), STRICT) == Fault(
        "code_syntax", "line 2: '(' was never closed"
    )
    assert find_fault(trace(f"```cpp\n{CPP}\n```", TESTED), STRICT) == Fault(
        "wrong_language", "cpp, and python was asked for"
    )


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 50_000,
        "-" * 90_000 + "1",
        "1+" * 40_000 + "1",
        "a" + ".b" * 40_000,
        "x if y else " * 8_000 + "z",
        "".join(" " * depth + "if a:\n" for depth in range(200)),
        "1" * 10_000,
        "a = '\0'",
        "a = '\ud800'",
        "a" * (MAX_CHARACTERS + 1),
    ],
)
def test_text_that_would_break_a_parser_is_a_fault_like_any_other(hostile: str) -> None:
    assert find_syntax_error(hostile)
    assert program_language(f"```\n{hostile}\n```", f"{hostile}\n") in (None, "python")


@pytest.mark.parametrize(
    "piece",
    ["\n", " ", "def f(", "def f()->", "if :", "let x = ", "fn f(", "#include ", r"\(", "$", "<tool_call>", "é$$"],
)
def test_time_is_linear_in_text_that_never_closes(piece: str) -> None:
    text = piece * (90_000 // len(piece))  # a regular expression that tried every pair of places would take minutes
    config = TraceFiltersConfig(require_compiling_code=True, require_reliable_tools=True, scripts=["cyrillic"])
    turns = (Turn("assistant", call()), Turn("tool", text))
    for one in (trace(f"```\n{text}\n```", CODE), trace(f"é{text}", CHAT), trace("Hi", CHAT, turns=turns)):
        fault = find_fault(one, config)
        assert fault is None or fault.reason in REASONS


def test_nothing_is_run() -> None:
    assert find_syntax_error("raise SystemExit(9**9**9)") is None


# -----------------------------------------------------------------------------
# Scripts

CHINESE, RUSSIAN = "我们需要计算这个数的平方根是多少", "Найдите сумму всех чисел"


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("naïve Été", {"latin": 8}),
        (CHINESE, {"han": 16}),
        (f"{RUSSIAN} x", {"cyrillic": 21, "latin": 1}),
        ("さくらサクラ桜", {"hiragana": 3, "katakana": 3, "han": 1}),
        ("the angle α and β, 5 µm, 20 ℃, 𝑥²", {"latin": 12}),
        ("λόγος", {"greek": 5}),
        (r"$\text{сумма}$ is \alpha", {"latin": 2}),
        ("```\nпривет\n```\nis", {"latin": 2}),
        ("ＡＢＣ 한국어", {"latin": 3, "hangul": 3}),
    ],
)
def test_letters_are_counted_by_script_without_code_and_formulas(text: str, counts: dict[str, int]) -> None:
    assert dict(count_scripts(text)) == counts


def test_every_part_has_to_be_in_the_scripts_asked_for() -> None:
    assert find_fault(trace(reasoning=CHINESE), STRICT) == Fault(
        "wrong_script", "reasoning: 100% of its letters are han"
    )
    question = Problem("u", RUSSIAN, "2")
    assert reason_of(trace(problem=question)) == "wrong_script"
    assert reason_of(trace(problem=question), TraceFiltersConfig(scripts=["latin", "cyrillic"])) is None
    assert reason_of(trace(problem=question), TraceFiltersConfig()) is None
    assert reason_of(trace(rf"{CHINESE} \boxed{{2}}", reasoning="long English reasoning " * 50)) == "wrong_script"
    earlier = (Turn("system", CHINESE), Turn("user", "1+1?"), Turn("assistant", CHINESE), Turn("user", "In English?"))
    assert find_fault(trace(turns=earlier), STRICT) == Fault("wrong_script", "turn 3: 100% of its letters are han")


def test_a_quoted_word_is_no_other_script() -> None:
    assert reason_of(trace(reasoning="The word 你好 means hello; 谢谢 means thanks.")) is None
    assert reason_of(trace(reasoning="English words. " * 30 + CHINESE)) is None


def test_a_script_that_is_not_known_is_a_mistake() -> None:
    with pytest.raises(InputError, match="curate.filters.scripts: klingon is none of arabic, "):
        find_fault(trace(), TraceFiltersConfig(scripts=["latin", "klingon"]))


@given(st.characters(categories=["Lu", "Ll", "Lo"], max_codepoint=0xFFFF))
def test_scripts_are_one_word_of_small_letters(letter: str) -> None:
    script = script_of(letter)
    assert script is None or script in KNOWN or script == script.lower().strip() != ""


# -----------------------------------------------------------------------------
# Tools

SIGNATURES = '<tools>\n{"type": "function", "function": {"name": "weather"}}\n{"name": "add"}\n</tools>'
SYSTEM = Turn("system", f"Signatures stand within <tools></tools> tags: {SIGNATURES}")
USER = Turn("user", "How warm is it in Rome?")


def call(name: str = "weather", arguments: Any = None) -> str:
    body = json.dumps({"name": name, "arguments": {"city": "Rome"} if arguments is None else arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


def chat(output: str, called: str = call(), system: Turn = SYSTEM, response: str = "21 degrees.") -> Trace:
    turns = (system, USER, Turn("assistant", f"I look.\n{called}"), Turn("tool", output))
    return trace(response, CHAT, turns=turns)


@pytest.mark.parametrize(
    "good",
    [
        chat('{"celsius": 21}'),
        chat("[]"),
        chat("21", response=call()),
        chat('{"error": null, "celsius": 21}'),
        chat('{"mean": 3.1, "error": 0.05}'),
        chat("It is 21 degrees. Errors in measurement are possible."),
        chat("A page on HTTP: the status 404 Not Found means that there is none."),
        chat("Timeout settings of the server: 30 seconds"),
        chat("<tool_response>\n21\n</tool_response>\n<tool_response>\n22\n</tool_response>", call() + call("add")),
        chat('[{"celsius": 21}, 3]', call() + call("add")),
        chat("21", call(arguments='{"city": "Rome"}')),
        chat("21", call("any"), system=Turn("system", "Be kind.")),
        chat("21", system=Turn("system", '<tools>[{"function": {"name": "weather"}}]</tools>')),
        trace("Hello.", CHAT, turns=(USER, Turn("assistant", "Hi"), USER)),
    ],
)
def test_good_calls_pass(good: Trace) -> None:
    assert find_unreliable_call(good) is None


def test_an_output_may_be_nested_as_deeply_as_it_likes() -> None:
    assert find_unreliable_call(chat('{"content":' * 900 + "{}" + "}" * 900)) is None


@pytest.mark.parametrize(
    "output",
    [
        "Traceback (most recent call last):\n  File ...\nKeyError: 1",
        "stdout: 1\nTraceback (most recent call last):\n  File",
        "Error: city not found",
        "requests.exceptions.ConnectionError: refused",
        "An error occurred while searching",
        "HTTP 503",
        "HTTP Error 404: Not Found",
        "404 Not Found",
        "Status code: 500",
        "The request timed out",
        "Timeout exceeded",
        "Rate limit exceeded, try later",
        "Failed to fetch the page",
        '{"error": "no such city"}',
        '{"status": "error", "message": "x"}',
        '{"status_code": 429}',
        '{"success": false}',
        '{"name": "weather", "content": {"error": "x"}}',
        '"Error: quoted"',
        "<tool_response>\nError: x\n</tool_response>",
    ],
)
def test_an_output_that_is_an_error_is_unreliable(output: str) -> None:
    fault = find_fault(chat(output), STRICT)
    assert fault is not None and fault.reason == "unreliable_tool"
    assert fault.detail.startswith("turn 4: an error: ")
    assert find_fault(chat(output), TraceFiltersConfig()) is None


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (chat(""), "turn 4: an empty output"),
        (chat("null"), "turn 4: an empty output"),
        (chat("<tool_response>\n</tool_response>"), "turn 4: an empty output"),
        (chat("21", "<tool_call>\n{'name': 'weather'}\n</tool_call>"), "turn 3: a call that is no JSON with a name: "),
        (chat("21", '<tool_call>\n{"arguments": {}}\n</tool_call>'), "turn 3: a call that is no JSON with a name: "),
        (chat("21", '<tool_call>\n{"name": "weather"'), "turn 3: a call that does not close"),
        (chat("21", "</tool_call><tool_call>"), "turn 3: a call that does not close"),
        (chat("21", call(arguments=[1])), "turn 3: a call whose arguments are no JSON object: "),
        (chat("21", call("rain")), "turn 3: a call of 'rain', which is no tool"),
        (chat("21", system=Turn("system", "<tools>weather</tools>")), "turn 1: signatures that cannot be read"),
        (chat("21", ""), "turn 4: an output without a call"),
        (chat("<tool_response>1</tool_response><tool_response>2</tool_response>"), "turn 4: an output without a call"),
        (chat("21", call() + call()), "turn 5: a call without an output before it"),
        (
            trace("Hi.", CHAT, turns=(USER, Turn("assistant", call()), USER)),
            "turn 3: a call without an output before it",
        ),
        (trace("Hi.", CHAT, turns=(USER, Turn("tool", "21"))), "turn 2: an output without a call"),
        (chat("21", "<tool_call>" + "[" * 100_000 + "</tool_call>"), "turn 3: a call that is no JSON with a name: "),
    ],
)
def test_broken_calls_are_unreliable(bad: Trace, detail: str) -> None:
    fault = find_fault(bad, STRICT)
    assert fault is not None and fault.reason == "unreliable_tool"
    assert fault.detail.startswith(detail)


# -----------------------------------------------------------------------------
# Lengths


def test_prompt_and_response_have_limits_of_their_own() -> None:
    config = TraceFiltersConfig(max_prompt_tokens=4, max_response_tokens=14)
    assert find_fault(trace(), config, len) is None  # 1+1? and think\boxed{2}
    long = trace(problem=Problem("u", "1+10?", "2"))
    assert find_fault(long, config, len) == Fault("too_long_prompt", "5 tokens, and 4 are allowed")
    assert find_fault(trace(reasoning="thinks"), config, len) == Fault(
        "too_long_response", "15 tokens, and 14 are allowed"
    )
    assert find_fault(long, config) is None
    assert find_excess(4, 14, config) is None
    assert find_excess(4, 15, config) == Fault("too_long_response", "15 tokens, and 14 are allowed")


def test_the_prompt_of_a_conversation_is_all_of_its_turns() -> None:
    turns = (Turn("user", "abc"), Turn("assistant", "de", reasoning="f"), Turn("user", "1+1?"))
    fault = find_fault(trace(turns=turns), TraceFiltersConfig(max_prompt_tokens=9), len)
    assert fault == Fault("too_long_prompt", "10 tokens, and 9 are allowed")


def test_tokens_are_counted_last_and_only_where_there_is_a_limit() -> None:
    def count(text: str) -> int:
        raise AssertionError("counted")

    assert find_fault(trace(), TraceFiltersConfig(), count) is None
    assert find_fault(trace(""), TraceFiltersConfig(max_response_tokens=1), count) == Fault("empty_answer")


@given(st.text(), st.text(), st.text(), st.sampled_from([MATH, CODE, TESTED, CHAT]))
def test_no_text_raises(question: str, reasoning: str, response: str, problem: Problem) -> None:
    turns = (Turn("user", question), Turn("assistant", f"<tool_call>{reasoning}</tool_call>"), Turn("tool", response))
    for one in (trace(response, problem, reasoning), trace(f"```\n{response}\n```", problem, reasoning, turns=turns)):
        fault = find_fault(one, STRICT, len)
        assert fault is None or fault.reason in REASONS
