"""Whether what two answers say beside their values excludes each other: remarks, directions, what is counted."""

from __future__ import annotations

import re
from functools import lru_cache

from falcon_h1r.verifier.reading.notation import clean_parts
from falcon_h1r.verifier.reading.remarks import Remark
from falcon_h1r.verifier.tree.node import MAX_ANSWER_CHARS

_OPPOSITES = re.compile(
    r"(?i)\b(increas(?:e|ing)|decreas(?:e|ing)|gain|loss|profit|north|south|east|west|left|right|up|down|am|pm|"
    r"clockwise|counter-?clockwise|above|below|upwards?|downwards?|inwards?|outwards?|attractive|repulsive|convex|"
    r"concave|maximum|minimum)\b|°\s*(?:\\(?:text|mathrm)\s*\{\s*)?([NSEW])\b"
)
_COUNTED = re.compile(r"(?<![\d.^_])(\d+(?:\.\d+)?) ?([a-zA-Z]{3,})")  # 3 boys and 2 girls
_NAMED = re.compile(r"\b([a-zA-Z]{3,}):? ?(\d+(?:\.\d+)?)(?![\d.])")  # max 5, min 3
_WRAPPER = re.compile(r"\\(?:text|mathrm|textbf) ?|[{}]")


@lru_cache(maxsize=1024)
def _said_beside(answer: str) -> tuple[Remark, tuple[str, ...], dict[str, str]]:
    """(remark, directions, what is counted by number) of an answer."""
    value, remark = clean_parts(answer)
    directions = tuple(match.group().lower() for match in _OPPOSITES.finditer(value))
    if " of " not in value:  # north of east is not east of north
        directions = tuple(sorted(directions))
    words = " ".join(_WRAPPER.sub(" ", value).split()) if "\\text" in value or "\\mathrm" in value else ""
    counts = {match.group(2): match.group(1) for match in _COUNTED.finditer(words)}
    return remark, directions, counts or {match.group(1): match.group(2) for match in _NAMED.finditer(words)}


def contradict(answer: str, gold: str) -> bool:
    """Whether remarks, directions or assigned counts exclude each other, so that equal values would not be equal
    answers.
    """
    if max(len(answer), len(gold)) > MAX_ANSWER_CHARS:
        return False
    (remark, directions, counts), (gold_remark, gold_directions, gold_counts) = _said_beside(answer), _said_beside(gold)
    if remark.contradicts(gold_remark) or (directions and gold_directions and directions != gold_directions):
        return True
    return len(counts) > 1 and counts.keys() == gold_counts.keys() and counts != gold_counts
