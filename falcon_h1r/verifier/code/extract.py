"""Which part of a response is the program: the last closed fence, and nothing else."""

from __future__ import annotations

import re

from falcon_h1r.verifier.extract import answering_part

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = ("python", "python3", "py")


def extract_program(text: str, after_think: bool = False) -> str | None:
    """The last closed block fenced as ```python; without one, the last closed block of any language.

    A block that is never closed (a response that was cut off) does not count. With `after_think` only what
    follows the last `</think>` counts, and a response that never stopped thinking has no program.
    """
    answer = answering_part(text, after_think)
    if answer is None:
        return None
    blocks = fenced_blocks(answer)
    python = [program for language, program in blocks if language in _PYTHON]
    if python:
        return python[-1]
    return blocks[-1][1] if blocks else None


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every closed block, in order: one pass."""
    found: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None or match.group(2):  # a fence that names a language opens, whatever was left open before
            opened = match
        elif match.group(1).startswith(opened.group(1)):  # as long at least as the one it closes
            found.append((opened.group(2).lower(), text[opened.end() + 1 : match.start()]))
            opened = None
    return found
