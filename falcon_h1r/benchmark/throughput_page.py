"""The page of suite=throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from falcon_h1r.benchmark.tables import NONE, seconds, table
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.tracking import environment_versions

if TYPE_CHECKING:
    from falcon_h1r.benchmark.throughput import Limits, Measured


def render(
    settings: BenchmarkSuiteConfig,
    measured: Sequence[Measured],
    limits: Limits | None,
    engine: str,
    environment: Mapping[str, str],
    command: str,
) -> str:
    """Markdown."""
    scale = settings.throughput_scale
    shrunk = "" if scale == 1 else f" All lengths are {scale:g} of those of the published protocol."
    machine = (
        f"Measured beside: memory {limits.bytes_per_second / 1e9:,.1f} GB/s (a copy, read and written), arithmetic "
        f"{limits.flops_per_second / 1e12:,.3f} TFLOP/s (a large product). The limit is what the slower of the two "
        "would allow for a decode step with every trace half-way through."
        if limits is not None
        else "The engine is elsewhere: the limits of its machine are not known here."
    )
    rounds = "One round" if settings.repeats == 1 else f"Medians of {settings.repeats} rounds"
    measured_on = "" if limits is not None else "Asked from "
    return "\n".join(
        [
            "# Throughput by lengths and batch",
            "",
            f"{engine}. {rounds} after a warm-up, by the clock.{shrunk} Decoding is the time in full less that of one "
            f"token out.{_about(measured)}{_early(measured)}",
            "",
            machine,
            "",
            f"{measured_on}{environment['hardware']}; torch {environment['torch']}, "
            f"transformers {environment['transformers']}; revision {environment_versions()['git_revision']}. Made by",
            "",
            f"    {command}",
            "",
            *table(
                [
                    "input, output, batch",
                    "tokens/s",
                    "prompts read/s",
                    "decoding/s",
                    "a step, ms",
                    "limit/s",
                    "of the limit",
                    "rounds, s",
                ],
                map(_row, measured),
            ),
        ]
    )


def _about(measured: Sequence[Measured]) -> str:
    if not any(case.is_about for case in measured):
        return ""
    return " Prompts are about so long, and the server's template longer: evaluate.endpoint.api=completions counts."


def _early(measured: Sequence[Measured]) -> str:
    if all(case.drawn_share == 1 for case in measured):
        return ""
    return (
        " Where fewer tokens are out than were asked for, traces ended early: the batch was not full to the end, "
        "rates are lower than those of a full one, and a step has no time."
    )


def _row(case: Measured) -> list[str]:
    out = f"{median(case.drawn) / case.batch:,.0f}"
    if case.drawn_share < 1:
        out += f" of {case.output_tokens:,}"
    limit = NONE if case.limit is None else f"{case.limit:,.0f} ({case.bound_by})"
    share = NONE if case.limit is None else f"{case.decode_rate / case.limit:.0%}"
    return [
        f"{'about ' if case.is_about else ''}{case.input_tokens:,} in, {out} out, {case.batch}",
        f"{case.rate:,.0f}",
        f"{case.read_rate:,.0f}",
        f"{case.decode_rate:,.0f}",
        NONE if case.drawn_share < 1 else f"{1e3 * case.batch / case.decode_rate:.2f}",
        limit,
        share,
        f"{seconds(min(case.seconds))} to {seconds(max(case.seconds))}",
    ]
