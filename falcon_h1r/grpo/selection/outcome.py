"""What a selection leaves: rl.jsonl, dropped.jsonl, and summary.json as the sign that it has ended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from falcon_h1r.checkpoint.files import replace_text
from falcon_h1r.config_grpo import GRPOConfig, SelectionConfig
from falcon_h1r.config_selection import selection_limits
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.grpo.selection.handover import DROPPED_FILE, RATES_FILE, RL_FILE, SUMMARY_FILE
from falcon_h1r.grpo.selection.rates_file import PassRateFile
from falcon_h1r.grpo.selection.rules import (
    CONSISTENT_WRONG,
    SOLVED,
    UNSOLVED,
    UNSOLVED_TRUNCATED,
    Tally,
    describe_tally,
    drop_reason,
    unit_draw,
)
from falcon_h1r.grpo.selection.screening import (
    IN_SFT,
    OTHER_DOMAIN,
    PROMPT_TOO_LONG,
    REPEATED,
    UNVERIFIABLE_GOLD,
    Drop,
)
from falcon_h1r.types import Problem, to_row

# In the order in which they are asked, with the name of what is left then.
SCREENED = {
    OTHER_DOMAIN: "of_the_domains",
    REPEATED: "distinct",
    IN_SFT: "not_in_sft",
    UNVERIFIABLE_GOLD: "verifiable",
    PROMPT_TOO_LONG: "short_enough",
}
SAMPLED = (SOLVED, CONSISTENT_WRONG, UNSOLVED_TRUNCATED, UNSOLVED)


def write_selection(
    folder: Path,
    problems: Sequence[Problem],
    screened: Mapping[int, Drop],
    grpo: GRPOConfig,
    seed: int,
) -> dict[str, Any]:
    """Write the files, summary.json last; returns the summary. Nothing in them depends on the clock.

    What was measured is read from the folder's pass_rates.jsonl.

    Args:
        screened: dropped without rollouts, by position in `problems`.
    """
    tallies = PassRateFile(folder / RATES_FILE).tallies() if grpo.selection.num_rollouts else {}
    drops = dict(screened)
    kept: list[Problem] = []
    dropped: list[dict[str, Any]] = []
    for index, problem in enumerate(problems):
        tally = None if index in drops else tallies.get(problem.uid)
        if tally is not None:
            problem = replace(problem, pass_rate=tally.pass_rate)
            if reason := drop_reason(tally, grpo.selection, unit_draw(seed, problem.uid)):
                drops[index] = Drop(reason, describe_tally(tally))
        if (drop := drops.get(index)) is None:
            kept.append(problem)
        else:
            dropped.append({**to_row(problem), **asdict(drop)})
    write_jsonl(folder / RL_FILE, map(to_row, kept))
    write_jsonl(folder / DROPPED_FILE, dropped)
    summary = _summarise(len(problems), drops, tallies, grpo)
    replace_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def _summarise(
    num_problems: int, drops: Mapping[int, Drop], tallies: Mapping[str, Tally], grpo: GRPOConfig
) -> dict[str, Any]:
    counts = Counter(drop.reason for drop in drops.values())
    funnel, left = {"problems": num_problems}, num_problems
    for reason in _asked(grpo.selection):
        left -= counts[reason]
        funnel[SCREENED[reason]] = left
    funnel["selected"] = num_problems - len(drops)
    summary: dict[str, Any] = {
        "funnel": funnel,
        "dropped": {reason: counts[reason] for reason in (*SCREENED, *SAMPLED) if counts[reason]},
    }
    if tallies:
        summary.update(_summarise_rollouts(list(tallies.values()), counts))
    settings = {**asdict(grpo.selection), "max_response_tokens": selection_limits(grpo).response_tokens}
    return {**summary, "settings": settings, "data": grpo.data.path}


def _asked(selection: SelectionConfig) -> list[str]:
    """The reasons without rollouts that a problem could have been dropped for."""
    asked = {
        IN_SFT: selection.disjoint_from_sft,
        UNVERIFIABLE_GOLD: selection.drop_unverifiable or selection.num_rollouts > 0,
        PROMPT_TOO_LONG: selection.num_rollouts > 0,
    }
    return [reason for reason in SCREENED if asked.get(reason, True)]


def _summarise_rollouts(tallies: Sequence[Tally], counts: Mapping[str, int]) -> dict[str, Any]:
    """The histogram counts problems by their right rollouts."""
    size = tallies[0].num_rollouts
    num_rollouts = size * len(tallies)
    by_correct = Counter(tally.num_correct for tally in tallies)
    num_unsolved_dropped = sum(counts[reason] for reason in SAMPLED if reason != SOLVED)
    shares = {
        name: round(sum(getattr(tally, f"num_{name}") for tally in tallies) / num_rollouts, 6)
        for name in ("correct", "truncated", "undecided")
    }
    return {
        "kept_unsolved": by_correct[0] - num_unsolved_dropped,
        "pass_rates": {f"{number}/{size}": by_correct[number] for number in range(size + 1)},
        "rollouts": {
            "number": num_rollouts,
            **{f"{name}_share": share for name, share in shares.items()},
            "undecided": sum(tally.num_undecided for tally in tallies),
            "tokens": round(sum(tally.mean_response_tokens * size for tally in tallies)),
        },
    }


def one_line(summary: Mapping[str, Any]) -> str:
    """The funnel, for the console."""
    return " -> ".join(f"{count:,} {name}" for name, count in summary["funnel"].items())
