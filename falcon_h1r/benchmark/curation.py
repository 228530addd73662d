"""suite=curation: corpora through recipes/curate.py, their memory watched; then the smallest again, killed on its way.

Every size runs in a process of its own, whose memory, workers included, is sampled while it runs. The smallest is run
again and killed with SIGKILL at drawn moments until it ends; what comes out is compared byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from falcon_h1r.benchmark.bars import CURATION_MEMORY_GIB
from falcon_h1r.benchmark.corpus import evaluation_rows, write_corpus
from falcon_h1r.benchmark.figures import command_line, figures_path
from falcon_h1r.benchmark.tables import GIB, table
from falcon_h1r.checkpoint.files import replace_text
from falcon_h1r.config import Config
from falcon_h1r.config_tools import BenchmarkSuiteConfig
from falcon_h1r.data.jsonl import write_jsonl
from falcon_h1r.tracking import environment_versions

OUTPUTS = ("traces.jsonl", "dropped.jsonl", "summary.json", "data_report.html")
SAMPLE_SECONDS = 0.25
MOST_KILLS = 8


@dataclass(frozen=True, slots=True)
class CurationRun:
    """One size."""

    num_rows: int
    source_bytes: int
    seconds: float
    peak_bytes: int  # resident, of all processes together; pages that they share count in each
    num_processes: int
    throughput: dict[str, Any]
    funnel: dict[str, int]


def run_curation_suite(config: Config, folder: Path) -> None:
    """Measure, and write the page with its figures."""
    settings = config.benchmark
    write_jsonl(folder / "evaluation.jsonl", evaluation_rows())
    runs = [measure(folder, num_rows, settings, config.seed) for num_rows in sorted(settings.curation_rows)]
    smallest = runs[0].num_rows
    num_kills, equal = kill_and_compare(folder, smallest, settings, runs[0].seconds, config.seed)
    versions = environment_versions()
    figures = {
        "environment": {"hardware": versions["processor"], "revision": versions["git_revision"]},
        "command": command_line(),
        "num_workers": settings.curation_workers,
        "runs": [asdict(run) for run in runs],
        "kills": {"rows": smallest, "kills": num_kills, "equal": equal},
    }
    replace_text(figures_path(settings.page), json.dumps(figures, indent=1) + "\n")
    replace_text(Path(settings.page), "\n".join(page_lines(figures)))


def command(folder: Path, num_rows: int, settings: BenchmarkSuiteConfig, seed: int, run: Path) -> list[str]:
    """The recipe on a corpus, which is written first where it is not there."""
    source = folder / f"corpus-{num_rows}.jsonl"
    write_corpus(source, num_rows, seed)
    fields = "reasoning_field:reasoning,teacher_field:teacher,domain_field:domain,difficulty_field:difficulty"
    return [
        sys.executable,
        "recipes/curate.py",
        f"run_dir={run}",
        "resume=true",
        f"+curate.sources={{corpus:{{path:{source},{fields}}}}}",
        f"+curate.decontamination.sets={{held_out:{{path:{folder / 'evaluation.jsonl'}}}}}",
        "curate.duplicates.of=trace",
        "curate.weights.measured_by=pass_rate",
        "curate.keep_teacher=by_coverage",
        "+curate.mix.domain_token_shares={math:0.65,science:0.25,other:0.1}",
        f"curate.work.num_workers={settings.curation_workers}",
    ]


def measure(folder: Path, num_rows: int, settings: BenchmarkSuiteConfig, seed: int) -> CurationRun:
    run = folder / f"run-{num_rows}"
    line = command(folder, num_rows, settings, seed, run)
    started = time.perf_counter()
    with subprocess.Popen(line) as process:
        peak_bytes, num_processes = watch_memory(process)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"curation of {num_rows:,} rows ended with status {process.returncode}")
    return CurationRun(
        num_rows=num_rows,
        source_bytes=(folder / f"corpus-{num_rows}.jsonl").stat().st_size,
        seconds=seconds,
        peak_bytes=peak_bytes,
        num_processes=num_processes,
        throughput=json.loads((run / "throughput.json").read_text()),
        funnel=json.loads((run / "summary.json").read_text())["funnel"],
    )


def watch_memory(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Largest resident memory of a process and its children together, and how many they were then."""
    root, peak, number = psutil.Process(process.pid), 0, 0
    while process.poll() is None:
        sizes = []
        try:
            for one in [root, *root.children(recursive=True)]:
                try:
                    sizes.append(one.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            break
        if sum(sizes) > peak:
            peak, number = sum(sizes), len(sizes)
        time.sleep(SAMPLE_SECONDS)
    return peak, number


def kill_and_compare(
    folder: Path, num_rows: int, settings: BenchmarkSuiteConfig, seconds: float, seed: int
) -> tuple[int, bool]:
    """How often a run was killed before it ended, and whether it wrote what an undisturbed one wrote."""
    run, rng = folder / "run-killed", random.Random(seed)
    line = command(folder, num_rows, settings, seed, run)
    for number in range(MOST_KILLS + 1):
        with subprocess.Popen(line) as process:
            try:
                process.wait(timeout=rng.uniform(0.1, 0.5) * seconds if number < MOST_KILLS else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                continue
        if process.returncode:
            raise RuntimeError(f"curation ended with status {process.returncode}")
        return number, digests(run) == digests(folder / f"run-{num_rows}")
    raise AssertionError("the last try has no deadline")


def digests(run: Path) -> dict[str, str]:
    found = {}
    for name in OUTPUTS:
        with open(run / name, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# -----------------------------------------------------------------------------
# The page


def page_lines(figures: dict[str, Any]) -> list[str]:
    runs, kills = figures["runs"], figures["kills"]
    target = runs[-1]["throughput"]["target"]
    growth = runs[-1]["peak_bytes"] - runs[0]["peak_bytes"]
    more_rows = max(1, runs[-1]["num_rows"] - runs[0]["num_rows"])
    fits = max(run["peak_bytes"] for run in runs) <= CURATION_MEMORY_GIB * GIB
    return [
        "# Curation",
        "",
        f"    {figures['command']}",
        "",
        *(f"- {name}: {value}" for name, value in figures["environment"].items()),
        f"- {figures['num_workers']} worker processes, each with a verifier's worker of its own",
        "- generated rows, four traces a problem; a share of them with each fault that curation looks for",
        "",
        "Everything is switched on: teacher by coverage, decontamination, verification, pass rates of the traces, "
        "near-duplicates, token shares. Memory is the sum of what is resident in all processes, shared pages counted "
        "in each.",
        "",
        *table(
            ["rows", "source, MB", "seconds", "rows/s", "peak memory, GiB", "processes", "kept"],
            [
                [
                    f"{run['num_rows']:,}",
                    f"{run['source_bytes'] / 1e6:,.0f}",
                    f"{run['seconds']:.0f}",
                    f"{run['num_rows'] / run['seconds']:,.0f}",
                    f"{run['peak_bytes'] / GIB:.2f}",
                    str(run["num_processes"]),
                    f"{run['funnel']['kept']:,}",
                ]
                for run in runs
            ],
        ),
        f"At most {CURATION_MEMORY_GIB} GiB: {'met' if fits else 'missed'}. From the smallest to the largest corpus "
        f"memory grew by {growth / 2**20:,.0f} MiB, {growth / more_rows:,.0f} bytes a row: arrays of numbers, in the "
        "one process that decides over the whole corpus. The others' does not grow.",
        "",
        f"Killed with SIGKILL {kills['kills']} times on its way and begun again each time, the run of "
        f"{kills['rows']:,} rows wrote {'the same bytes' if kills['equal'] else 'OTHER BYTES'} as the undisturbed one.",
        "",
        "## Stages",
        "",
        f"Time of one process on the largest corpus, and what it means for {target['traces']:,} traces of "
        f"{target['tokens'] // target['traces']:,} tokens on {target['cores']} cores: stages whose time goes with the "
        "text by tokens, verdicts by traces.",
        "",
        *table(
            ["stage", "seconds", "traces/s", "tokens/s", "hours at that scale"],
            [
                [
                    stage,
                    f"{row['seconds']:.1f}",
                    f"{row['traces_per_second']:,.0f}",
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['target_hours']:.2f}",
                ]
                for stage, row in runs[-1]["throughput"]["stages"].items()
            ],
        ),
    ]
