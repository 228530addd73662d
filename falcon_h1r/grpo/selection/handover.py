"""What a selection leaves, by name, and GRPO's look at it: were its problems selected as the config says?"""

from __future__ import annotations

import json
from pathlib import Path

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.data.sources import read_problems
from falcon_h1r.types import InputError

RECIPE = "recipes/selection.py"
RL_FILE, DROPPED_FILE, RATES_FILE, SUMMARY_FILE = "rl.jsonl", "dropped.jsonl", "pass_rates.jsonl", "summary.json"


def check_selected(grpo: GRPOConfig) -> None:
    """Read every problem once, and refuse those that a selection which is asked for has not seen.

    Other domains and unreadable golds need no check: GRPO leaves such problems out where it loads them.

    Raises:
        InputError: on the first row that is no problem; on the first without a pass rate where the selection is by
            rollouts; and where problems are to be disjoint from the SFT data, but no selection beside the file says so.
    """
    selection = grpo.selection
    for number, problem in enumerate(read_problems(grpo.data), start=1):
        if selection.num_rollouts and problem.pass_rate is None:
            raise InputError(
                f"{grpo.data.path}: problem {number} ({problem.uid}) has no pass_rate, which "
                f"grpo.selection.num_rollouts={selection.num_rollouts} asks for: run {RECIPE} and name its {RL_FILE}, "
                "with grpo.data.curated=true, or set it to 0"
            )
    if selection.disjoint_from_sft and not _was_made_disjoint(Path(str(grpo.data.path))):
        raise InputError(
            f"grpo.selection.disjoint_from_sft=true: {grpo.data.path} lies beside no {SUMMARY_FILE} of a selection "
            f"that saw to it: run {RECIPE} and name its {RL_FILE}, or set it to false"
        )


def _was_made_disjoint(path: Path) -> bool:
    try:
        summary = json.loads((path.parent / SUMMARY_FILE).read_text(encoding="utf-8"))
        return path.name == RL_FILE and summary["settings"]["disjoint_from_sft"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False
