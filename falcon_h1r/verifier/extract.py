r"""Which part of a response is the answer: the last balanced box, and nothing else.

Where a response has no box, fall-backs may be asked for, in the order given (none by default: a reward should teach
the box):

answer    what follows the last "answer is", "answer:" or "answer =", up to the end of the sentence or line
hash      what follows the last "####", as GSM8K writes
math      the last $...$, $$...$$, \(...\) or \[...\]
number    the last number
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from falcon_h1r.types import THINK_END

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are printed braces, they do not group
_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s*")
_BARE = re.compile(r"\\f?box(?:ed)?[ \t]+(-?[A-Za-z0-9][\w.,/]*)")
_AROUND = re.compile(r"^(?:\$|\\[(\[]|\\displaystyle\b|\s)+(?=\\f?box)|(?<=\})(?:\$|\\[)\]]|[.\s])+$")
_MAX_FALLBACK_CHARS = 4_000  # an answer stands at the end
FALLBACKS = {
    "answer": re.compile(r"(?i)\banswer\b[*_]{0,2}(?:\s+is|\s*[:=])[*_:]{0,3}\s*([^\n]+?)(?=\.(?:\s|$)|\n|$)"),
    "hash": re.compile(r"####[ \t]*([^\n]+)"),
    "math": re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\]", re.DOTALL),
    "number": re.compile(r"(?<![\w.])(-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?%?)(?![\w])"),
}


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


def answering_part(text: str, after_think: bool) -> str | None:
    """The part of a response that may hold the answer; None if it never stopped thinking."""
    if not after_think:
        return text
    _, end, answer = text.rpartition(THINK_END)
    return answer if end else None


def extract_boxed(text: str, after_think: bool = False) -> str | None:
    r"""Content of the last balanced `\boxed{}` or `\fbox{}`; of a box in a box, the inner one.

    A box without braces (`\boxed 5`) counts like TeX reads it, up to the next space. With `after_think` only
    what follows the last `</think>` counts, and a response that never stopped thinking has no answer.
    """
    answer = answering_part(text, after_think)
    return None if answer is None else next((content for _, content in _boxes(answer)), None)


def _boxes(text: str) -> Iterator[tuple[int, str]]:
    """(position, content) of every box that closes, from the last to the first."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return
    closes = _closed_groups(text, boxes[0].start())
    for match in reversed(boxes):
        if text[match.end() : match.end() + 1] == "{":
            if match.end() in closes:
                yield match.end(), text[match.end() + 1 : closes[match.end()]].strip()
        elif bare := _BARE.match(text, match.start()):
            yield match.end(), bare.group(1).rstrip(".,")


def count_boxed(text: str, after_think: bool = False) -> int:
    r"""How many boxes that close the response holds, a box in a box once: more than one is for the reward to judge."""
    answer = answering_part(text, after_think)
    if answer is None:
        return 0
    count, start = 0, len(answer)
    for position, content in _boxes(answer):
        count += position + len(content) <= start  # or else it holds the box behind it
        start = position
    return count


def extract_answer(text: str, after_think: bool = False, fallbacks: Sequence[str] = ()) -> str | None:
    """The boxed answer; without a box, what the first of these fall-backs finds.

    Raises:
        ValueError: for a fall-back that there is not; `FALLBACKS` are.
    """
    if unknown := [name for name in fallbacks if name not in FALLBACKS]:
        raise ValueError(f"unknown fall-back {unknown[0]!r}: there are {', '.join(FALLBACKS)}")
    boxed = extract_boxed(text, after_think)
    if boxed is not None or not fallbacks:
        return boxed
    answer = answering_part(text, after_think)
    if answer is None:
        return None
    ending = answer[-_MAX_FALLBACK_CHARS:]
    for name in fallbacks:
        matches = [match for match in FALLBACKS[name].finditer(ending) if any(match.groups())]
        if matches:
            found = next(group for group in matches[-1].groups() if group)
            return found.strip().strip("*").rstrip(". ")
    return None


def unwrap_boxes(answer: str) -> str:
    r"""The answer without a box around it: golds sometimes carry their own `\boxed{}`."""
    stripped = _AROUND.sub("", answer.strip())
    for _ in range(4):
        match = _BOX.match(stripped)
        if not match or stripped[match.end() : match.end() + 1] != "{":
            break
        if _closed_groups(stripped, 0).get(match.end()) != len(stripped) - 1:
            break
        stripped = stripped[match.end() + 1 : -1].strip()
    return stripped
