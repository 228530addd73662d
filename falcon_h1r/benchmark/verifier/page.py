"""The page of suite=verifier, drawn from its figures alone."""

from __future__ import annotations

from pathlib import Path

from falcon_h1r.benchmark.verifier.figures import VerifierFigures
from falcon_h1r.benchmark.verifier.judges import OURS, PEER
from falcon_h1r.benchmark.verifier.plot import latency_plot
from falcon_h1r.benchmark.verifier.sections import (
    batch_section,
    differences_section,
    disagreements_section,
    kinds_section,
    latency_section,
    start_section,
    verdicts_section,
)


def write_page(figures: VerifierFigures, path: Path) -> None:
    """The page, and its plot where there is something to draw."""
    plot = latency_plot(
        {
            title: {name: _seconds(figures, name, is_adversarial) for name in (OURS, PEER)}
            for title, is_adversarial in (("pairs as models write them", False), ("adversarial pairs", True))
        }
    )
    if plot is not None:
        path.with_suffix(".svg").write_text(plot)
    path.write_text(render(figures, path.with_suffix(".svg").name if plot else None))


def render(figures: VerifierFigures, plot: str | None) -> str:
    """Markdown; sections without figures are left out."""
    lines = [
        *_header(figures),
        *verdicts_section(figures),
        *latency_section(figures, plot),
        *start_section(figures),
        *batch_section(figures),
        *kinds_section(figures),
        *disagreements_section(figures),
        *differences_section(figures),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _header(figures: VerifierFigures) -> list[str]:
    environment, pairs = figures.environment, [measured.pair for measured in figures.pairs.values()]
    adversarial = sum(pair.is_adversarial for pair in pairs)
    timed = sum(pair.any_verdict for pair in pairs)
    lines = [
        "# The maths verifier beside Math-Verify",
        "",
        *(f"    {command}" for command in figures.commands),
        "",
        f"- hardware: {environment['hardware']}; each judge on one core",
        f"- pairs: {len(pairs):,} of {', '.join(figures.pair_files)}; {adversarial} of them adversarial, {timed} "
        "without a label, for their time only",
        f"- ours: `python -m falcon_h1r.verifier`, {_versions(environment['ours'])}; "
        f"revision {', '.join(figures.revisions)}",
    ]
    if environment["peer"]:
        lines.append(f"- {PEER}: gold in a box, its defaults and timeouts, {_versions(environment['peer'])}")
    lines += [
        "",
        "A judge reads JSON lines and answers them one by one, in a process of its own; they take turns pair by pair.",
        f"A call that takes {environment['call_seconds']:g} s is a hang: the judge is killed and started anew. "
        "Undecided counts as no.",
        "",
    ]
    if not environment["peer"]:
        lines += [f"{PEER} was **not measured**: `benchmark.peer_python` was null.", ""]
    return lines


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _seconds(figures: VerifierFigures, name: str, is_adversarial: bool) -> list[float]:
    return [
        measured.judgements[name].seconds
        for measured in figures.pairs.values()
        if measured.pair.is_adversarial == is_adversarial and name in measured.judgements
    ]
