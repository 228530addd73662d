"""An examination of the quickstart's tiny model, in any world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from falcon_h1r import entry
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config
from falcon_h1r.distributed.world import World
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import Finding

ALONE = World(0, 1, torch.device("cpu"))
RunOnRanks = Callable[[int, Callable[[World], Any]], list[Any]]


def configured(*overrides: str) -> Config:
    entry.store_schema()
    quick = ["doctor.file_mib=4", "doctor.collective_mib=[0.01,0.1]", "doctor.seconds=60"]
    with initialize_config_dir(str(Path(__file__).parents[2] / "configs"), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", [*quick, *overrides]))
    assert isinstance(config, Config)
    check_config(config)
    return config


def examination(folder: Path, world: World = ALONE, *overrides: str) -> Examination:
    return Examination(configured(*overrides), folder, world)


def statuses(findings: Sequence[Finding]) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


def only(findings: Sequence[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def assert_green(findings: Sequence[Finding]) -> None:
    assert findings and {finding.status for finding in findings} <= {"ok", "skipped"}, findings
