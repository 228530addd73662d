"""How a recipe starts: Hydra composes, the schema checks, ranks are launched, one folder receives the run.

A recipe is a function of (config, run folder, world); `run_recipe` does the rest. What a user got wrong ends
in one line on stderr and exit status 2, before a model is loaded; anything else keeps its traceback.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config, not_built_yet
from falcon_h1r.config_errors import CONFIG_ERRORS, one_line, refuse_unknown_keys
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.world import World

CONFIGS = Path(__file__).parent.parent / "configs"
USAGE_ERROR = 2

Recipe = Callable[[Config, Path, "World"], Any]
Check = Callable[[Config], None]


def run_recipe(stage: str, recipe: Recipe, check_inputs: Check) -> None:
    """Run a recipe from the command line.

    Args:
        stage: names what the recipe needs built ("sft", ...) and, if no `name` is set, the run folder.
        recipe: does the work; called on every rank.
        check_inputs: looks at the files that the config names and raises InputError; called once, on plain
            CPU, before ranks are launched.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing its own summary
    composed: list[DictConfig] = []  # the work begins after Hydra, out of reach of its own error reports

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def compose(config: DictConfig) -> None:
        composed.append(config)

    try:
        if {"-m", "--multirun"} & set(sys.argv):
            raise InputError("--multirun: not supported; start the recipe once for each setting")
        compose()
        if not composed:
            return  # --cfg, --info: Hydra answered by itself
        config = _typed(composed[0])
        _refuse_unbuilt(config, stage)
        if config.dry_run:
            _dry_run(config, stage)
        else:
            check_inputs(config)
            _refuse_used_folder(config)
            _run_on_ranks(config, stage, recipe)
    except CONFIG_ERRORS as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _typed(composed: DictConfig) -> Config:
    """The composed tree as dataclasses, checked."""
    refuse_unknown_keys(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check_config(config)
    return config


def _refuse_unbuilt(config: Config, stage: str) -> None:
    unbuilt = not_built_yet(config, stage)
    if unbuilt and not config.dry_run:
        listed = ", ".join(unbuilt)
        raise InputError(f"recorded, but not acted on by this version (dry_run=true shows them): {listed}")


def _refuse_used_folder(config: Config) -> None:
    """A folder that holds a run is never written over. Rank 0 looks: when others start, it may be under way."""
    if os.environ.get("RANK", "0") != "0" or config.run_dir is None:
        return
    if (Path(config.run_dir) / "config.yaml").exists():
        raise InputError(f"run_dir={config.run_dir}: holds a run already; name another folder, or remove it")


def _dry_run(config: Config, stage: str) -> None:
    """Describe the run instead of running it. Files that a run needs may be missing, those named may not."""
    from falcon_h1r.dry_run import describe

    if os.environ.get("RANK", "0") == "0":
        print(describe(config, stage))


def _run_on_ranks(config: Config, stage: str, recipe: Recipe) -> None:
    import transformers

    from falcon_h1r.distributed.world import World, launched, relaunch

    if config.launch.num_nodes > 1 and not launched():
        raise InputError(f"launch.num_nodes={config.launch.num_nodes}: has to be started by a launcher on every node")
    if config.launch.num_processes > 1 and not launched():
        relaunch(config.launch.num_processes)
    world = World.start(config.engine.sequence_parallel)
    if not (world.is_main and sys.stderr.isatty()):
        transformers.utils.logging.disable_progress_bar()
    try:
        # Rank 0 decides once what run this is; the others take its word for it.
        config, folder = world.on_main(lambda: _open_run(config, stage, world.size))
        recipe(config, folder, world)
    except InputError:
        if world.is_main:
            _give_back_folder(config)
        raise
    finally:
        world.stop()


def _open_run(config: Config, stage: str, num_ranks: int) -> tuple[Config, Path]:
    """Make the run folder and write config.yaml into it."""
    if config.run_dir is None:
        folder = make_free_folder(Path("runs") / (config.name if config.name != "run" else stage))
    else:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
    config.run_dir = str(folder)
    OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    print(f"run folder: {folder} (ranks: {num_ranks})", flush=True)
    return config, folder


def _give_back_folder(config: Config) -> None:
    """A folder that holds nothing but its config.yaml is free for the next try."""
    folder = Path(config.run_dir) if config.run_dir is not None else None
    if folder is not None and folder.is_dir() and [path.name for path in folder.iterdir()] == ["config.yaml"]:
        (folder / "config.yaml").unlink()


def run_name(config: Config) -> str:
    """The name under which a run's stages are grouped: that of its folder."""
    return Path(config.run_dir or config.name).resolve().name


def make_free_folder(wanted: Path) -> Path:
    """Make `wanted`, or the first of wanted-2, wanted-3, ... that does not exist yet."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError
