"""Instructions that a rule decides: those of IFEval and IFBench, read from a problem's row and judged.

A problem counts as right where every one of its instructions is followed by the response as it stands: "prompt-level
strict" in IFEval's words. One that no rule here decides leaves the problem undecided, unless another is broken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from falcon_h1r.evaluation.instructions_ifbench import RULES as IFBENCH_RULES
from falcon_h1r.evaluation.instructions_ifeval import RULES as IFEVAL_RULES
from falcon_h1r.evaluation.instructions_text import Rule
from falcon_h1r.types import InputError, Problem

RULES: dict[str, Rule] = {**IFEVAL_RULES, **IFBENCH_RULES}
ID_FIELD, ARGUMENTS_FIELD = "instruction_id_list", "kwargs"  # of a problem's row, under `tests`


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of a problem's."""

    name: str  # "keywords:existence"
    given: Mapping[str, Any]

    @property
    def is_decidable(self) -> bool:
        rule = RULES.get(self.name)
        return rule is not None and all(name in self.given for name in rule.needs)

    def is_followed(self, response: str) -> bool | None:
        """None where no rule decides it: there is none, or its arguments are not what it takes."""
        if not self.is_decidable:
            return None
        try:
            return bool(RULES[self.name].follows(response, self.given))
        except (TypeError, ValueError, AttributeError):  # arguments of another type
            return None


def instructions_of(problem: Problem) -> list[Instruction]:
    """What a problem asks for.

    Raises:
        InputError: where its row says none.
    """
    try:
        row = json.loads(problem.tests or "")
        names, arguments = row[ID_FIELD], row.get(ARGUMENTS_FIELD) or [{}] * len(row[ID_FIELD])
        pairs = list(zip(names, arguments, strict=True))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"problem {problem.uid}: no instructions; tests_fields=[{ID_FIELD}, {ARGUMENTS_FIELD}] reads them"
        ) from None
    return [
        Instruction(name, {key: value for key, value in (given or {}).items() if value is not None})
        for name, given in pairs
    ]


def describe_undecidable(problems: Iterable[Problem]) -> str | None:
    """One line about the instructions that no rule decides, or None."""
    counts: Counter[str] = Counter()
    affected = total = 0
    for problem in problems:
        undecidable = {each.name for each in instructions_of(problem) if not each.is_decidable}
        counts.update(undecidable)
        affected += bool(undecidable)
        total += 1
    if not counts:
        return None
    named = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
    return f"{affected} of {total} problems ask for what no rule decides, and count as not right: {named}"
