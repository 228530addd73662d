"""Which part of a response is the program."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_h1r.verifier.code import extract_program

BLOCK = "```python\nprint(1)\n```"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (BLOCK, "print(1)\n"),
        (f"First {BLOCK.replace('1', '0')}\nbut better\n{BLOCK}\ndone.", None),
        (f"text\n{BLOCK}\ntext", "print(1)\n"),
        (f"{BLOCK}\nIt prints:\n```\n1\n```\n", "print(1)\n"),  # python before the last of any language
        (f"{BLOCK}\n```text\n1\n```\n", "print(1)\n"),
        ("```\nprint(2)\n```", "print(2)\n"),
        ("```cpp\nint x;\n```\n```\nprint(2)\n```", "print(2)\n"),
        ("```Python3\nprint(3)\n```", "print(3)\n"),
        ("```py\nprint(3)\n```", "print(3)\n"),
        ("~~~python\nprint(3)\n~~~", "print(3)\n"),
        ("````python\nprint('```')\n````", "print('```')\n"),
        ("```python\nbroken\n```python\nprint(4)\n```", "print(4)\n"),
        ("```python\r\nprint(5)\r\n```\r\n", "print(5)\r\n"),
        ("```python\n```", ""),
    ],
)
def test_the_last_closed_python_block_is_the_program(text: str, program: str | None) -> None:
    assert extract_program(text) == (program if program is not None else "print(1)\n")


@pytest.mark.parametrize("text", ["", "print(1)", "```python\nprint(1)", "`print(1)`", "```python print(1)```"])
def test_nothing_else_is(text: str) -> None:
    assert extract_program(text) is None


def test_only_what_follows_the_thinking_counts_on_request() -> None:
    thought = f"<think>\n{BLOCK}\n</think> I do not know."
    assert extract_program(thought) == "print(1)\n"
    assert extract_program(thought, after_think=True) is None
    assert extract_program(BLOCK, after_think=True) is None
    assert extract_program(f"<think>hm</think>\n{BLOCK}", after_think=True) == "print(1)\n"


@given(st.text(alphabet="`~ \npython</think>x"))
def test_no_text_raises(text: str) -> None:
    for after_think in (False, True):
        assert isinstance(extract_program(text, after_think), (str, type(None)))


def test_many_fences_take_one_pass() -> None:
    assert extract_program("```python\n" * 200_000) is None
