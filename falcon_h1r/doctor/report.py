"""The table, on the console and as doctor.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from falcon_h1r.doctor.finding import FAILED, OK, SKIPPED, WARN
from falcon_h1r.doctor.runner import Outcome

COLOURS = {OK: "green", SKIPPED: "dim", WARN: "yellow", FAILED: "red"}
WORDS = {OK: "ok", SKIPPED: "skipped", WARN: "LOOK", FAILED: "FAILED"}
JSON_FILE, TRACEBACKS_FILE = "doctor.json", "doctor_tracebacks.txt"


def is_fit(outcomes: Sequence[Outcome]) -> bool:
    """Whether nothing is red."""
    return all(finding.status != FAILED for outcome in outcomes for finding in outcome.findings)


def print_table(outcomes: Sequence[Outcome], seconds: float, stream: TextIO | None = None) -> None:
    """In colours on a terminal, plain and unwrapped in a pipe."""
    stream = stream or sys.stdout
    if stream.isatty():
        Console(file=stream).print(coloured_table(outcomes), verdict_text(outcomes, seconds))
    else:
        print("\n".join(plain_lines(outcomes, seconds)), file=stream, flush=True)


def coloured_table(outcomes: Sequence[Outcome]) -> Table:
    """For rich."""
    table = Table("check", "", "", "measured", "what to do")
    for outcome in outcomes:
        for index, finding in enumerate(outcome.findings):
            topic = f"{outcome.name} ({outcome.seconds:.1f} s)" if index == 0 else ""
            colour = COLOURS[finding.status]
            word = Text(WORDS[finding.status], style=colour)
            table.add_row(topic, word, Text(finding.name), Text(finding.measured), Text(finding.advice, style=colour))
        table.add_section()
    return table


def plain_lines(outcomes: Sequence[Outcome], seconds: float) -> list[str]:
    """One line a finding, what to do below it."""
    findings = [finding for outcome in outcomes for finding in outcome.findings]
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for outcome in outcomes:
        lines.append(f"--- {outcome.name} ({outcome.seconds:.1f} s)")
        for finding in outcome.findings:
            lines.append(f"{WORDS[finding.status]:<7}  {finding.name:<{width}}  {finding.measured}".rstrip())
            if finding.advice:
                lines.append(f"{'':<7}  {'':<{width}}  -> {finding.advice}")
    return [*lines, str(verdict_text(outcomes, seconds))]


def verdict_text(outcomes: Sequence[Outcome], seconds: float) -> Text:
    """The last line."""
    counts = {status: 0 for status in COLOURS}
    for outcome in outcomes:
        for finding in outcome.findings:
            counts[finding.status] += 1
    told = ", ".join(f"{count} {WORDS[status]}" for status, count in counts.items() if count)
    fit = is_fit(outcomes)
    return Text(f"{'fit to train' if fit else 'NOT fit to train'}: {told}; {seconds:.0f} s", "green" if fit else "red")


def write_files(outcomes: Sequence[Outcome], seconds: float, num_ranks: int, folder: Path) -> None:
    """doctor.json, and the tracebacks where there are any.

    Raises:
        OSError: where the folder takes no files.
    """
    tracebacks = [
        f"{outcome.name}, rank {rank}\n{trace}" for outcome in outcomes for rank, trace in outcome.tracebacks.items()
    ]
    if tracebacks:
        (folder / TRACEBACKS_FILE).write_text("\n".join(tracebacks), encoding="utf-8")
    page = {
        "fit": is_fit(outcomes),
        "ranks": num_ranks,
        "seconds": round(seconds, 2),
        "checks": [
            {
                "name": outcome.name,
                "seconds": round(outcome.seconds, 2),
                "findings": [asdict(finding) for finding in outcome.findings],
            }
            for outcome in outcomes
        ],
    }
    (folder / JSON_FILE).write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
