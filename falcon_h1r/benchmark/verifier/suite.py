"""suite=verifier: judge every pair by us and by Math-Verify in turn, keep each verdict at once, write the page."""

from __future__ import annotations

import platform
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.verifier.batch import make_batch, measure_batch
from falcon_h1r.benchmark.verifier.figures import PairFigures, VerifierFigures, append_row, shown_pair
from falcon_h1r.benchmark.verifier.judges import (
    OURS,
    Judge,
    JudgeProcess,
    Limits,
    last_core,
    our_judge,
    peer_judge,
    peer_versions,
)
from falcon_h1r.benchmark.verifier.page import write_page
from falcon_h1r.benchmark.verifier.pairs import Pair, read_pairs
from falcon_h1r.benchmark.verifier.startup import measure_import, measure_starts
from falcon_h1r.config import Config
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.tracking import Tracker, environment_versions
from falcon_h1r.types import InputError


def check_verifier_suite(settings: BenchmarkSuiteConfig) -> None:
    """Files that are missing or hold no pairs, and an interpreter without Math-Verify, before any work.

    Raises:
        InputError: naming the first.
    """
    read_pairs(settings.pairs)
    if settings.peer_python is not None:
        peer_versions(settings.peer_python)


def run_verifier_suite(config: Config, folder: Path) -> None:
    """Measure what the config asks for and write the page with its figures."""
    settings = config.benchmark
    pairs = read_pairs(settings.pairs)
    judges = [our_judge(), *([peer_judge(settings.peer_python)] if settings.peer_python is not None else [])]
    limits = Limits(settings.max_seconds, settings.memory_limit_gib, last_core())
    path = Path(settings.page).with_suffix(".jsonl")
    figures = open_figures(settings, pairs, path)
    figures.write(path)

    if figures.start is None:
        figures.start = measure_starts(judges, limits, settings.repeats)
        append_row(path, {"figure": "start", "measured": figures.start})
    if figures.imports is None:
        figures.imports = measure_import(settings.repeats)
        append_row(path, {"figure": "imports", "measured": figures.imports})
    _say_start(figures)
    with Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker:
        judge_pairs(pairs, judges, limits, figures, path, tracker)
    if figures.batch is None:
        figures.batch = _batch(pairs, config)
        append_row(path, {"figure": "batch", "measured": figures.batch})
    figures.pairs = {pair.id: figures.pairs[pair.id] for pair in pairs}  # in their files' order, however often resumed
    figures.write(path)
    write_page(figures, Path(settings.page))


def open_figures(settings: BenchmarkSuiteConfig, pairs: list[Pair], path: Path) -> VerifierFigures:
    """Empty figures; with `resume` what the page has so far, under the labels that its pairs have now.

    Raises:
        InputError: where the page's are of another machine, another peer or other pairs.
    """
    versions = environment_versions()
    environment: dict[str, Any] = {
        "hardware": versions["processor"],
        "ours": {"python": platform.python_version(), "sympy": versions["sympy"]},
        "peer": None if settings.peer_python is None else peer_versions(settings.peer_python),
        "call_seconds": settings.max_seconds,
    }
    figures = VerifierFigures(environment)
    if settings.resume and path.exists():
        figures = VerifierFigures.read(path)
        _check_same(path, figures, environment, pairs)
        for pair in pairs:
            if pair.id in figures.pairs:
                figures.pairs[pair.id].pair = shown_pair(pair)
    figures.pair_files = [Path(name).name for name in settings.pairs]
    figures.commands = list(dict.fromkeys([*figures.commands, command_line()]))
    figures.revisions = list(dict.fromkeys([*figures.revisions, versions["git_revision"]]))
    return figures


def judge_pairs(
    pairs: list[Pair], judges: list[Judge], limits: Limits, figures: VerifierFigures, path: Path, tracker: Tracker
) -> None:
    """Every pair that has no verdicts yet, by all judges in turn, each once the first and once the second."""
    left = [pair for pair in pairs if pair.id not in figures.pairs]
    num_done = len(pairs) - len(left)
    wrong = faults = 0
    with ExitStack() as stack, tracker.progress(len(pairs), "benchmark", "pairs", num_done) as progress:
        processes = [stack.enter_context(closing(JudgeProcess(judge, limits))) for judge in judges]
        for process in processes:
            process.start()  # all are there before the first is timed
        for number, pair in enumerate(left):
            in_turn = processes if number % 2 == 0 else processes[::-1]
            judgements = {process.judge.name: process.judge_pair(pair) for process in in_turn}
            measured = PairFigures(shown_pair(pair), pair.content, judgements)
            append_row(path, measured.as_row())
            figures.pairs[pair.id] = measured
            wrong += not pair.any_verdict and bool(judgements[OURS].verdict) != pair.expected
            faults += sum(judgement.fault is not None for judgement in judgements.values())
            progress.advance(1, unlike_label=wrong, faults=faults)


def _batch(pairs: list[Pair], config: Config) -> dict[str, Any] | None:
    settings = config.benchmark
    batch = make_batch(pairs, settings.grpo_problems, settings.grpo_rollouts, config.seed)
    if not batch.golds:
        print("no batch as in GRPO: the pairs have no golds for it", flush=True)
        return None
    print(f"a batch as in GRPO: {len(batch.golds):,} verdicts, {settings.repeats} times", flush=True)
    measured = measure_batch(batch, config.verifier.deadline_seconds, settings.repeats)
    return measured | {"num_problems": settings.grpo_problems, "num_rollouts": settings.grpo_rollouts}


def _check_same(path: Path, kept: VerifierFigures, environment: dict[str, Any], pairs: list[Pair]) -> None:
    """Refuse to mix figures of two machines, peers or sets of pairs on one page."""
    for name, now in environment.items():
        if kept.environment.get(name) != now:
            raise InputError(
                f"benchmark.page: {path} holds figures of another {name}; name another page, or remove the file"
            )
    contents = {pair.id: pair.content for pair in pairs}
    for pair_id, measured in kept.pairs.items():
        if contents.get(pair_id) != measured.content:
            raise InputError(
                f"benchmark.page: {path} holds verdicts on pair {pair_id}, which benchmark.pairs lacks or has "
                "otherwise; name another page, or leave out benchmark.resume"
            )


def _say_start(figures: VerifierFigures) -> None:
    assert figures.start is not None and figures.imports is not None
    names = [name for name in figures.start if name != "repeats"]
    starts = ", ".join(f"{name} {figures.start[name]['first_seconds']:.2f} s" for name in names)
    print(f"start to the first verdict: {starts}; import {figures.imports['seconds']:.3f} s", flush=True)
