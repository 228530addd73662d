"""The page of suite=packing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from falcon_h1r.benchmark.tables import beside_bar, table
from falcon_h1r.data.packing_plan import DocumentCost, Indices
from falcon_h1r.tracking import environment_versions

if TYPE_CHECKING:
    from falcon_h1r.benchmark.packing import PackingResult, Spread

FILL_BAR = 0.99
EXCESS_BAR, BARRED_RANKS = 0.02, (8, 64)


def render(
    lengths: Indices,
    cost: DocumentCost,
    results: Sequence[PackingResult],
    steps: Sequence[tuple[str, Spread]],
    environment: Mapping[str, str],
    command: str,
) -> str:
    """Markdown."""
    equal = cost.linear / cost.quadratic
    lines = [
        "# Packing an epoch",
        "",
        f"{len(lengths):,} documents of log-normal length, {lengths.mean():,.0f} tokens on average, {lengths.max():,} "
        "at most, in rows of 49,152 tokens; four rows a rank and step, every whole step of the epoch. A document of L "
        f"tokens costs {cost.linear:.3g} L + {cost.quadratic:.3g} L^2 operations forward (Falcon-H1-7B: the square is "
        f"as much as the rest at {equal:,.0f} tokens). Excess: the costliest rank's cost above the mean.",
        "",
        f"{environment['hardware']}; revision {environment_versions()['git_revision']}. Made by",
        "",
        f"    {command}",
        "",
        "## Fill, and the time to plan",
        "",
        "CPU time, on one core. Dealing is what a step adds to the plan of the epoch's rows, at each number of ranks.",
        "",
        *table(
            ["", "fill", "an epoch's rows", *(f"dealing, {ranks} ranks" for ranks in results[0].deal_seconds)],
            map(_fill_row, results),
        ),
        "## The costliest rank",
        "",
        *table(["", "ranks", "steps", "mean", "median", "p99", "worst"], _excess_rows(results)),
        "Ours: rows by best fit decreasing in windows of 65,536 documents, strata of cost over the steps, equally many "
        "rows a rank, evened out by exchange; see [docs/packing.md](../packing.md).",
        "",
        "## Steps of 512 sequences",
        "",
        "The published recipe's steps: their documents are given, so that ranks are evened out with these alone, by "
        "tokens or by cost; rows of 49,152 tokens, every whole step of the epoch.",
        "",
        *table(
            ["documents to ranks by", "ranks", "steps", "mean", "median", "p99", "worst"],
            (_spread(*step) for step in steps),
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _fill_row(result: PackingResult) -> list[str]:
    fill = f"{result.fill:.2%}"
    if result.name == "ours":
        fill = beside_bar(fill, f"{FILL_BAR:.0%}", result.fill >= FILL_BAR, at_most=False)
    dealing = [f"{1e3 * seconds:.2f} ms" for seconds in result.deal_seconds.values()]
    return [result.name, fill, f"{result.seconds:.1f} s", *dealing]


def _excess_rows(results: Sequence[PackingResult]) -> list[list[str]]:
    return [_spread(result.name, spread) for result in results for spread in result.spreads]


def _spread(name: str, spread: Spread) -> list[str]:
    worst = f"{spread.worst:.2%}"
    if name == "ours" and spread.num_ranks in BARRED_RANKS:
        worst = beside_bar(worst, f"{EXCESS_BAR:.0%}", spread.worst <= EXCESS_BAR, at_most=True)
    middle = [f"{value:.2%}" for value in (spread.mean, spread.median, spread.p99)]
    return [name, str(spread.num_ranks), f"{spread.num_steps:,}", *middle, worst]
