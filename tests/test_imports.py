"""Who may import whom: the floors of the house, read from the imports of every file.

Imports go down, or sideways to a room of the same floor as long as the rooms form no circle. The two stages
never import each other. What has no tensors imports no torch, and each heavy engine is imported in one file.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "falcon_h1r"

# From the ground up. data.packing, with its plan, stands apart from data: PackedBatch, the model's input, lives there.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "config"),
    ("data.packing",),
    ("model", "distributed"),
    ("data", "rollout", "verifier", "checkpoint", "tracking", "progress", "page", "training_run"),
    ("scaling",),
    ("sft", "grpo", "evaluation", "export", "benchmark"),
    ("entry", "dry_run", "planning", "doctor"),
    ("recipes",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
STAGES = ("sft", "grpo")
WITHOUT_TORCH = (*FLOORS[0], "verifier", "data")
IMPORTED_IN_ONE_FILE = ("deepspeed", "vllm", "wandb")

ENTRANCE = ROOT / PACKAGE / "__init__.py"
SOURCES = sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
MODULES = [path for path in SOURCES if path != ENTRANCE]


def module_name(path: Path) -> str:
    """`falcon_h1r/data/packing.py` -> `falcon_h1r.data.packing`; a package is named by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room a module stands in: `falcon_h1r.sft.loop` -> `sft`, `falcon_h1r.config_checks` -> `config`."""
    root, *rest = module.split(".")
    if root == "recipes":
        return root
    if rest[0] == "data" and rest[1:2] in (["packing"], ["packing_plan"]):
        return "data.packing"
    return next((room for room in FLOOR_OF if rest[0].startswith(f"{room}_")), rest[0])


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module the file imports, at its top or inside a function, by its full dotted name.

    `from a import b` counts as `a.b`: b may be a module, and a's own room is a prefix of it either way.
    """
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*anchor, *([node.module] if node.module else [])])
            found.update(f"{source}.{alias.name}" for alias in node.names)
    return frozenset(found)


def rooms_imported_by(path: Path) -> set[str]:
    ours = (name for name in imports_of(path) if name.split(".")[0] in (PACKAGE, "recipes"))
    return {room_of(name) for name in ours if name != PACKAGE and not name.endswith("__version__")}


def room_dependencies() -> dict[str, dict[str, str]]:
    """room -> the other rooms it imports -> one file that does."""
    dependencies: dict[str, dict[str, str]] = {room: {} for room in FLOOR_OF}
    for path in MODULES:
        room = room_of(module_name(path))
        for target in rooms_imported_by(path) - {room}:
            dependencies.setdefault(room, {}).setdefault(target, str(path.relative_to(ROOT)))
    return dependencies


def imports_library(path: Path, library: str) -> bool:
    return any(name.split(".")[0] == library for name in imports_of(path))


def test_every_module_stands_on_a_floor() -> None:
    homeless = [str(path.relative_to(ROOT)) for path in MODULES if room_of(module_name(path)) not in FLOOR_OF]
    assert not homeless, f"no floor in tests/test_imports.py for {homeless}"


def test_the_package_itself_imports_none_of_its_rooms() -> None:
    assert not rooms_imported_by(ENTRANCE)


def test_imports_go_down() -> None:
    upward = [
        f"{path} imports {target}, which stands above {room}"
        for room, targets in room_dependencies().items()
        for target, path in targets.items()
        if FLOOR_OF.get(target, 0) > FLOOR_OF.get(room, 0)
    ]
    assert not upward, "\n".join(upward)


def test_rooms_form_no_circle() -> None:
    try:
        TopologicalSorter(room_dependencies()).prepare()
    except CycleError as error:
        pytest.fail("rooms import each other in a circle: " + " <- ".join(error.args[1]))


def test_stages_never_import_each_other() -> None:
    dependencies = room_dependencies()
    for stage in STAGES:
        neighbours = {other: dependencies[stage][other] for other in STAGES if other in dependencies[stage]}
        assert not neighbours, f"{stage} imports {neighbours}"


@pytest.mark.parametrize("library", IMPORTED_IN_ONE_FILE)
def test_each_engine_is_imported_in_one_file(library: str) -> None:
    importers = [str(path.relative_to(ROOT)) for path in SOURCES if imports_library(path, library)]
    assert len(importers) <= 1, f"{library} is imported in {importers}"


def test_rooms_without_tensors_name_no_torch() -> None:
    importers = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if room_of(module_name(path)) in WITHOUT_TORCH and imports_library(path, "torch")
    ]
    assert not importers, f"torch is imported in {importers}"


def test_config_types_and_verifier_load_no_torch() -> None:
    rooms = {*FLOORS[0], "verifier"}
    names = [module_name(path) for path in MODULES if path.name != "__main__.py"]
    modules = [name for name in names if room_of(name) in rooms]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "False", f"importing {modules} loads torch"
