"""Packages against their pins and minima, the devices and their software, and whether all ranks have the same.

The pins are the tested set (constraints.txt on a CPU, constraints-gpu.txt on GPUs): another version is worth a look.
The minima of pyproject.toml are what the code needs: less is red.
"""

from __future__ import annotations

import platform
import re
import shutil
import socket
import subprocess
import tomllib
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, SKIPPED, WARN, Finding, graded, name_ranks

ROOT = Path(__file__).resolve().parents[2]  # of the checkout; where the package is installed alone, no pins are there
DRIVER_FILE = Path("/proc/driver/nvidia/version")
SHOWN = 5  # packages of a kind named in one line


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rank runs on. All but host and devices has to be the same on every rank."""

    host: str
    python: str
    packages: dict[str, str]  # of the pinned ones
    cuda: str  # that torch was built for; empty on a CPU
    nccl: str
    driver: str
    device: str  # the GPU's name and memory, or "CPU"
    device_id: str  # the GPU's own; empty on a CPU


def check_versions(examination: Examination) -> list[Finding]:
    """Own packages, and everybody's against rank 0's."""
    world = examination.world
    on_gpu = world.device.type == "cuda"
    pins = read_pins(ROOT / ("constraints-gpu.txt" if on_gpu else "constraints.txt"))
    facts = gather_facts(world.device, pins)
    by_rank = world.gather(facts)
    extras = {"gpu"} if on_gpu else set()
    needed = {"deepspeed"} if examination.config.engine.name == "deepspeed" else set()
    return [
        check_python(facts.python, ROOT / "pyproject.toml"),
        check_minima(read_minima(ROOT / "pyproject.toml", extras, needed), needed),
        check_pins(pins, facts.packages),
        check_device(facts, on_gpu),
        check_ranks_alike(by_rank),
    ]


def check_python(version: str, project: Path) -> Finding:
    """The interpreter."""
    if not project.is_file():
        return Finding("python", OK, version)
    wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["requires-python"]
    status = OK if SpecifierSet(wanted).contains(version) else FAILED
    return graded("python", status, version, f"install Python {wanted}")


def check_minima(minima: list[Requirement], needed: set[str]) -> Finding:
    """What pyproject.toml demands. A missing fused kernel only costs speed; see the kernels' lines."""
    violated = []
    for requirement in minima:
        installed = _installed(requirement.name)
        if installed is None and (requirement.name in needed or not _is_optional(requirement)):
            violated.append(f"{requirement.name} is missing, {requirement.specifier or 'any'} needed")
        elif installed is not None and not requirement.specifier.contains(installed, prereleases=True):
            violated.append(f"{requirement.name} {installed}, {requirement.specifier} needed")
    if not minima:
        return Finding("minima", SKIPPED, "no pyproject.toml beside the package", "run from a checkout to compare")
    measured = _listed(violated) if violated else f"{len(minima)} requirements met"
    return graded("minima", FAILED if violated else OK, measured, "install what pyproject.toml asks for (README)")


def check_pins(pins: dict[str, str], packages: dict[str, str]) -> Finding:
    """The tested versions. Pinned packages that are not installed do not count: some are a test's."""
    if not pins:
        return Finding("pins", SKIPPED, "no constraints beside the package", "run from a checkout to compare")
    differing = [
        f"{name} {packages[name]} (pin {pin})"
        for name, pin in pins.items()
        if name in packages and packages[name].partition("+")[0] != pin
    ]
    measured = _listed(differing) if differing else f"{len(packages)} packages as pinned"
    advice = "untested together: install with --constraint, or rerun the tests on this set"
    return graded("pins", WARN if differing else OK, measured, advice)


def check_device(facts: Facts, on_gpu: bool) -> Finding:
    """The GPU and the software below torch."""
    if not on_gpu:
        idle = DRIVER_FILE.exists() or shutil.which("nvidia-smi") is not None
        advice = "a GPU's driver is here, but torch sees none: install torch's CUDA build; CUDA_VISIBLE_DEVICES?"
        return graded("device", FAILED if idle else OK, f"CPU, torch {torch.__version__}", advice)
    measured = f"{facts.device}; CUDA {facts.cuda}, NCCL {facts.nccl}, driver {facts.driver}"
    major, minor = torch.cuda.get_device_capability()
    if not _is_built_for(major, minor, torch.cuda.get_arch_list()):
        advice = f"this torch holds no code for sm_{major}{minor}: install a build that lists it"
        return Finding("device", FAILED, measured, advice)
    status = OK if torch.cuda.is_bf16_supported(including_emulation=False) else WARN
    return graded("device", status, measured, "no bfloat16 in hardware: set model.dtype=float32")


def check_ranks_alike(by_rank: list[Facts]) -> Finding:
    """Every rank the same software and kind of GPU, and no GPU twice."""
    first = by_rank[0]
    hosts = Counter(facts.host for facts in by_rank)
    differences = []
    for rank, facts in enumerate(by_rank[1:], start=1):
        for key in ("python", "cuda", "nccl", "driver", "device"):
            if (theirs := getattr(facts, key)) != getattr(first, key):
                differences.append(f"{name_ranks([rank])} ({facts.host}): {key} {theirs}, not {getattr(first, key)}")
        for name in sorted(first.packages.keys() | facts.packages.keys()):
            ours, theirs = (side.packages.get(name, "missing") for side in (first, facts))
            if ours != theirs:
                differences.append(f"{name_ranks([rank])} ({facts.host}): {name} {theirs}, not {ours}")
    used = Counter((facts.host, facts.device_id) for facts in by_rank if facts.device_id)
    differences += [f"{count} ranks on one GPU of {host}" for (host, _), count in used.items() if count > 1]
    shown = f"{len(by_rank)} on {', '.join(f'{host} ({count})' for host, count in list(hosts.items())[:4])}"
    shown += f" and {len(hosts) - 4} more hosts" if len(hosts) > 4 else ""
    measured = _listed(differences) if differences else shown
    return graded("ranks alike", FAILED if differences else OK, measured, "one environment and one GPU a rank for all")


# -----------------------------------------------------------------------------
# Facts


def gather_facts(device: torch.device, pins: dict[str, str]) -> Facts:
    """Of this rank."""
    packages = {name: version for name in pins if (version := _installed(name)) is not None}
    host, python = socket.gethostname(), platform.python_version()
    if device.type != "cuda":
        return Facts(host, python, packages, "", "", "", "CPU", "")
    properties = torch.cuda.get_device_properties(device)
    return Facts(
        host,
        python,
        packages,
        cuda=torch.version.cuda or "none",
        nccl=".".join(map(str, torch.cuda.nccl.version())),
        driver=_driver_version(),
        device=f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB",
        device_id=str(getattr(properties, "uuid", "")),
    )


def read_pins(constraints: Path) -> dict[str, str]:
    """Package -> version; nothing where the file is not there."""
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def read_minima(project: Path, extras: set[str], needed: set[str]) -> list[Requirement]:
    """What the package requires here, with these extras and, of the others, the packages that are needed."""
    if not project.is_file():
        return []
    tables = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    asked = [Requirement(text) for text in tables["dependencies"]]
    for extra, texts in tables.get("optional-dependencies", {}).items():
        for text in texts:
            try:
                requirement = Requirement(f"{text}{' and' if ';' in text else ' ;'} extra == '{extra}'")
            except InvalidRequirement:
                continue
            if extra == "gpu" and (extra in extras or requirement.name in needed):
                asked.append(requirement)
    return [r for r in asked if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in ("", "gpu"))]


def _is_optional(requirement: Requirement) -> bool:
    return requirement.marker is not None and "extra" in str(requirement.marker)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver_version() -> str:
    if DRIVER_FILE.is_file() and (found := re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", DRIVER_FILE.read_text())):
        return found[1]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return told.stdout.splitlines()[0].strip() if told.returncode == 0 and told.stdout.strip() else "unknown"


def _is_built_for(major: int, minor: int, architectures: list[str]) -> bool:
    """Code for sm_90 runs on 9.0 and on 9.x above it; compute_90 is compiled by the driver for anything later."""
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = re.match(r"\d+", number)
        if digits is None:
            continue
        built = divmod(int(digits[0]), 10)
        runs = built[0] == major and built[1] <= minor
        if (kind == "sm" and runs) or (kind == "compute" and built <= (major, minor)):
            return True
    return not architectures


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more
