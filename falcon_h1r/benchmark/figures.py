"""The figures of a page as a JSON file beside it: what is measured is kept case by case, and read back.

    {"environment": {...}, "peak": {...}, "shape": {...}, "commands": [...], "cases": [case, ...]}

A case holds its key and sizes, the operations of its forward pass, the revision it was measured at, and for each
contender either its runs or why there are none.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from falcon_h1r.benchmark.cases import Case
from falcon_h1r.types import InputError

_ABSOLUTE_PATH = re.compile(r"(?<=[=\[,])/(?:[^\s,\]'/]+/)*")


@dataclass(slots=True)
class Figures:
    """Everything measured for one page."""

    environment: dict[str, str]
    peak: dict[str, Any]  # flops_per_second, source
    shape: dict[str, Any]  # of the model: architecture, num_layers, dtype
    commands: list[str] = field(default_factory=list)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)  # by key, in the order measured

    def add(self, case: dict[str, Any]) -> None:
        self.cases.pop(case["key"], None)
        self.cases[case["key"]] = case

    def holds(self, case: Case) -> bool:
        """Whether the very same case was measured."""
        kept, wanted = self.cases.get(case.key), case.as_dict()
        if kept is None or len(kept["contenders"]) != len(case.contenders):
            return False
        pairs = zip(kept["contenders"], wanted.pop("contenders"), strict=True)
        return all(kept[name] == value for name, value in wanted.items()) and all(
            theirs[name] == value for theirs, ours in pairs for name, value in ours.items()
        )

    def of_part(self, part: str) -> list[dict[str, Any]]:
        """Short rows first."""
        found = [case for case in self.cases.values() if case["part"] == part]
        return sorted(found, key=lambda case: case["num_tokens"])

    def write(self, path: Path) -> None:
        """Beside, then renamed: a killed run leaves the last whole file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "environment": self.environment,
            "peak": self.peak,
            "shape": self.shape,
            "commands": self.commands,
            "cases": list(self.cases.values()),
        }
        beside = path.with_suffix(".json.tmp")
        beside.write_text(json.dumps(content, indent=1) + "\n")
        beside.replace(path)

    @classmethod
    def read(cls, path: Path) -> Figures:
        content = json.loads(path.read_text())
        cases = {case["key"]: case for case in content.pop("cases")}
        return cls(**content, cases=cases)


def num_runs(figures: Figures) -> tuple[int, int]:
    """Fewest and most of those that the page's medians are over."""
    counts = [
        result.num_runs
        for case in figures.cases.values()
        for path in paths_of(case)
        if isinstance(result := result_of(case, path), Result)
    ]
    return (min(counts), max(counts)) if counts else (0, 0)


def command_line() -> str:
    """The command that measures, for the page: without its run folder, and absolute paths by their last part."""
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("run_dir=")]
    command = shlex.join(["python", f"recipes/{Path(sys.argv[0]).name}", *overrides])
    return _ABSOLUTE_PATH.sub(".../", command)


def figures_path(page: str) -> Path:
    return Path(page).with_suffix(".json")


def check_same_setting(path: Path, environment: Mapping[str, str], shape: Mapping[str, Any]) -> None:
    """Refuse to mix figures of two machines or models on one page.

    Raises:
        InputError: naming the first thing that differs.
    """
    if not path.exists():
        return
    kept = Figures.read(path)
    for before, now in ((kept.environment, environment), (kept.shape, shape)):
        for name in now:
            if before.get(name) != now[name]:
                raise InputError(
                    f"benchmark.page: {path} holds figures of another {name}; name another page, or remove the file"
                )


# -----------------------------------------------------------------------------
# Reading a case


@dataclass(frozen=True, slots=True)
class Result:
    """A contender's runs in one line."""

    path: str
    chunk_size: int | None
    num_runs: int
    seconds: dict[str, float]  # medians by lap
    growth_bytes: int
    peak_bytes: int
    facts: dict[str, float]

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def training_seconds(self) -> float:
        """Forward and backward."""
        return self.seconds["forward"] + self.seconds["backward"]


def result_of(case: Mapping[str, Any], path: str) -> Result | str | None:
    """The path's figures at the chunk size that won, why there are none, or None where it does not take part."""
    contenders = [contender for contender in case["contenders"] if contender["path"] == path]
    measured = [_result(contender) for contender in contenders if contender["is_finalist"] and contender["runs"]]
    if measured:
        return measured[0]
    return next((contender["reason"] for contender in contenders if contender["reason"]), None)


def paths_of(case: Mapping[str, Any]) -> list[str]:
    """In the order of the case, each once."""
    return list(dict.fromkeys(contender["path"] for contender in case["contenders"]))


def _result(contender: Mapping[str, Any]) -> Result:
    runs: Sequence[Mapping[str, Any]] = contender["runs"]
    return Result(
        contender["path"],
        contender["chunk_size"],
        len(runs),
        {lap: median(run["seconds"][lap] for run in runs) for lap in runs[0]["seconds"]},
        max(run["growth_bytes"] for run in runs),
        max(run["peak_bytes"] for run in runs),
        runs[0]["facts"],
    )
