"""The folder of a run: made, locked, or entered again to go on. Only rank 0 does any of it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from falcon_h1r.config import Config
from falcon_h1r.types import InputError

CONFIG_FILE, LOCK_FILE, LOG_FOLDER = "config.yaml", "lock", "logs"
# What a run may be continued with another value of: none of it changes what is computed, but for rounding.
FREE_ON_RESUME = (
    *("run_dir", "resume", "dry_run", "dry_run_steps", "launch", "tracking", "checkpoint", "supervision"),
    *("engine.name", "engine.zero_stage", "engine.zero_json", "engine.optimizer_offload"),
    *("engine.sequence_parallel", "engine.activation_checkpointing", "engine.activation_offload"),
    "curate.work.num_workers",
    *("evaluate.work", "evaluate.endpoint", "evaluate.max_slots", "evaluate.only", "evaluate.compare_with"),
)
# Of a stage of a pipeline, whose settings and lock are in the folder above, or of a run that has lost its settings.
TRACES_OF_A_RUN = ("metrics.jsonl", "samples.jsonl", "checkpoints", "model")
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def check_folder(config: Config) -> None:
    """Refuse a folder that cannot receive this run, before anything is loaded. A run is never written over.

    Raises:
        InputError: where it holds a run and `resume` is not set, or one of other settings, or what a run has written
            and no settings; or to resume, no folder.
    """
    if config.run_dir is None:
        if config.resume:
            raise InputError("run_dir is not set: resume=true needs the folder of the run that goes on")
        return
    recorded = Path(config.run_dir) / CONFIG_FILE
    if not recorded.exists():
        found = [name for name in TRACES_OF_A_RUN if (Path(config.run_dir) / name).exists()]
        if found:
            raise InputError(
                f"run_dir={config.run_dir}: holds {found[0]} of a run and no {CONFIG_FILE}, as a stage's folder of a "
                "pipeline does; name another folder"
            )
        return
    if not config.resume:
        raise InputError(
            f"run_dir={config.run_dir}: holds a run already; resume=true goes on with it, or name another folder"
        )
    refuse_other_settings(_read_settings(recorded), config)


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The run that rank 0 has opened for all."""

    config: Config  # with run_dir
    folder: Path
    is_new: bool


def open_run(config: Config, stage: str, num_ranks: int) -> OpenRun:
    """Make the run folder, or enter it again; lock it for as long as this process lives; write config.yaml into it.

    Evaluations share the lock: processes that enter one folder share its work (falcon_h1r.evaluation.work).

    Raises:
        InputError: as `check_folder` does, where another process holds the run, and where nothing can be written.
    """
    try:
        if config.run_dir is None:
            folder = make_free_folder(Path("runs") / (config.name if config.name != "run" else stage))
        else:
            folder = Path(config.run_dir)
            folder.mkdir(parents=True, exist_ok=True)
        _lock(folder, shared=stage == "evaluate")
    except OSError as error:
        raise InputError(f"run_dir={config.run_dir}: cannot be written to ({error.strerror})") from None
    check_folder(config)  # again: who held the lock before may have begun a run meanwhile
    goes_on = (folder / CONFIG_FILE).exists()
    if goes_on:
        changed = list(differences(_read_settings(folder / CONFIG_FILE), _settings(config)))
        for key, before, now in changed:
            if not _is_within(key, ("run_dir", "resume", "dry_run")):
                print(f"resume: {key} was {_shown(before)}, now {_shown(now)}", flush=True)
    config.run_dir = str(folder)
    partial = folder / f"{CONFIG_FILE}.{socket.gethostname()}.{os.getpid()}.partial"  # several may write it
    OmegaConf.save(OmegaConf.create(asdict(config)), partial)
    os.replace(partial, folder / CONFIG_FILE)
    print(f"run folder: {folder} (ranks: {num_ranks}{', goes on' if goes_on else ''})", flush=True)
    return OpenRun(config, folder, not goes_on)


def give_back_folder(run: OpenRun) -> None:
    """A folder that holds nothing of a run but what `open_run` put there is free for the next try."""
    found = {path.name for path in run.folder.iterdir()}
    if run.is_new and found <= {CONFIG_FILE, LOCK_FILE, LOG_FOLDER}:
        (run.folder / CONFIG_FILE).unlink(missing_ok=True)
        shutil.rmtree(run.folder / LOG_FOLDER, ignore_errors=True)


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


# -----------------------------------------------------------------------------
# Settings: of the run that goes on, or of other ranks


def refuse_other_settings(recorded: dict[str, Any], config: Config) -> None:
    """
    Raises:
        InputError: naming the first setting that the run was begun with another value of.
    """
    for key, before, now in differences(recorded, _settings(config)):
        if not _is_within(key, FREE_ON_RESUME):
            raise InputError(
                f"{key}={_shown(now)}: the run in {config.run_dir} was begun with {_shown(before)}, and a run goes on "
                "as it was begun"
            )


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys of unequal values, with both. A key that one side lacks counts as the schema's default."""
    defaults = _settings(Config())
    for key in dict.fromkeys((*now, *before)):
        values = [side.get(key, defaults.get(key)) for side in (before, now)]
        if values[0] != values[1]:
            yield key, values[0], values[1]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty section stays a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _settings(config: Config) -> dict[str, Any]:
    return flatten(asdict(config))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not the settings of a run")
    container = OmegaConf.to_container(OmegaConf.create(tree))  # numbers as Hydra reads them: 1e-5 is one
    assert isinstance(container, dict)
    return flatten({str(key): value for key, value in container.items()})


def _is_within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


# -----------------------------------------------------------------------------
# The lock


def _lock(folder: Path, shared: bool) -> None:
    """Hold RUN/lock until this process ends, however it does: the kernel lets go of it.

    Args:
        shared: with others that share it; none of them beside one that does not.

    On NFS the lock holds between machines where its lock service runs (docs/supervision.md); where there is none, one
    line says that nothing keeps a second process out.

    Raises:
        InputError: where another process holds it.
    """
    path = folder / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.register_at_fork(after_in_child=lambda: os.close(descriptor))  # a child that outlives us must not keep it
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise InputError(f"run_dir={folder}: {holder} is still at this run") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"warning: {path}: no locks on this file system; do not start this run twice", file=sys.stderr)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
