"""The page of suite=rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from falcon_h1r.benchmark.bars import ROLLOUT_SPEED
from falcon_h1r.benchmark.tables import NONE, judged, table
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.tracking import environment_versions

if TYPE_CHECKING:
    from falcon_h1r.benchmark.rollouts import ModelResult, Sampled


def render(
    settings: BenchmarkSuiteConfig, results: Sequence[ModelResult], environment: Mapping[str, str], command: str
) -> str:
    """Markdown."""
    low, high = settings.rollout_response_tokens
    on_cpu = environment["device"] == "cpu"
    lines = [
        "# Drawing rollouts",
        "",
        f"{settings.rollout_prompts} prompts of {settings.rollout_prompt_tokens[0]} to "
        f"{settings.rollout_prompt_tokens[1]} tokens, {settings.rollout_samples} rollouts each, every one of a length "
        f"of its own between {low} and {high} tokens; temperature 1, random weights. Tokens a second "
        f"{'of CPU time' if on_cpu else 'by the clock'}, the median of {settings.repeats} rounds taken in turns. Only "
        "tokens of rollouts count, not what a batch computes beyond a row's end. [The sampler's page](../rollouts.md)",
        "",
        f"{environment['hardware']}; torch {environment['torch']}, transformers {environment['transformers']}; "
        f"revision {environment_versions()['git_revision']}. Made by",
        "",
        f"    {command}",
        "",
    ]
    for result in results:
        lines += _model(result)
    return "\n".join(lines).rstrip() + "\n"


def _model(result: ModelResult) -> list[str]:
    peer = result.theirs[0].rate if result.theirs else None

    def row(kind: str, sampled: Sampled) -> list[str]:
        is_ours = kind == "ours"
        spread = f"{min(sampled.rates):,.0f} to {max(sampled.rates):,.0f}"
        ratio = None if peer is None or not is_ours else sampled.rate / peer
        bound = result.bounds.get(sampled.name) if is_ours else None
        judgement = judged(ratio, ROLLOUT_SPEED)
        limit = NONE if bound is None else f"{bound:,.0f}"
        return [f"{kind}, {sampled.name}", f"{sampled.rate:,.0f}", spread, str(len(sampled.rates)), judgement, limit]

    rows = [row("ours", sampled) for sampled in result.ours]
    rows += [row("`generate`", sampled) for sampled in result.theirs]
    phases = list(result.ours[0].phases)
    return [
        f"## {result.name}",
        "",
        f"{result.num_parameters:,} parameters, {result.num_tokens:,} tokens a round.",
        "",
        *table(["", "tokens/s", "of rounds", "rounds", "against the best `generate`", "bandwidth's limit"], rows),
        "Where our time goes, in the last round:",
        "",
        *table(
            ["", *phases],
            ([sampled.name, *(f"{sampled.phases[phase]:.0%}" for phase in phases)] for sampled in result.ours),
        ),
    ]
