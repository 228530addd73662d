"""How much a problem's difficulty weighs in the SFT loss (Falcon-H1R report, 2.2).

Hard traces count 1.25 to 1.75 times, medium ones once, easy ones half or not at all. The report does not give
its thresholds: here a synthetic problem is graded by construction, any other as its source says.
"""

from __future__ import annotations

import re

from falcon_h1r.config_data import DifficultyWeightsConfig
from falcon_h1r.data.problems import FAMILIES, solve
from falcon_h1r.data.problems_working import Working
from falcon_h1r.types import Difficulty, InputError, Problem

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


def difficulty_weight(
    difficulty: Difficulty | None, hardness: float, weights: DifficultyWeightsConfig | None = None
) -> float:
    """The loss weight: `easy`, `medium`, or from `hard_low` to `hard_high` as hardness goes from 0 to 1.

    A problem of unknown difficulty weighs as a medium one.
    """
    weights = weights or DifficultyWeightsConfig()
    if difficulty == "easy":
        return weights.easy
    if difficulty == "hard":
        return weights.hard_low + (weights.hard_high - weights.hard_low) * hardness
    return weights.medium
