"""How a recipe starts and ends: Hydra composes, the schema checks, ranks are launched, one folder receives the run.

A recipe is a function of (config, run folder, world); `run_recipe` does the rest. What a user got wrong ends
in one line on stderr and exit status 2, before a model is loaded; anything else keeps its traceback.
docs/supervision.md has all that ends a run, and the exit statuses.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_config, not_built_yet
from falcon_h1r.config_errors import CONFIG_ERRORS, one_line, refuse_unknown_keys
from falcon_h1r.config_run import SupervisionConfig
from falcon_h1r.distributed.deepspeed_settings import check_deepspeed
from falcon_h1r.distributed.slurm import requeue
from falcon_h1r.distributed.verdicts import LAUNCHER, STOPPED, USAGE_ERROR
from falcon_h1r.entry_folder import OpenRun, check_folder, differences, flatten, give_back_folder, open_run
from falcon_h1r.entry_sweep import sweep_if_asked
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from falcon_h1r.distributed.supervision import Supervisor
    from falcon_h1r.distributed.world import World

CONFIGS = Path(__file__).parent.parent / "configs"

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
    accept_local_rank()
    outcome: Config | InputError
    try:
        config = _compose(stage)
        if config is None:
            return  # --cfg, --info: Hydra answered by itself
        if config.dry_run:
            _dry_run(config, stage)
            return
        outcome = config
        if not launched():
            check_inputs(config)
            check_folder(config)
            _launch(config)
    except CONFIG_ERRORS as error:
        if not launched():
            _exit_with_mistake(error)
        outcome = InputError(one_line(error))  # the others are told: they need not have made the same mistake
    try:
        status = _run_rank(outcome, stage, recipe, check_inputs)
    except InputError as error:
        _exit_with_mistake(error)
    if status:
        sys.exit(status)


def _exit_with_mistake(error: BaseException) -> NoReturn:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def launched() -> bool:
    """Whether a launcher already started this process as one of several ranks."""
    return "LOCAL_RANK" in os.environ or "RANK" in os.environ


def accept_local_rank() -> None:
    """Take `--local_rank N`, as some launchers add it, from the command line; LOCAL_RANK in the environment wins."""
    kept, arguments = sys.argv[:1], iter(sys.argv[1:])
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if name in ("--local_rank", "--local-rank"):
            os.environ.setdefault("LOCAL_RANK", value if has_value else next(arguments, "0"))
        else:
            kept.append(argument)
    sys.argv[:] = kept


@cache
def store_schema() -> None:
    """Tell Hydra of the settings, their types and defaults: what configs/config.yaml calls `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)


def _compose(stage: str) -> Config | None:
    """The config of this command line, checked; None where Hydra was asked for something else than a run."""
    sweep_if_asked()
    store_schema()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing its own summary
    composed: list[DictConfig] = []  # the work begins after Hydra, out of reach of its own error reports

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def compose(config: DictConfig) -> None:
        composed.append(config)

    compose()
    if not composed:
        return None
    config = _typed(composed[0])
    _refuse_unbuilt(config, stage)
    if not config.dry_run:
        check_deepspeed(config.engine)
    return config


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


def _dry_run(config: Config, stage: str) -> None:
    """Describe the run instead of running it. Files that a run needs may be missing, those named may not."""
    from falcon_h1r.dry_run import describe

    if os.environ.get("RANK", "0") == "0":
        print(describe(config, stage))


def _launch(config: Config) -> None:
    """Go on in as many processes as the config asks for, where that is more than one."""
    if config.launch.num_nodes > 1:
        raise InputError(f"launch.num_nodes={config.launch.num_nodes}: has to be started by a launcher on every node")
    if config.launch.num_processes > 1:
        from falcon_h1r.distributed.launcher import relaunch

        relaunch(config.launch.num_processes)


def _run_rank(outcome: Config | InputError, stage: str, recipe: Recipe, check_inputs: Check) -> int:
    """This rank of the run, from joining the others to leaving together; its exit status.

    Raises:
        InputError: in a run of one rank. Of several, the supervisor tells it, and everything else, and ends them all.
    """
    import transformers

    from falcon_h1r.distributed.launcher import end_with_launcher
    from falcon_h1r.distributed.supervision import Supervisor
    from falcon_h1r.distributed.watch import StopRequested
    from falcon_h1r.distributed.world import World

    limits = outcome.supervision if isinstance(outcome, Config) else SupervisionConfig()
    world = World.start(supervision=limits)
    supervisor = Supervisor(world, limits)
    end_with_launcher()
    world = replace(world, watch=supervisor)
    if not (world.is_main and sys.stderr.isatty()):
        transformers.utils.logging.disable_progress_bar()
    run: OpenRun | None = None
    try:
        config = agree_on_config(world, outcome)
        # Rank 0 decides once what run this is; the others take its word for it.
        run = world.on_main(lambda: _open_run(config, stage, world.size, check_inputs))
        supervisor.open_log(run.folder)
        world = world.sharing_rows(config.engine.sequence_parallel, timedelta(seconds=limits.collective_seconds))
        with supervisor.interruptible():
            recipe(run.config, run.folder, world)
    except StopRequested as stop:
        status, words = STOPPED, str(stop)
        supervisor.leave(status, lambda: _tell_of_stop(supervisor, words))
    except BaseException as error:
        if isinstance(error, InputError) and world.is_main and run is not None:
            give_back_folder(run)
        if world.size == 1:
            raise
        supervisor.fail(error)
    else:
        status = 0
        supervisor.leave(status)
    world.stop()
    return status


def agree_on_config(world: World, outcome: Config | InputError) -> Config:
    """This rank's config, which has to be every rank's: each has composed it from a command line of its own.

    Raises:
        InputError: on all ranks, if any has met one, or where settings differ.
    """
    settings = flatten(asdict(outcome)) if isinstance(outcome, Config) else {}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    told = world.gather((socket.gethostname(), digest, str(outcome) if isinstance(outcome, InputError) else None))
    for rank, (host, _, mistake) in enumerate(told):
        if mistake is not None:
            raise InputError(mistake if rank == 0 else f"rank {rank} ({host}): {mistake}")
    if len({digest for _, digest, _ in told}) > 1:
        first, *others = world.gather(settings)
        for rank, other in enumerate(others, start=1):
            for key, ours, theirs in differences(first, other):
                raise InputError(f"{key}: {ours} on rank 0, but {theirs} on rank {rank} ({told[rank][0]})")
    assert isinstance(outcome, Config)
    return outcome


def _open_run(config: Config, stage: str, num_ranks: int, check_inputs: Check) -> OpenRun:
    if launched() and LAUNCHER not in os.environ:  # otherwise checked before there were ranks
        check_inputs(config)
    return open_run(config, stage, num_ranks)


def _tell_of_stop(supervisor: Supervisor, words: str) -> None:
    """Rank 0's last words when all ranks have left because of a stop, among them the recipe's own; and slurm's part."""
    print(f"{supervisor.stop_signal or 'stop'}: {words or 'stopped'}", file=sys.stderr, flush=True)
    job_id = os.environ.get("SLURM_JOB_ID")
    if supervisor.stop_signal == "SIGUSR1" and supervisor.settings.requeue and job_id:
        print(requeue(job_id), file=sys.stderr, flush=True)


def run_name(config: Config) -> str:
    """The name under which a run's stages are grouped: that of its folder."""
    return Path(config.run_dir or config.name).resolve().name
