"""The verifier behind the reward: a handful of pairs, one of which needs its workers; they start, and they end."""

from __future__ import annotations

import time

import psutil

from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, WARN, Finding, graded
from falcon_h1r.verifier import Verifier

PAIRS = (
    (r"So it is \boxed{\frac{1}{2}}.", "0.5", "correct"),
    (r"So it is \boxed{42}.", "41", "wrong"),
    (r"So it is \boxed{(x+1)^2}.", "x^2+2x+1", "correct"),
    (r"So it is \boxed{\sin^2 x + \cos^2 x}.", "1", "correct"),
    (r"So it is \boxed{\sqrt{x^2+1}}.", r"\sqrt{x^2+2}", "wrong"),
    ("I do not know.", "7", "wrong"),
)
END_SECONDS = 5.0


def check_verifier(examination: Examination) -> list[Finding]:
    """Verdicts, seconds with the workers' start, confinement, and that no process is left."""
    before = _children()
    started = time.perf_counter()
    with Verifier.from_config(examination.config.verifier) as verifier:
        verifier.start()
        verdicts = verifier.score([pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS])
        confinement = verifier.confinement
        seconds = time.perf_counter() - started
        workers = _children() - before
    left = _still_there(workers)
    wrong = [
        f"{prediction} against {gold}: {verdict.status} ({verdict.reason}), not {expected}"
        for (prediction, gold, expected), verdict in zip(PAIRS, verdicts, strict=True)
        if verdict.status != expected
    ]
    measured = wrong[0] if wrong else f"{len(PAIRS)} as they should be, {seconds:.1f} s with the workers' start"
    verdict_advice = "run python -m falcon_h1r.verifier --explain on it; a starved machine is undecided"
    confined = ", ".join(confinement) if confinement else "nothing"
    confinement_advice = "workers run unconfined: this kernel or container allows neither seccomp nor Landlock"
    if left:
        kept = Finding("verifier workers", FAILED, f"{len(left)} processes outlive close()", "end them by hand; report")
    else:
        kept = graded("verifier workers", OK if confinement else WARN, f"confined by {confined}", confinement_advice)
    return [graded("verdicts", FAILED if wrong else OK, measured, verdict_advice), kept]


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _still_there(workers: set[int]) -> set[int]:
    deadline = time.monotonic() + END_SECONDS
    while (left := workers & _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
