"""The cache of groups to spare: which of them a step begins with, and which are kept for the next.

Groups with contrast that a step did not need go to the next ones, which sample that much less (Falcon-H1R report,
section 3.3: about 30% fewer generation calls). They were drawn by an older policy, so that they are kept for
`surplus_cache_steps` at most, and `surplus_cache_groups` of them over all ranks. Every rank decides the same from
what all know; the groups stay where they were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.grpo.carried import Summary
from falcon_h1r.grpo.ledger import Scored


@dataclass(frozen=True, slots=True)
class Spare:
    """A group of the cache, and the step that it was found in."""

    added_step: int
    scored: Scored


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What becomes of the cache as a step begins."""

    used: list[Spare]
    kept: list[Spare]
    expired: list[Spare]


def withdraw(summaries: Sequence[Summary], step: int, config: GRPOConfig) -> Withdrawal:
    """The oldest groups that are not too old, as many as a batch takes.

    Args:
        summaries: in the order of ranks.
    """
    spares = sorted(
        (
            Spare(each.added_step, Scored(each.number, owner, each.facts))
            for owner, summary in enumerate(summaries)
            for each in summary.surplus
        ),
        key=_age,
    )
    expired = [spare for spare in spares if spare.added_step + config.surplus_cache_steps < step]
    usable = spares[len(expired) :]
    num_used = config.problems_per_step
    return Withdrawal(usable[:num_used], usable[num_used:], expired)


def bounded(spares: Sequence[Spare], config: GRPOConfig) -> tuple[list[Spare], list[Spare]]:
    """Those that are kept and those that there is no room for: the oldest go, whose policy is furthest away."""
    ordered = sorted(spares, key=_age)
    num_evicted = max(0, len(ordered) - config.surplus_cache_groups)
    return ordered[num_evicted:], ordered[:num_evicted]


def _age(spare: Spare) -> tuple[int, int]:
    return spare.added_step, spare.scored.number
