"""Which part of a response is the answer: the last balanced box, and nothing else."""

from __future__ import annotations

import re

from falcon_h1r.types import THINK_END

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are printed braces, they do not group
_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
_BARE = re.compile(r"\\f?box(?:ed)?[ \t]+(-?[A-Za-z0-9][\w.,/]*)")


def _closed_groups(text: str, start: int) -> dict[int, int]:
    """Where each group from `start` on that closes does so: one pass, however many boxes there are."""
    open_groups: list[int] = []
    closes: dict[int, int] = {}
    for match in _BRACE.finditer(text, start):
        if match.group() == "{":
            open_groups.append(match.start())
        elif match.group() == "}" and open_groups:
            closes[open_groups.pop()] = match.start()
    return closes


def extract_boxed(text: str, after_think: bool = False) -> str | None:
    r"""Content of the last balanced `\boxed{}` or `\fbox{}`; of a box in a box, the inner one.

    A box without braces (`\boxed 5`) counts like TeX reads it, up to the next space. With `after_think` only
    what follows the last `</think>` counts, and a response that never stopped thinking has no answer.
    """
    if after_think:
        _, end, text = text.rpartition(THINK_END)
        if not end:
            return None
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    closes = _closed_groups(text, boxes[0].start())
    for match in reversed(boxes):
        if text[match.end() : match.end() + 1] == "{":
            if match.end() in closes:
                return text[match.end() + 1 : closes[match.end()]].strip()
        elif bare := _BARE.match(text, match.start()):
            return bare.group(1).rstrip(".,")
    return None


def unwrap_boxes(answer: str) -> str:
    r"""The answer without a box around it: golds sometimes carry their own `\boxed{}`."""
    stripped = answer.strip()
    for _ in range(4):
        match = _BOX.match(stripped)
        if not match or stripped[match.end() : match.end() + 1] != "{":
            break
        if _closed_groups(stripped, 0).get(match.end()) != len(stripped) - 1:
            break
        stripped = stripped[match.end() + 1 : -1].strip()
    return stripped
