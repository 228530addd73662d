"""What a run leaves behind and shows while it runs: metrics.jsonl, samples.jsonl, Weights & Biases, progress.

Rows are comparable between runs: everything that depends on the clock is kept in keys named `seconds`,
`*_seconds` or `*_per_second`, and `strip_times` removes them. wandb is imported here only, and only when
switched on.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import secrets
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
from rich.console import Console

from falcon_h1r.progress import ProgressReporter

GIB = 1024**3
MOST_TABLE_ROWS, LONGEST_TABLE_TEXT = 16, 4_000  # of transcripts on W&B; samples.jsonl has all of them, whole


class TrackingSettings(Protocol):
    """The fields of the tracking config that are read here."""

    @property
    def wandb(self) -> str: ...  # "disabled", "offline" or "online"
    @property
    def wandb_project(self) -> str: ...
    @property
    def wandb_entity(self) -> str | None: ...
    @property
    def log_every_steps(self) -> int: ...


def is_time_key(key: str) -> bool:
    """Whether a metric depends on the clock, by its name."""
    return key == "seconds" or key.endswith(("_seconds", "_per_second"))


def strip_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what depends on the clock: equal in two runs of one seed."""
    return {key: value for key, value in row.items() if not is_time_key(key)}


class RowFile:
    """A file that JSON rows are appended to. What a full disk does not take waits, and goes before the next rows.

    Appending never raises OSError: a disk that is full costs no run. `sync` does, from any thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting, self._has_failed = b"", False
        self._lock = threading.Lock()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """With the kernel when this returns, where the disk takes them. A lone surrogate stays as its escape."""
        text = "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with self._lock:
            self._waiting += text.encode("utf-8", errors="backslashreplace")
            try:
                self._write()
            except OSError as error:
                if not self._has_failed:
                    print(f"warning: {self.path} cannot be written ({error}); its rows wait", flush=True)
                self._has_failed = True

    def sync(self) -> None:
        """All rows are on the disk when this returns.

        Raises:
            OSError: where it does not take them.
        """
        with self._lock:
            self._write()
            if self.path.exists():
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())

    def _write(self) -> None:
        if self._waiting:
            with self.path.open("ab", buffering=0) as file:
                while self._waiting:
                    self._waiting = self._waiting[file.write(self._waiting) :]
        self._has_failed = False


class Tracker:
    """One stage's log. Ranks other than the main one may call everything; nothing happens there.

    `group` names the pipeline; by default it is the folder around the stage's folder. `resume_step`, on
    resume, is the step of the checkpoint gone back to: rows logged after it are taken back, since they are
    about to be made again, and `seconds` goes on from where that step left it. `resume_ids` are the `ids` of then.
    """

    def __init__(
        self,
        run_dir: Path,
        stage: str,
        config: TrackingSettings,
        is_main: bool,
        resolved_config: Mapping[str, Any],
        *,
        group: str | None = None,
        resume_step: int | None = None,
        resume_ids: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir, self.stage, self.is_main = Path(run_dir), stage, is_main
        self._log_every_steps = max(1, config.log_every_steps)
        self._started = time.monotonic()
        self._wandb_run: Any = None
        self.ids: dict[str, str] = {}  # under which the run is known elsewhere
        self._metrics, self._samples = (RowFile(self.run_dir / f"{name}.jsonl") for name in ("metrics", "samples"))
        if not is_main:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            _take_back_rows_after(self._samples.path, resume_step)
            kept = _take_back_rows_after(self._metrics.path, resume_step)
            self._started -= max((row["seconds"] for row in kept), default=0.0)
        if config.wandb != "disabled":
            folder = self.run_dir.resolve()
            group = group or (folder.parent.name if folder.name == stage else folder.name)
            id_file = self.run_dir / "wandb_run_id.txt"
            if not id_file.exists():
                id_file.write_text((resume_ids or {}).get("wandb", secrets.token_hex(4)) + "\n")
            self.ids["wandb"] = id_file.read_text().strip()
            self._wandb_run = _start_wandb(self.run_dir, stage, group, config, resolved_config, self.ids["wandb"])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row to metrics.jsonl, there when this returns. Values that are not finite become null.

        W&B gets the rows of every `log_every_steps`-th step, and each row that holds an evaluation (a `dev_`
        key).
        """
        if not self.is_main:
            return
        row: dict[str, Any] = {"stage": self.stage, "step": step}
        row.update({key: _finite(value) for key, value in metrics.items()})
        row["seconds"] = round(time.monotonic() - self._started, 3)
        self._metrics.append([row])
        is_due = step % self._log_every_steps == 0 or any(key.startswith("dev_") for key in metrics)
        if self._wandb_run is not None and is_due:
            scalars = {key: value for key, value in row.items() if key != "stage" and value is not None}
            self._wandb_run.log({f"{self.stage}/{key}": value for key, value in scalars.items()})

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append transcripts to samples.jsonl, one JSON object a line.

        W&B gets a table of those of every `log_every_steps`-th step, the first rows, with long texts cut.
        """
        if not self.is_main:
            return
        rows = list(rows)
        self._samples.append(rows)
        if self._wandb_run is None:
            return
        for step in dict.fromkeys(row["step"] for row in rows if "step" in row):
            if step % self._log_every_steps == 0:
                table = _wandb_table([row for row in rows if row.get("step") == step][:MOST_TABLE_ROWS])
                self._wandb_run.log({f"{self.stage}/step": step, f"{self.stage}/samples": table})

    def sync(self) -> None:
        """Rows logged so far are on the disk when this returns, whatever becomes of the machine. From any thread.

        Raises:
            OSError: where the disk does not take them.
        """
        if self.is_main:
            self._metrics.sync()
            self._samples.sync()

    @contextmanager
    def progress(self, total: int, description: str, unit: str, completed: int = 0) -> Iterator[ProgressReporter]:
        """Show progress with the current loss or reward, tokens/s and an ETA; `completed` on resume.

        On a terminal a bar; elsewhere one plain line every 10% or 20 seconds.
        """
        if not self.is_main:
            yield ProgressReporter(total, description, unit, completed, console=None)
            return
        reporter = ProgressReporter(total, description, unit, completed, console=Console())
        with reporter.bar:
            yield reporter

    def finish(self) -> None:
        """Write what waits, and close the W&B run. Calling it twice does no harm."""
        if self.is_main:
            self._metrics.append([])
            self._samples.append([])
        if self._wandb_run is not None:
            self._wandb_run.finish()
            self._wandb_run = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()


def _finite(value: float) -> float | int | None:
    """A JSON number; None for NaN and infinities, which JSON lacks. Takes NumPy's and torch's scalars."""
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def _take_back_rows_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of later steps, and a last line that a kill has cut in half. Returns what is left."""
    if not path.exists():
        return []
    # As bytes: a kill cuts characters too, and transcripts hold some at which `str.splitlines` would break a line.
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    kept = [row for row in map(json.loads, whole_lines) if row.get("step", 0) <= step]
    beside = path.with_suffix(".jsonl.tmp")
    beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    beside.replace(path)
    return kept


def _wandb_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A column for each key; mappings become columns of their own, `parts` with `correct` being `parts.correct`."""
    import wandb

    flat = [dict(_table_cells(row)) for row in rows]
    columns: list[str | int] = list(dict.fromkeys(key for cells in flat for key in cells))
    return wandb.Table(columns=columns, data=[[cells.get(str(key)) for key in columns] for cells in flat])


def _table_cells(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _table_cells(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            text = value.encode("utf-8", errors="backslashreplace").decode()
            left_out = len(text) - LONGEST_TABLE_TEXT
            half = LONGEST_TABLE_TEXT // 2
            yield prefix + key, text if left_out <= 0 else f"{text[:half]}\n[{left_out:,} more]\n{text[-half:]}"
        else:
            yield prefix + key, value


def _start_wandb(
    run_dir: Path,
    stage: str,
    group: str,
    config: TrackingSettings,
    resolved_config: Mapping[str, Any],
    run_id: str,
) -> Any:
    """A W&B run: the pipeline is its group, the stage its job type. Its id stays in the folder."""
    import wandb

    run = wandb.init(
        mode="online" if config.wandb == "online" else "offline",
        project=config.wandb_project,
        entity=config.wandb_entity,
        group=group,
        job_type=stage,
        name=f"{group}-{stage}",
        id=run_id,
        resume="allow" if config.wandb == "online" else None,
        dir=os.environ.get("WANDB_DIR", str(run_dir)),
        config=dict(resolved_config),
        settings=wandb.Settings(console="off", silent=config.wandb == "offline"),
    )
    run.define_metric(f"{stage}/step")
    run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run


# ------------------------------------------------------------------------------------------------------------
# What it ran on


class MemoryMeter:
    """The most memory that this process and its descendants held at once, in GiB, looked at twice a second.

    The sum of their resident sizes: pages shared after a fork count in each. Sum it over ranks.
    """

    SECONDS_BETWEEN_LOOKS = 0.5

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-meter", daemon=True)

    def __enter__(self) -> MemoryMeter:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> float:
        """Measure now; returns the peak so far."""
        own = psutil.Process()
        total = 0
        for process in [own, *own.children(recursive=True)]:
            with suppress(psutil.Error):  # a child that ended in between
                total += process.memory_info().rss
        self.peak_gib = max(self.peak_gib, total / GIB)
        return self.peak_gib

    def _watch(self) -> None:
        while not self._stop.wait(self.SECONDS_BETWEEN_LOOKS):
            self.look()


def environment_versions() -> dict[str, str]:
    """Python, the libraries that matter to the numbers, the git revision, the platform and the processor."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "numpy", "sympy", "deepspeed"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["git_revision"] = _git_revision()
    versions["platform"] = platform.platform()
    versions["processor"] = f"{_processor_name()}, {os.cpu_count()} cores"
    return versions


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_revision() -> str:
    """The revision of the source tree the package is imported from; "unknown" where it is not part of one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)

    try:
        if git("ls-files", "--error-unmatch", Path(__file__).name).returncode != 0:
            return "unknown"  # installed somewhere below a repository that is not ours
        revision = git("rev-parse", "--short=12", "HEAD").stdout.strip()
        changes = git("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return f"{revision}-dirty" if changes else revision
    except FileNotFoundError:  # no git on this machine
        return "unknown"
