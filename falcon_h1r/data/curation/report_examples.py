"""Rows on the report page of a curation: those that were dropped, by reason, and those whose verdict is contested."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from typing import Any

from falcon_h1r.page import format_share

CONTAMINATED, DUPLICATE = "contaminated", "duplicate"
LONGEST_TEXT = 1_000  # characters; most were cut when they were written
SHORTEST_MATCH = 12  # characters that an evaluation problem and a row have to share before they are marked

MEANINGS = {
    "other_teacher": "Written by a teacher who was not chosen.",
    "empty_reasoning": "No reasoning before the answer.",
    "empty_answer": "No answer after the reasoning.",
    "no_box": "No final \\boxed{} to read an answer from.",
    "no_program": "No program where one was asked for.",
    "code_syntax": "A program with an error in its syntax.",
    "wrong_language": "A program in another language than was asked for.",
    "wrong_script": "Text in another script than those asked for.",
    "unreliable_tool": "Tool calls whose outputs cannot be trusted.",
    "too_long_prompt": "The prompt has more tokens than are allowed.",
    "too_long_response": "Reasoning and response have more tokens than are allowed.",
    CONTAMINATED: "Holds a problem that evaluation asks.",
    "unverifiable_gold": "The verifier cannot read the gold answer, so nothing could be judged by it.",
    "unproved": "Nothing to judge the answer by.",
    "undecided": "The verifier came to no verdict.",
    "wrong": "The answer is not the gold answer.",
    "second_check": "Right by the verifier, wrong by the second check.",
    "no_weight": "Its difficulty has a loss weight of 0.",
    DUPLICATE: "Nearly the same as a row that was kept.",
    "enough_of_problem": "The problem has as many earlier traces as are kept of one.",
    "enough_of_domain": "Its domain already has its share of the mix.",
    "unreadable": "The row could not be read.",
}
DETAIL_LABELS = {CONTAMINATED: "Found in an evaluation", DUPLICATE: "Duplicate"}
TEXTS = ("question", "gold", "reasoning", "response", "raw")

# What a page cannot hold (controls, halves of surrogate pairs) or what would rearrange it (marks of direction).
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

Segments = list[tuple[str, bool]]  # stretches of a text, and whether each is marked


def visible(text: str) -> str:
    """A text with its invisible characters written out."""
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text.replace("\r\n", "\n"))


def reason_rows(
    dropped_by_reason: Mapping[str, int], examples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Each reason with its count, its share of all dropped rows, and its examples; the most frequent first."""
    total, largest = sum(dropped_by_reason.values()), max(dropped_by_reason.values(), default=0)
    return [
        {
            "name": reason.replace("_", " "),
            "meaning": MEANINGS.get(reason, ""),
            "count": count,
            "share": format_share(count, total),
            "width": count / largest,
            "examples": [_example(reason, row) for row in examples.get(reason, ())],
        }
        for reason, count in sorted(dropped_by_reason.items(), key=lambda item: (-item[1], item[0]))
        if count
    ]


def disagreement_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that the verifier and their source judge differently, with the texts to see who is right."""
    return [
        {
            "origin": _text(row.get("origin")),
            "teacher": _text(row.get("teacher")),
            "verdict": _text(row.get("verdict")),
            "given": "right" if row.get("given") else "wrong",
            "gold": _text(row.get("gold")),
            "texts": _texts(row, ("question", "response")),
        }
        for row in rows
    ]


def _example(reason: str, row: Mapping[str, Any]) -> dict[str, Any]:
    detail, texts, stretch = row.get("detail") or "", _texts(row, TEXTS), ""
    fields = [("", _text(detail))] if detail else []
    if reason == CONTAMINATED:
        fields = _match_fields(_text(detail))
        stretch = _longest_shared(fields[-1][1], [text for _, segments in texts for text, _ in segments])
        texts = [(name, _marked(segments[0][0], stretch)) for name, segments in texts]
    return {
        "origin": _text(row.get("origin")),
        "teacher": _text(row.get("teacher")),
        "detail_label": DETAIL_LABELS.get(reason, "Detail"),
        "details": [(name, _marked(text, stretch)) for name, text in fields],
        "texts": texts,
    }


def _texts(row: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, Segments]]:
    return [(name, [(_text(row[name]), False)]) for name in names if name in row]


def _match_fields(detail: str) -> list[tuple[str, str]]:
    """`math500 17: 97% of it, 'Let $x$ be ...'` by its parts, the matched text last and without its escapes."""
    parts = re.fullmatch(r"(.*?): (\d+%) of it, (.*)", detail, re.DOTALL)
    if parts is None:
        return [("", detail)]
    problem, overlap, text = parts.groups()
    with suppress(ValueError, SyntaxError):  # cut off
        text = visible(str(ast.literal_eval(text)))
    return [("Evaluation problem", problem), ("Share of it found", overlap), ("Text found", text)]


def _longest_shared(detail: str, texts: Sequence[str]) -> str:
    """The longest stretch of a row's texts that the detail holds, too: what was found in an evaluation."""
    longest = ""
    for text in texts:
        match = SequenceMatcher(None, detail, text, autojunk=False).find_longest_match()
        if match.size > len(longest):
            longest = detail[match.a : match.a + match.size].strip()
    return longest if len(longest) >= SHORTEST_MATCH else ""


def _marked(text: str, stretch: str) -> Segments:
    before, found, after = text.partition(stretch) if stretch else (text, "", "")
    return [(part, marked) for part, marked in ((before, False), (found, True), (after, False)) if part] or [
        ("", False)
    ]


def _text(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
