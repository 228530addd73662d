"""suite=model: measure every case, keep each at once, write the page.

First the chunk sizes of a peer compete among themselves. The fastest then takes turns with us, run for run, so that a
neighbour on the machine slows both alike; the page compares medians.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from falcon_h1r.benchmark.cases import Case, Contender, suite_cases
from falcon_h1r.benchmark.figures import Figures, check_same_setting, command_line, figures_path
from falcon_h1r.benchmark.flops import part_flops
from falcon_h1r.benchmark.hardware import Peak, environment, faster, peak_flops
from falcon_h1r.benchmark.page import write_page
from falcon_h1r.benchmark.process import ContenderProcess, Failed, Run
from falcon_h1r.benchmark.workloads import Setup
from falcon_h1r.config import Config
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.model.load import DTYPES
from falcon_h1r.progress import ProgressReporter
from falcon_h1r.tracking import Tracker, environment_versions

TRIAL_ROUNDS = 2  # of which the faster counts


def run_suite(config: Config, folder: Path, device: torch.device) -> None:
    """Measure what the config asks for and write the page with its figures."""
    settings = config.benchmark
    setup = setup_of(config, device)
    figures = open_figures(config, setup, device)
    cases = [case for case in suite_cases(settings) if not (settings.resume and figures.holds(case))]
    revision = environment_versions()["git_revision"]
    total = sum(map(_cost, cases))
    with (
        Tracker(folder, "benchmark", config.tracking, True, asdict(config)) as tracker,
        tracker.progress(total, "benchmark", "thousand tokens") as progress,
    ):
        for case in cases:
            flops = part_flops(case.part, setup.shape(case.vocab_size), case.lengths)
            measured = measure_case(case, setup, settings)
            figures.add(case.as_dict() | {"revision": revision, "forward_flops": asdict(flops), "contenders": measured})
            figures.write(figures_path(settings.page))
            _say(case, measured, progress)
            progress.advance(_cost(case))
    if cases:
        _raise_peak(figures, setup, device)
    write_page(figures, Path(settings.page))


def setup_of(config: Config, device: torch.device) -> Setup:
    settings = config.benchmark
    return Setup(
        architecture=dict(config.model.architecture),
        dtype=config.model.dtype,
        device=device.type,
        num_layers=settings.num_layers,
        num_threads=torch.get_num_threads(),
        seed=config.seed,
        memory_limit_gib=settings.memory_limit_gib,
        optimizer=config.sft.optimizer,
    )


def open_figures(config: Config, setup: Setup, device: torch.device) -> Figures:
    """The page's figures so far, without those about to be measured again; new ones where there is no page.

    Raises:
        InputError: where the page's are of another machine or model.
    """
    settings, path = config.benchmark, figures_path(config.benchmark.page)
    ours = environment(device)
    shape = {
        "architecture": setup.architecture,
        "num_layers": setup.shape().num_hidden_layers,
        "dtype": setup.dtype,
    }
    check_same_setting(path, ours, shape)
    if path.exists():
        figures = Figures.read(path)
    else:
        figures = Figures(ours, asdict(peak_flops(device, DTYPES[setup.dtype])), shape)
    command = command_line()
    figures.commands = [*(known for known in figures.commands if known != command), command]
    if not settings.resume:
        figures.cases = {key: case for key, case in figures.cases.items() if case["part"] not in settings.parts}
    return figures


def _raise_peak(figures: Figures, setup: Setup, device: torch.device) -> None:
    """Measured again at the end of a run: the best of all holds."""
    figures.peak = asdict(faster(Peak(**figures.peak), peak_flops(device, DTYPES[setup.dtype])))


# -----------------------------------------------------------------------------
# One case


def measure_case(case: Case, setup: Setup, settings: BenchmarkSuiteConfig) -> list[dict[str, Any]]:
    """Every contender's runs, or why there are none."""
    reasons = {contender: contender.skipped for contender in case.contenders}
    runs: dict[Contender, list[Run]] = {contender: [] for contender in case.contenders}

    def take_turns(contenders: list[Contender], rounds: int) -> None:
        for group in [contenders] if settings.interleave else [[contender] for contender in contenders]:
            for contender, outcomes in _take_turns(case, group, rounds, setup, settings).items():
                runs[contender] = [outcome for outcome in outcomes if isinstance(outcome, Run)]
                failures = [outcome.reason for outcome in outcomes if isinstance(outcome, Failed)]
                reasons[contender] = failures[0] if failures else None

    for rivals in _rivals(case):
        take_turns(rivals, TRIAL_ROUNDS)
    finalists = _finalists(case, runs, reasons)
    take_turns(finalists, settings.repeats)
    return [
        asdict(contender)
        | {
            "is_finalist": contender in finalists,
            "reason": reasons[contender],
            "runs": [asdict(run) for run in runs[contender]],
        }
        for contender in case.contenders
    ]


def _take_turns(
    case: Case, contenders: list[Contender], rounds: int, setup: Setup, settings: BenchmarkSuiteConfig
) -> dict[Contender, list[Run | Failed]]:
    """All alive together, one run each in every round; a contender that failed is out."""
    outcomes: dict[Contender, list[Run | Failed]] = {contender: [] for contender in contenders}
    with ExitStack() as stack:
        processes = {
            contender: stack.enter_context(closing(ContenderProcess(case, contender, setup, settings.max_seconds)))
            for contender in contenders
        }
        for process in processes.values():
            process.wait()  # a neighbour that still builds would disturb
        started = time.monotonic()
        for done in range(rounds):
            if done > 0 and time.monotonic() - started > settings.enough_seconds:
                break
            for contender, process in processes.items():
                if not any(isinstance(outcome, Failed) for outcome in outcomes[contender]):
                    outcomes[contender].append(process.run())
    return outcomes


def _rivals(case: Case) -> list[list[Contender]]:
    """Contenders of one path, where there are several."""
    by_path: dict[str, list[Contender]] = {}
    for contender in case.contenders:
        by_path.setdefault(contender.path, []).append(contender)
    return [rivals for rivals in by_path.values() if len(rivals) > 1]


def _finalists(case: Case, runs: dict[Contender, list[Run]], reasons: dict[Contender, str | None]) -> list[Contender]:
    """Of each path, the one chunk size that was fastest in its trials."""

    def seconds(contender: Contender) -> float:
        return min((sum(run.seconds.values()) for run in runs[contender]), default=0.0)

    able = [contender for contender in case.contenders if reasons[contender] is None]
    paths = dict.fromkeys(contender.path for contender in able)
    return [min((contender for contender in able if contender.path == path), key=seconds) for path in paths]


def _cost(case: Case) -> int:
    """For the progress bar: thousands of tokens over all contenders that run."""
    able = sum(contender.skipped is None for contender in case.contenders)
    return max(1, able * case.num_tokens // 1000)


def _say(case: Case, measured: Sequence[dict[str, Any]], progress: ProgressReporter) -> None:
    """One line a case."""
    parts = []
    for contender in measured:
        chunk = "" if contender["chunk_size"] is None else f" {contender['chunk_size']}"
        seconds = sorted(sum(run["seconds"].values()) for run in contender["runs"])
        shown = f"{seconds[len(seconds) // 2]:.3g} s" if seconds else contender["reason"]
        parts.append(f"{contender['path']}{chunk}: {shown}")
    print(f"{case.key}: {', '.join(parts)}", flush=True)
