"""The image's recipe agrees with the pins and with the tree. It is read here, not built."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = (ROOT / "constraints-gpu.txt").read_text()
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
]  # fmt: skip
INSTRUCTIONS = "ARG FROM RUN ENV WORKDIR COPY".split()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, each on one line."""
    text = (ROOT / "launch" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def is_ignored(path: str) -> bool:
    return any(
        fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in Path(path).parts for pattern in IGNORED
    )  # fmt: skip


def test_every_instruction_is_one_that_docker_knows() -> None:
    assert {name for name, _ in instructions()} <= set(INSTRUCTIONS)
    assert [name for name, _ in instructions()][:2] == ["ARG", "FROM"]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copied = [source for name, argument in instructions() if name == "COPY" for source in argument.split()[:-1]]
    assert {"constraints-gpu.txt", "pyproject.toml", "."} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source == "." or not is_ignored(source), source


def test_what_setuptools_reads_is_there_before_the_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    steps = instructions()
    install = next(index for index, (_, argument) in enumerate(steps) if "--editable" in argument)
    copied = {source for name, argument in steps[:install] if name == "COPY" for source in argument.split()[:-1]}
    assert {project["readme"], *project["license-files"], "falcon_h1r/__init__.py"} <= copied


def test_pip_runs_what_the_constraints_say() -> None:
    documented = re.findall(r"^#   (pip install --constraint .*)$", CONSTRAINTS, flags=re.MULTILINE)
    run = [argument for name, argument in instructions() if name == "RUN" and argument.startswith("pip ")]
    assert len(documented) == 2
    assert run == documented


def test_the_image_has_the_cuda_of_the_pinned_torch() -> None:
    toolkit = re.search(r"^cuda-toolkit==(\d+\.\d+)\.", CONSTRAINTS, flags=re.MULTILINE)
    image = next(argument for name, argument in instructions() if name == "ARG")
    assert toolkit is not None
    assert image.startswith(f"CUDA={toolkit[1]}.")
    assert "-devel-" in next(argument for name, argument in instructions() if name == "FROM")  # nvcc


def test_the_constraints_pin_what_the_image_compiles() -> None:
    gpu = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    names = [re.split(r"[<>=!;\[ ]", requirement)[0] for requirement in gpu]
    assert [name for name in names if not re.search(rf"^{re.escape(name)}==", CONSTRAINTS, flags=re.MULTILINE)] == []
