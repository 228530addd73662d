"""Over the facts of the whole corpus: whose traces stay, and how much each weighs.

    teacher -> pass rate -> difficulty and weight -> duplicates -> traces of a problem -> domains' samples and shares

Each step drops some of those that are still alive; a trace has the first reason that struck it. Numbers alone are
looked at, so that this takes seconds, and is done anew after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from falcon_h1r.config_data import CurateConfig, DifficultyWeightsConfig
from falcon_h1r.data.curation.facts import (
    ANSWERED,
    CORRECT,
    KEPT,
    ChunkFiles,
    CorpusFacts,
    problem_key,
)
from falcon_h1r.data.curation.judge import BY_COVERAGE, OTHER_TEACHER, REDEEMABLE
from falcon_h1r.data.curation.mix import Mix, mix_domains
from falcon_h1r.data.duplicates import find_duplicates
from falcon_h1r.data.jsonl import read_jsonl
from falcon_h1r.types import DIFFICULTIES, InputError

DUPLICATE, NO_WEIGHT, ENOUGH_OF_PROBLEM = "duplicate", "no_weight", "enough_of_problem"
WEIGHT_DIGITS = 6  # after the point, of a weight that is written
UNKNOWN, EASY, MEDIUM, HARD = -1, *range(len(DIFFICULTIES))


@dataclass(frozen=True, slots=True)
class Reduced:
    """What the reduction found beside the reasons, which it wrote into the facts."""

    teacher: str | None  # whose traces alone are kept
    coverage: dict[str, int]  # solved problems by teacher, of traces alive before one was chosen
    pass_rates: NDArray[np.float32]  # (N), of a trace's problem; nan: not known
    duplicate_of: NDArray[np.int64]  # (N), -1: of none
    mix: Mix


def reduce_corpus(corpus: CorpusFacts, config: CurateConfig, files: Sequence[ChunkFiles], seed: int) -> Reduced:
    """Decide over all traces; `corpus.facts` holds reasons, difficulties and weights afterwards.

    Raises:
        InputError: for a teacher who wrote nothing, pass rates that are missing, shares that cannot be had.
    """
    rates = _pass_rates(corpus, config.weights)
    teacher, coverage = _keep_teacher(corpus, config.keep_teacher)
    _grade(corpus, config.weights, rates)
    if "very_hard" in config.filters.keep_unproved:
        _redeem_very_hard(corpus)
    _weigh(corpus, config.weights, rates)
    duplicate_of = np.full(len(corpus.facts), -1, np.int64)
    if config.duplicates.of is not None and len(corpus.facts):
        by_problem = config.duplicates.of == "question"
        duplicate_of = find_duplicates(
            [chunk.signatures for chunk in files if chunk.signatures.is_file()],
            corpus.alive(),
            config.duplicates,
            corpus.facts["problem"].astype(np.int64) if by_problem else None,
        )
        corpus.drop(duplicate_of >= 0, DUPLICATE)
    if config.traces_per_problem is not None:
        corpus.drop(
            _rank_within(corpus.facts["problem"], corpus.alive()) >= config.traces_per_problem, ENOUGH_OF_PROBLEM
        )
    mix = mix_domains(corpus, config.mix, seed)
    return Reduced(teacher, coverage, rates, duplicate_of, mix)


# -----------------------------------------------------------------------------
# The teacher


def _keep_teacher(corpus: CorpusFacts, wanted: str | None) -> tuple[str | None, dict[str, int]]:
    """Drop the traces of all teachers but one: the one named, or the one who solved most problems.

    Whatever else spoke against the others' traces, this comes first, as where they are not even verified.
    """
    coverage = teacher_coverage(corpus)
    if wanted is None or not len(corpus.facts):
        return None, coverage
    teachers = corpus.names["teacher"]
    if wanted == BY_COVERAGE:
        wanted = max(sorted(coverage), key=lambda name: coverage[name]) if coverage else teachers[0]
    elif wanted not in teachers:
        raise InputError(f"curate.keep_teacher={wanted}: wrote none of the traces (there are: {', '.join(teachers)})")
    others = corpus.facts["teacher"] != teachers.index(wanted)
    corpus.facts["reason"][others] = corpus.place("reason", OTHER_TEACHER)
    return wanted, coverage


def teacher_coverage(corpus: CorpusFacts) -> dict[str, int]:
    """By teacher, how many problems he has solved in a trace that is alive and was judged right."""
    solved = corpus.facts[corpus.alive() & (corpus.facts["verdict"] == CORRECT)]
    pairs = np.unique(solved[["teacher", "problem"]])
    counts = np.bincount(pairs["teacher"], minlength=len(corpus.names["teacher"]))
    return dict(zip(corpus.names["teacher"], map(int, counts), strict=True))


# -----------------------------------------------------------------------------
# Difficulty


def _pass_rates(corpus: CorpusFacts, weights: DifficultyWeightsConfig) -> NDArray[np.float32]:
    """(N): of each trace's problem, from where the config says; nan where nobody knows."""
    facts = corpus.facts
    if weights.measured_by != "pass_rate" or weights.pass_rates == "traces":
        return _rates_of_traces(corpus)
    if weights.pass_rates == "rows":
        return facts["pass_rate"].copy()
    keys, rates = read_pass_rates(weights.pass_rates)
    found = np.minimum(np.searchsorted(keys, facts["problem"]), max(0, len(keys) - 1))
    known = keys[found] == facts["problem"]
    return np.where(known, rates[found], np.float32(np.nan)).astype(np.float32)


def _rates_of_traces(corpus: CorpusFacts) -> NDArray[np.float32]:
    """The share of a problem's traces, of all teachers, that were judged right; one without an answer was not."""
    facts = corpus.facts
    tried = np.isin(facts["verdict"], ANSWERED)
    _, problem = np.unique(facts["problem"], return_inverse=True)
    size = int(problem.max()) + 1 if len(problem) else 0
    num_tried = np.bincount(problem, weights=tried, minlength=size)
    num_right = np.bincount(problem, weights=tried & (facts["verdict"] == CORRECT), minlength=size)
    with np.errstate(invalid="ignore"):
        rates = (num_right / num_tried).astype(np.float32)
    return rates[problem]


def read_pass_rates(path: str | Path) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Keys of problems, ascending, and their rates, from rows that recipes/selection.py writes: uid, pass_rate."""
    rates: dict[int, float] = {}
    for number, row in read_jsonl(path):
        uid, rate = row.get("uid"), row.get("pass_rate")
        if (
            not isinstance(uid, str)
            or isinstance(rate, bool)
            or not isinstance(rate, int | float)
            or not 0 <= rate <= 1
        ):
            raise InputError(f"{path}, line {number}: needs a uid and a pass_rate from 0 to 1")
        rates[problem_key(uid)] = rate
    keys = np.array(sorted(rates), np.uint64)
    return keys, np.array([rates[int(key)] for key in keys], np.float32)


def _grade(corpus: CorpusFacts, weights: DifficultyWeightsConfig, rates: NDArray[np.float32]) -> None:
    """Set difficulty and hardness by what the config measures them with; labels stay where that is unknown."""
    facts = corpus.facts
    if weights.measured_by == "label":
        return
    if weights.measured_by == "pass_rate":
        known = ~np.isnan(rates)
        if not known.any() and len(facts):
            raise InputError(f"curate.weights.pass_rates={weights.pass_rates}: no problem has a pass rate there")
        grade = np.where(rates >= weights.easy_pass_rate, EASY, np.where(rates <= weights.hard_pass_rate, HARD, MEDIUM))
        hardness = 1 - rates / max(weights.hard_pass_rate, 1e-9)
    else:
        tokens = _shortest(facts["problem"], facts["response_tokens"], corpus.alive())
        known = tokens >= 0
        grade = np.where(tokens >= weights.hard_tokens, HARD, np.where(tokens >= weights.medium_tokens, MEDIUM, EASY))
        hardness = (tokens - weights.hard_tokens) / (weights.hardest_tokens - weights.hard_tokens)
    facts["difficulty"][known] = grade[known]
    facts["hardness"][known] = np.clip(np.nan_to_num(hardness), 0, 1)[known]


def _shortest(problems: NDArray[np.uint64], tokens: NDArray[np.int32], alive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N): tokens of the shortest trace alive of each trace's problem; -1 where there is none."""
    _, problem = np.unique(problems, return_inverse=True)
    shortest = np.full(int(problem.max()) + 1 if len(problem) else 0, np.inf)
    np.minimum.at(shortest, problem[alive], tokens[alive])
    shortest[np.isinf(shortest)] = -1
    return shortest[problem]


def _redeem_very_hard(corpus: CorpusFacts) -> None:
    """Keep traces of hard problems that could not be judged; one that was found wrong stays dropped."""
    reasons = [corpus.place("reason", name) for name in REDEEMABLE]
    redeemed = np.isin(corpus.facts["reason"], reasons) & (corpus.facts["difficulty"] == HARD)
    corpus.facts["reason"][redeemed] = corpus.place("reason", KEPT)


def _weigh(corpus: CorpusFacts, weights: DifficultyWeightsConfig, rates: NDArray[np.float32]) -> None:
    """Multiply the source's weights by difficulty's; what then weighs nothing is dropped.

    Hard traces count 1.25 to 1.75 times, medium ones and those of unknown difficulty once, easy ones half or not at all
    (Falcon-H1R report, 2.2, which gives no thresholds).
    """
    facts = corpus.facts
    hard = weights.hard_low + (weights.hard_high - weights.hard_low) * facts["hardness"]
    by_difficulty = np.select(
        [facts["difficulty"] == EASY, facts["difficulty"] == HARD], [weights.easy, hard], weights.medium
    )
    facts["weight"] *= by_difficulty
    corpus.drop(np.round(facts["weight"], WEIGHT_DIGITS) <= 0, NO_WEIGHT)


def _rank_within(problems: NDArray[np.uint64], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N): how many earlier traces alive there are of the same problem."""
    ranks = np.zeros(len(problems), np.int64)
    places = np.flatnonzero(alive)
    order = places[np.argsort(problems[places], kind="stable")]
    keys = problems[order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, bool)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(keys)), 0))
    ranks[order] = np.arange(len(keys)) - starts
    return ranks
