"""What the two training loops share: where to begin, what happens between two steps, how a run ends.

    with TrainingRun(...) as run:
        for step in run.steps():
            ...                                    # one step of the engine
            run.finish_step(metrics, documents)    # evaluates, logs, saves

A stop may reach a step anywhere. All ranks leave it together as StopRequested; the run discards what the step began,
saves the state of its beginning and raises StopRequested with a line that says where. Resumed, a run's weights and
metrics are those of one that never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from falcon_h1r.checkpoint.best import WATCHED, remark
from falcon_h1r.checkpoint.files import step_folder
from falcon_h1r.checkpoint.saver import Saver
from falcon_h1r.checkpoint.state import Rows, SharedState, config_sha256, generator_states
from falcon_h1r.checkpoint.stored import StoredState
from falcon_h1r.config import Config
from falcon_h1r.data.jsonl import read_jsonl, write_jsonl
from falcon_h1r.data.packing import Document
from falcon_h1r.data.packing_plan import plan_rows
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.watch import StopRequested
from falcon_h1r.progress import ProgressReporter
from falcon_h1r.tracking import Tracker
from falcon_h1r.types import InputError

DevEvaluation = Callable[[], Mapping[str, float]]
CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"  # of a run's folder
SKIPPED = "skipped"  # a step's metric: 1 where its update was left out, for a loss or gradient was not finite


class Resumable(Protocol):
    """Something a stage has to remember. Its state is JSON, and a value: later steps do not change it."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Carrying(Protocol):
    """Something that every rank has a part of its own of, too large to tell the others."""

    def snapshot(self) -> Rows:
        """What is carried now: rows of JSON, made when they are written, in another thread and during later steps."""
        ...

    def restore(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take on this rank's part; where the number of ranks has changed, any share of all rows."""
        ...


@dataclass(slots=True)
class _Border:
    """What there is to save between two steps, but for the weights; kept while the next step moves on."""

    shared: SharedState
    generators: dict[str, Any]
    carried: Rows | None


class TrainingRun:
    """One stage's training, from its checkpoint or from the start. See the module's docstring."""

    def __init__(
        self,
        config: Config,
        stage: str,
        folder: Path,
        engine: Engine,
        tracker: Tracker,
        evaluate_dev: DevEvaluation,
        state: Mapping[str, Resumable] | None = None,
        stored: StoredState | None = None,
        carrying: Carrying | None = None,
    ) -> None:
        """
        Args:
            stage: "sft" or "grpo", whose settings hold.
            evaluate_dev: measures the policy on held-out problems; called on every rank, every `dev_every_steps`.
            state: what the stage remembers beside the engine, by name.
            stored: the checkpoint to go on from.
            carrying: what each rank has of its own beside.
        """
        self.config, self.stage, self.folder = config, stage, folder
        self.engine, self.world, self.tracker = engine, engine.world, tracker
        self._settings = config.sft if stage == "sft" else config.grpo
        self._evaluate_dev, self._state, self._stored = evaluate_dev, dict(state or {}), stored
        self._carrying = carrying
        self._config_sha256 = config_sha256(config)
        self._skipped_steps = self._skipped_in_a_row = 0
        self._save_is_due = False
        self._last_border = 0  # of the engine's steps, that before the one which is being done
        self._exits = ExitStack()
        self.saver = Saver(
            folder / CHECKPOINTS,
            config.checkpoint,
            self.world,
            before_naming=tracker.sync,
            last_step=stored.shared.step if stored is not None else None,
        )

    def __enter__(self) -> TrainingRun:
        unlogged = None
        if self._stored is not None:
            unlogged = self._load(self._stored)
        self._remember_best()
        self._stand_at_border(unlogged)
        self.progress: ProgressReporter = self._exits.enter_context(
            self.tracker.progress(self.engine.num_steps, self.stage, "steps", completed=self.engine.steps_done)
        )
        self._saved_at = time.monotonic()
        return self

    def steps(self) -> Iterator[int]:
        """The steps that are left, from 0. One of the stage's may be several of the engine's."""
        if self._border.shared.unlogged is not None:
            self._finish_border()
        while self.engine.steps_done < self.engine.num_steps:
            self._last_border = self.engine.steps_done
            yield self.engine.steps_done

    def finish_step(
        self,
        metrics: Mapping[str, float],
        documents: Callable[[], Sequence[Document]],
        samples: Sequence[Mapping[str, Any]] = (),
        plan: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Look, now and then, at problems it does not train on; log; save if it is time.

        Args:
            metrics: of what the engine has done since the last border.
            documents: what it learnt from, asked for if they have to be written out.
            samples: rows for samples.jsonl.
            plan: which of the documents shared a row, in the order dealt to ranks; None: as plan_rows has them.

        Raises:
            StopRequested: on every rank.
            InputError: where too many steps in a row could not be applied.
        """
        metrics = dict(metrics)
        if SKIPPED in metrics:
            is_skipped = bool(metrics.pop(SKIPPED))
            self._skipped_steps += is_skipped
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_skipped else 0
        metrics["skipped_steps"] = float(self._skipped_steps)
        self._stand_at_border({"metrics": metrics, "samples": list(samples), "since_step": self._last_border})
        self._finish_border()
        if self._skipped_in_a_row and self._skipped_in_a_row >= self.config.supervision.max_skipped_steps:
            self._give_up(documents(), plan)

    # -------------------------------------------------------------------------
    # Between two steps

    def _stand_at_border(self, unlogged: dict[str, Any] | None = None) -> None:
        """Remember what a checkpoint of this moment holds, before the next step moves on."""
        engine_config = self.config.engine
        shared = SharedState(
            stage=self.stage,
            step=self.engine.steps_done,
            updates=self.engine.updates_done,
            world_size=self.world.size,
            engine={"name": engine_config.name, "zero_stage": engine_config.zero_stage},
            config_sha256=self._config_sha256,
            stage_state={name: part.state_dict() for name, part in self._state.items()},
            skipped_steps=self._skipped_steps,
            skipped_in_a_row=self._skipped_in_a_row,
            tracker=self.tracker.ids,
            unlogged=unlogged,
        )
        carried = self._carrying.snapshot() if self._carrying is not None else None
        self._border = _Border(shared, generator_states(), carried)

    def _finish_border(self) -> None:
        """Evaluate, log and save: repeated from its start where a stop interrupts it."""
        unlogged, step = self._border.shared.unlogged, self.engine.steps_done
        assert unlogged is not None
        metrics = dict(unlogged["metrics"])
        since = self._last_border = unlogged.get("since_step", step - 1)
        every = self._settings.dev_every_steps
        if every and (passed_multiple(every, since, step) or step == self.engine.num_steps):
            self.world.watch.beat("evaluating", step)
            with self.engine.whole():
                metrics.update(self._evaluate_dev())
            self.saver.note(metrics, step)
        if self.saver.num_failures:
            metrics["failed_saves"] = float(self.saver.num_failures)
        self.tracker.log(metrics, step)
        if unlogged["samples"]:
            self.tracker.log_samples(unlogged["samples"])
        self._stand_at_border()
        self._meet()

    def _meet(self) -> None:
        """What all ranks have to know of each other between two steps, in one exchange."""
        settings, step = self.config.checkpoint, self.engine.steps_done
        minutes = (time.monotonic() - self._saved_at) / 60
        by_the_clock = self.world.is_main and 0 < settings.every_minutes <= minutes
        stop, due, busy = self.world.sum([self.world.watch.stop_requested, by_the_clock, self.saver.is_busy])
        self.saver.advance(busy)
        if stop:
            raise StopRequested
        every = settings.every_steps
        self._save_is_due |= bool(due) or bool(every and passed_multiple(every, self._last_border, step))
        is_last = step == self.engine.num_steps  # saved by the end of the run
        if self._save_is_due and not is_last and not self.saver.in_flight:
            self.save()

    def save(self) -> None:
        """Begin to write the state of this border, unless it is where the run came from."""
        self._save_is_due, self._saved_at = False, time.monotonic()
        if self._border.shared.step != self.saver.last_step:
            self.world.watch.beat("saving", self.engine.steps_done)
            border = self._border
            self.saver.start(self.engine.fragments(), border.generators, border.shared, border.carried)

    # -------------------------------------------------------------------------
    # Beginning and end

    def _load(self, stored: StoredState) -> dict[str, Any] | None:
        """Take on a checkpoint's state; returns the last step's row where it was not logged."""
        with stored:
            stored.load_into(self.engine)
            for name, part in self._state.items():
                part.load_state_dict(stored.shared.stage_state[name])
            self._skipped_steps, self._skipped_in_a_row = stored.shared.skipped_steps, stored.shared.skipped_in_a_row
            if self._carrying is not None:
                self._carrying.restore(stored.carried_rows(self.world.rank, self.world.size))
            stored.restore_generators(self.world.rank)
        return stored.shared.unlogged

    def _remember_best(self) -> None:
        """The best evaluation so far, from the log as far as this run goes on from it."""
        metric = self.config.checkpoint.keep_best
        if self.world.is_main and metric is not None and not metric.startswith(WATCHED):
            log = self.folder / METRICS
            has_rows = log.exists() and log.stat().st_size > 0
            rows = [row for _, row in read_jsonl(log)] if has_rows else []
            remark(self.saver.root, metric, rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._exits:
            if error is None:
                # The last state is saved before the model is published: a run killed in between goes on from it.
                if self.config.checkpoint.every_steps or self.config.checkpoint.every_minutes:
                    self._save_and_wait()
            elif isinstance(error, StopRequested):
                self.engine.discard_step()
                self._save_and_wait()
                raise StopRequested(self._describe_stop()) from None

    def _save_and_wait(self) -> None:
        self.saver.wait()
        self.save()
        self.saver.wait()

    def _describe_stop(self) -> str:
        step, saver = self._border.shared.step, self.saver
        stopped = f"stopped after step {step} of {self.engine.num_steps}"
        if saver.last_step == step:
            return f"{stopped}; resume=true goes on from {step_folder(saver.root, step)}"
        return f"{stopped}, whose state could not be saved ({saver.last_failure}); {saver.whole_one}"

    def _give_up(self, documents: Sequence[Document], plan: Sequence[Sequence[int]] | None) -> None:
        """End a run whose updates come to nothing, with the last batch written out."""
        self.saver.wait()
        step = self.engine.steps_done
        path = self.folder / f"skipped_batch_step_{step:06d}.jsonl"
        if self.world.is_main:
            write_jsonl(path, dealt_rows(documents, self._settings.limits.row_tokens, self.world.data_size, plan))
        raise InputError(
            f"step {step}: loss or gradient was not finite for {self._skipped_in_a_row} steps in a row "
            f"(supervision.max_skipped_steps); its batch is in {path}"
        )


def passed_multiple(every: int, since: int, step: int) -> bool:
    """Whether a multiple of `every` lies after step `since` and not after `step`."""
    return step // every > since // every


def dealt_rows(
    documents: Sequence[Document], row_tokens: int, data_size: int, plan: Sequence[Sequence[int]] | None = None
) -> list[dict[str, Any]]:
    """Every document with the data rank that learnt from it and its packed row there, by rank and row."""
    if plan is None:
        plan = plan_rows([len(document) for document in documents], row_tokens, data_size)
    dealt = [
        {"data_rank": number % data_size, "row": number // data_size, **asdict(documents[index])}
        for number, row in enumerate(plan)
        for index in sorted(row)
    ]
    return sorted(dealt, key=lambda row: (row["data_rank"], row["row"]))


def open_tracker(
    config: Config, stage: str, folder: Path, is_main: bool, group: str, stored: StoredState | None = None
) -> Tracker:
    """A stage's log; with `resume`, without the rows that are about to be made again.

    Args:
        stored: the checkpoint that the stage goes on from; none, and it starts anew.
    """
    last_row = None
    if config.resume:
        last_row = -1 if stored is None else stored.shared.step - (stored.shared.unlogged is not None)
    ids = stored.shared.tracker if stored is not None else None
    return Tracker(
        folder, stage, config.tracking, is_main, asdict(config), group=group, resume_step=last_row, resume_ids=ids
    )
