"""What a selection of RL's problems would do: its screens, its rollouts, and what they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from falcon_h1r.config import Config
from falcon_h1r.config_selection import selection_limits
from falcon_h1r.dry_run.arithmetic import RankPlan, check_context, decode_bytes
from falcon_h1r.grpo.selection.rules import fewest_consistent
from falcon_h1r.grpo.selection.sampling import problems_of_a_block

if TYPE_CHECKING:
    from transformers import FalconH1Config

GIB = 1024**3


def selection_rows(
    config: Config, ranks: RankPlan, shape: FalconH1Config, num_problems: int | None
) -> Iterator[tuple[str, str]]:
    """Names and values.

    Args:
        num_problems: of the file; None where it is not at hand.

    Raises:
        InputError: where a prompt and a response are beyond the model's context.
    """
    grpo, selection = config.grpo, config.grpo.selection
    yield "kept domains", ", ".join(selection.domains)
    if selection.disjoint_from_sft:
        yield "disjoint from", config.sft.data.path or "sft.data: no path given"
    unread = selection.drop_unverifiable or selection.num_rollouts > 0
    yield "unreadable golds", "dropped" if unread else "left for GRPO to drop"
    if not selection.num_rollouts:
        yield "rollouts", "none: no model is read"
        return
    limits = selection_limits(grpo)
    check_context("grpo.selection", limits, shape)
    sampling = f"temperature {selection.temperature}, top-p {selection.top_p}"
    yield "rollouts", f"{selection.num_rollouts} a problem, {sampling}"
    yield "limits", f"prompt {limits.prompt_tokens:,}, response {limits.response_tokens:,} tokens"
    agreeing = f"{fewest_consistent(selection)} of {selection.num_rollouts} agreeing"
    yield "none right", f"dropped from {agreeing} on; of the others, {selection.keep_unsolved_share:.0%} are kept"
    if num_problems is not None:
        rollouts = num_problems * selection.num_rollouts
        tokens = rollouts * limits.response_tokens
        yield "in all", f"at most {rollouts:,} rollouts of {num_problems:,} problems, {tokens:,} tokens"
    size = problems_of_a_block(grpo, ranks.num_ranks)
    yield "blocks", f"{size:,} problems over {ranks.num_ranks} ranks; a kill costs at most one"
    state, cache = decode_bytes(shape, config.model.dtype)
    slots = grpo.rollout.max_slots * (state + cache * limits.row_tokens) / GIB
    yield "sampler", f"{grpo.rollout.name}; {grpo.rollout.max_slots} slots take {slots:.1f} GiB when full"
