"""How hard a problem is that its label calls hard: where between the two weights of hard ones it lies."""

from __future__ import annotations

import re

from falcon_h1r.data.problems import FAMILIES, solve
from falcon_h1r.data.problems_working import Working
from falcon_h1r.types import InputError, Problem

UNKNOWN_HARDNESS = 0.5  # halfway between the two weights of a hard problem

# Symbols of a bare working, between which hardness rises from 0 to 1: what hard problems mostly need.
FEWEST_SYMBOLS, MOST_SYMBOLS = 20, 45


def hardness(problem: Problem) -> float:
    """How hard a problem is, in [0, 1]: by the length of its written arithmetic in digits and signs.

    A problem that is not synthetic is in the middle.
    """
    if problem.family not in FAMILIES:
        return UNKNOWN_HARDNESS
    working = Working()
    try:
        solve(problem, working)
    except InputError:  # of another source, which calls its family by the same name
        return UNKNOWN_HARDNESS
    symbols = len(re.sub(r"\s", "", ",".join(step.equation for step in working.steps)))
    return min(1.0, max(0.0, (symbols - FEWEST_SYMBOLS) / (MOST_SYMBOLS - FEWEST_SYMBOLS)))
