"""suite=intervals: how often the evaluation's 95% intervals hold the truth, in simulated benchmarks.

A problem's chance of a right sample is drawn from a Beta distribution, its n samples from that chance; the truth is the
distribution's mean. Every simulated benchmark has problems of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from falcon_h1r.benchmark.figures import command_line
from falcon_h1r.benchmark.tables import table
from falcon_h1r.config import Config
from falcon_h1r.distributed.world import World
from falcon_h1r.evaluation.intervals import estimate_means
from falcon_h1r.tracking import Tracker, environment_versions

NUM_PROBLEMS = (30, 50, 100, 200, 500)
AT_ONCE = 1000  # simulations that share their resamples


@dataclass(frozen=True, slots=True)
class Setting:
    """Benchmarks of one kind."""

    name: str
    alpha: float  # of the Beta distribution
    beta: float
    num_samples: int  # of each problem

    @property
    def truth(self) -> float:
        return self.alpha / (self.alpha + self.beta)


SETTINGS = (
    Setting("mixed", 0.5, 1.0, 16),
    Setting("mixed", 0.5, 1.0, 1),
    Setting("two kinds", 0.3, 0.3, 16),
    Setting("easy", 2.0, 0.5, 16),
    Setting("very easy", 4.0, 0.5, 16),
    Setting("hard", 0.3, 1.5, 16),
    Setting("very hard", 0.2, 2.0, 16),
)


def run_intervals_suite(config: Config, folder: Path, world: World) -> None:
    """Simulate every setting and write the page."""
    rounds = config.benchmark.repeats
    rows = []
    with (
        Tracker(folder, "benchmark", config.tracking, world.is_main, asdict(config)) as tracker,
        tracker.progress(len(SETTINGS) * len(NUM_PROBLEMS) * rounds, "intervals", "rounds") as progress,
    ):
        for setting in SETTINGS:
            shares = [
                coverage(setting, num_problems, rounds, config.seed, lambda: progress.advance())
                for num_problems in NUM_PROBLEMS
            ]
            about = f"{setting.name}, Beta({setting.alpha:g}, {setting.beta:g})"
            rows.append(
                [about, f"{setting.truth:.0%}", str(setting.num_samples), *(f"{100 * share:.1f}" for share in shares)]
            )
    Path(config.benchmark.page).write_text(render(rows, rounds))


def coverage(
    setting: Setting, num_problems: int, rounds: int, seed: int, on_round: Callable[[], None] = lambda: None
) -> float:
    """The share of rounds x AT_ONCE benchmarks whose interval holds the truth."""
    held = 0
    for number in range(rounds):
        generator = np.random.default_rng((seed, number))
        chances = generator.beta(setting.alpha, setting.beta, size=(num_problems, AT_ONCE))
        shares = generator.binomial(setting.num_samples, chances) / setting.num_samples
        estimates = estimate_means(shares, seed + number)
        held += sum(estimate.low <= setting.truth <= estimate.high for estimate in estimates)
        on_round()
    return held / (rounds * AT_ONCE)


def render(rows: list[list[str]], rounds: int) -> str:
    """Markdown."""
    return "\n".join(
        [
            "# How often intervals hold the truth",
            "",
            f"In percent of {rounds * AT_ONCE:,} simulated benchmarks a cell; 95 is what they promise. The chance of a "
            "right sample differs from problem to problem as said. [The intervals](../evaluation.md#what-is-computed)",
            "",
            f"Revision {environment_versions()['git_revision']}. Made by",
            "",
            f"    {command_line()}",
            "",
            *table(["problems", "mean", "samples", *(f"{number} problems" for number in NUM_PROBLEMS)], rows),
        ]
    )
