r"""Multiple choice: the letter that a response settles on, after its thinking.

Looked for in this order, the last of each kind: a box (\boxed{C}, \boxed{\text{(C) 12}}, or the text of one of the
choices); "Answer: C", "the answer is (C)"; a letter in brackets, (C); a response that is nothing but a letter. A box
that holds none of the choices is the answer all the same, and wrong.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from falcon_h1r.evaluation.tasks import Judged
from falcon_h1r.types import Problem, Verdict
from falcon_h1r.verifier.extract import answering_part, extract_boxed

_CHOICE_LINE = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])[.)])[ \t]+(\S.*)$", re.MULTILINE)
_STATED = re.compile(r"answer(?:[ \t]+is)?[ \t]*:?[ \t]*[*_$]{0,3}[ \t]*(?:\(([A-Z])\)|([A-Z])\b)", re.IGNORECASE)
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|rm|bf)\b")
_LETTER = re.compile(r"\(([A-Z])\)|([A-Z])(?:[.):,]|$)")
_LETTER_ALONE = re.compile(r"[\s*_$(]*([A-Z])[\s*_$).:]*")


class ChoiceScorer:
    """The letter of the right choice is the gold; it is also what votes are counted by."""

    def judge(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[Judged]:
        return [_judged(response, problem) for response, problem in zip(responses, problems, strict=True)]

    def close(self) -> None:
        pass


def _judged(response: str, problem: Problem) -> Judged:
    choices = choices_in(problem.question)
    gold = _as_letter(problem.answer, choices)
    if gold is None:
        reason = f"the gold {problem.answer[:40]!r} is no letter of a choice"
        return Judged(Verdict("unverifiable_gold", "choice", reason), None, None)
    found, shown = chosen_letter(response, choices)
    if found is None:
        reason = "no choice in the response" if shown is None else f"{shown[:40]!r} is none of the choices"
        return Judged(Verdict("wrong", "extract", reason), shown, None)
    if found == gold:
        return Judged(Verdict("correct", "choice", f"{found} is right"), found, found)
    return Judged(Verdict("wrong", "choice", f"{found}, not {gold}"), found, found)


def choices_in(question: str) -> dict[str, str]:
    """Text by letter of the last list of choices in a question, A first; empty where there is none."""
    found: dict[str, str] = {}
    for match in _CHOICE_LINE.finditer(question):
        letter = match[1] or match[2]
        if letter == "A":
            found = {}
        if letter == string.ascii_uppercase[len(found) % 26]:
            found[letter] = match[3].strip()
    return found if len(found) > 1 else {}


def chosen_letter(response: str, choices: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(letter, the answer as it stands in the response); None for what there is not.

    Args:
        choices: by letter; empty: any letter counts.
    """
    answer = answering_part(response, after_think=True)
    if answer is None:
        return None, None
    boxed = extract_boxed(answer)
    if boxed is not None:
        return _as_letter(boxed, choices), boxed
    for pattern in (_STATED, _IN_BRACKETS):
        letters = [next(filter(None, found.groups())) for found in pattern.finditer(answer)]
        letters = [letter for letter in letters if letter.isupper() and letter in (choices or string.ascii_uppercase)]
        if letters:
            return letters[-1], letters[-1]
    alone = _LETTER_ALONE.fullmatch(answer.strip())
    if alone and alone[1] in (choices or string.ascii_uppercase):
        return alone[1], alone[1]
    return None, None


def _as_letter(text: str, choices: Mapping[str, str]) -> str | None:
    """The letter that an answer names, by itself, in front of its text, or by the text of one choice alone."""
    bare = _COMMAND.sub("", text).replace("{", "").replace("}", "").strip(" \t\n$*.")
    by_text = [letter for letter, choice in choices.items() if choice.casefold() == bare.casefold()]
    if len(by_text) == 1:
        return by_text[0]
    found = _LETTER.match(bare if len(bare) > 3 else bare.upper())
    letter = next(filter(None, found.groups())) if found else None
    return letter if letter in (choices or set(string.ascii_uppercase)) else None
