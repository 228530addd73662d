"""Habits of the house that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}
NOT_SOURCE = {".git", ".venv", "runs", "outputs", "wandb", "build", "__pycache__"}
# Absolute paths below these folders exist on one machine only.
MACHINE_FOLDERS = ("home", "Users", "root", "work")
MACHINE_PATH = re.compile(rf"(?<![\w.$}}/-])/(?:{'|'.join(MACHINE_FOLDERS)})/")


def repository_files() -> list[Path]:
    """What git tracks, or every source file below the root where the tree is no checkout."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0:
        found = [ROOT / name for name in listing.stdout.splitlines()]
    else:
        found = [path for path in ROOT.rglob("*") if not set(path.relative_to(ROOT).parts) & NOT_SOURCE]
    return sorted(path for path in found if path.is_file())


FILES = repository_files()
CONFIGS = [path for path in FILES if path.suffix in (".yaml", ".yml")]


def text_of(path: Path) -> str | None:
    """The file's text, or None for a binary."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def test_no_module_goes_without_a_name() -> None:
    nameless = [str(path.relative_to(ROOT)) for path in FILES if path.stem.lower() in NAMELESS]
    assert not nameless, f"name these after what they hold: {nameless}"


def test_no_recipe_hides_a_module_of_python() -> None:
    """Python looks beside a script first: a recipes/select.py would be every recipe's `import select`."""
    hidden = [path.name for path in FILES if path.parent.name == "recipes" and path.stem in sys.stdlib_module_names]
    assert not hidden


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_parses(path: Path) -> None:
    parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert parsed is None or isinstance(parsed, dict)


def test_no_file_names_a_machine_path() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        if (text := text_of(path)) is not None
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("folder", MACHINE_FOLDERS)
@pytest.mark.parametrize("line", ["cd /{}/ada/run", 'path = "/{}/main"', "--cache=/{}/.cache"])
def test_a_machine_path_is_recognised(line: str, folder: str) -> None:
    assert MACHINE_PATH.search(line.format(folder))


@pytest.mark.parametrize("line", ["runs/{}/x", "$HOME/{}/x", "../{}/data", "a /{} of art", "one/{}"])
def test_an_ordinary_slash_is_left_alone(line: str) -> None:
    assert not any(MACHINE_PATH.search(line.format(folder)) for folder in MACHINE_FOLDERS)
