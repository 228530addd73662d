"""Running a task on an engine: what is missing is claimed, drawn, judged, and a row is on disk the moment it is judged.

Any number of processes may call `run_task` on one folder, at once or one after the other, killed or not: the rows come
out the same, as every trace has seeds of its own (up to the rounding of float32, which depends on what shares a batch,
and which `scaling.stop_slack` keeps from deciding about stops).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from falcon_h1r.config_evaluate import ScalingConfig, WorkConfig
from falcon_h1r.distributed.watch import Watch
from falcon_h1r.evaluation.judging import Judging
from falcon_h1r.evaluation.pieces import Piece, Wanted, asked_of, missing_of, num_rows, pieces_of
from falcon_h1r.evaluation.rows import NOT_JUDGED, confidence_of, online_row, sample_row
from falcon_h1r.evaluation.store import ONLINE, PARTS, RowKey, Store, agree_on_what_is_asked, is_ended
from falcon_h1r.evaluation.tasks import Judged, Task, TaskScorer
from falcon_h1r.evaluation.work import Claims
from falcon_h1r.progress import ProgressReporter
from falcon_h1r.rollout.sampler import RolloutKey
from falcon_h1r.scaling.engine import DrawnTrace, TraceEngine

LOOK_SECONDS = 1.0  # between looks at what others have done, while there is something to do here
IDLE_SECONDS = 0.25  # the same where there is nothing

Show = Callable[[int, int], AbstractContextManager[ProgressReporter]]  # of (rows in all, rows there are)


@contextmanager
def no_progress(total: int, completed: int) -> Iterator[ProgressReporter]:
    yield ProgressReporter(total, "", "", completed)


def run_task(
    engine: TraceEngine,
    scorer: TaskScorer,
    task: Task,
    scaling: ScalingConfig,
    folder: Path,
    work: WorkConfig,
    *,
    others: Mapping[str, Any],
    wait: bool = True,
    num_processes: int = 1,
    watch: Watch | None = None,
    show: Show = no_progress,
) -> bool:
    """Draw and judge what is missing of a task: its samples, greedy answers and, with a budget, online DeepConf.

    Args:
        others: what the rows depend on besides the task and `scaling`; see `asked_of`.
        num_processes: that are about to share the work, as far as is known; each begins with its share of the pieces.
        wait: for pieces that other processes have claimed, or to take them over; else leave them to those.

    Returns:
        Whether nothing is missing.

    Raises:
        StopRequested: where the run is to stop; what was drawn is judged, and what was claimed is free.
        InputError: where the folder holds another evaluation, or a server is given up.
    """
    if task.num_traces and engine.confidence is None:
        raise ValueError(f"{task.name}: num_traces={task.num_traces} needs an engine that measures confidence")
    watch, parts = watch or Watch(), folder / PARTS
    agree_on_what_is_asked(parts, asked_of(task, scaling, engine.confidence, work.claim_traces, others))
    try:
        with Claims(parts, work.lost_seconds) as claims, Store(parts, claims.owner) as store:
            completed = len(store.refresh())
            if is_ended(folder):
                return True
            with show(num_rows(task), completed) as progress:
                keeper = RowKeeper(engine, scorer, claims, store)
                with Judging(keeper.judge) as judging:
                    pieces = pieces_of(task, work.claim_traces)
                    worker = Worker(
                        engine, task, scaling, pieces, claims, store, judging, keeper, watch, progress, num_processes
                    )
                    return worker.run(wait)
    except FileNotFoundError:  # whoever has merged the rows has removed the parts
        if not is_ended(folder):
            raise
        return True


class RowKeeper:
    """Judges traces and appends their rows: what the thread of `Judging` does."""

    def __init__(self, engine: TraceEngine, scorer: TaskScorer, claims: Claims, store: Store) -> None:
        self._confidence, self._scorer, self._claims, self._store = engine.confidence, scorer, claims, store
        self.lost: deque[Piece] = deque()  # that another process has taken over

    def judge(self, drawn: Sequence[tuple[Wanted, DrawnTrace]]) -> None:
        measured = [confidence_of(trace, self._confidence) for _, trace in drawn]
        stopped = []
        for (wanted, trace), confidence in zip(drawn, measured, strict=True):
            stop = wanted.request.stop
            below = stop is not None and confidence[stop.measure].tokens_until_below(stop.below) is not None
            stopped.append(below or trace.stop_reason == "confidence")
        asked = [pair for pair, was_stopped in zip(drawn, stopped, strict=True) if not was_stopped]
        judged = iter(self._judged(asked))
        for (wanted, trace), confidence, was_stopped in zip(drawn, measured, stopped, strict=True):
            verdict = NOT_JUDGED if was_stopped else next(judged)
            problem, stop = wanted.request.problem, wanted.request.stop
            if wanted.key.kind == ONLINE:
                threshold = stop.threshold if stop is not None else None
                row = online_row(problem, trace, verdict, confidence, threshold, was_stopped)
            else:
                row = sample_row(problem, trace, verdict, confidence)
            if self._claims.holds(wanted.piece.name):
                self._store.append(wanted.key.kind, row)
            else:
                self.lost.append(wanted.piece)

    def _judged(self, drawn: Sequence[tuple[Wanted, DrawnTrace]]) -> list[Judged]:
        if not drawn:
            return []
        responses = [trace.text for _, trace in drawn]
        return self._scorer.judge(responses, [wanted.request.problem for wanted, _ in drawn])


class Worker:
    """One process at one task: claims pieces, keeps the engine full, and goes on with pieces as their rows arrive."""

    def __init__(
        self,
        engine: TraceEngine,
        task: Task,
        scaling: ScalingConfig,
        pieces: Sequence[Piece],
        claims: Claims,
        store: Store,
        judging: Judging[tuple[Wanted, DrawnTrace]],
        keeper: RowKeeper,
        watch: Watch,
        progress: ProgressReporter,
        num_processes: int,
    ) -> None:
        self._engine, self._task, self._scaling = engine, task, scaling
        self._claims, self._store, self._judging, self._keeper = claims, store, judging, keeper
        self._watch, self._progress = watch, progress
        self._left = list(pieces)  # that are not known to be done, and not ours
        self._open: dict[str, tuple[Piece, set[RowKey]]] = {}  # ours: name -> piece, and the rows under way
        self._queue: deque[list[Wanted]] = deque()  # what is submitted together
        self._drawing: dict[RolloutKey, Wanted] = {}
        self._looked_at, self._num_judged = -math.inf, 0
        self._least_processes = self._num_processes = num_processes

    def run(self, wait: bool) -> bool:
        """Whether nothing is missing at the end."""
        try:
            while True:
                self._claim()
                self._submit()
                if self._drawing:
                    self._take_in(self._engine.advance())
                elif self._judging.is_busy:
                    self._watch.beat("judging")
                    self._judging.wait(LOOK_SECONDS)
                    self._watch.check()
                elif not self._open:
                    self._look()
                    if not self._left:
                        return True
                    if not self._claim():
                        if not wait:
                            return False
                        self._idle()
                self._go_on()
        finally:
            if self._drawing:
                self._engine.abort()

    # -------------------------------------------------------------------------
    # Getting work

    def _claim(self) -> int:
        """Claim pieces until the engine would be full, but no more than this process's share of what is left."""
        room = self._engine.free_slots - sum(map(len, self._queue))
        if room <= 0 or not self._left:
            return 0
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._look()
        share = math.ceil((len(self._left) + len(self._open)) / self._num_processes)
        claimed: list[Piece] = []
        for piece in self._left:
            if room <= 0 or len(self._open) + len(claimed) >= share:
                break
            if self._claims.take(piece.name):
                claimed.append(piece)
                room -= max(1, len(piece.keys))
        if claimed:
            self._read()  # who had a piece before us has written all that it ever will
            self._left = [piece for piece in self._left if piece not in claimed]
            for piece in claimed:
                self._open[piece.name] = (piece, set())
                self._continue(piece)
        return len(claimed)

    def _continue(self, piece: Piece) -> None:
        """Queue what can be drawn now of a piece of ours, or be done with it."""
        missing = missing_of(piece, self._task, self._scaling, self._store)
        self._open[piece.name][1].update(wanted.key for wanted in missing)
        if missing:
            self._queue.append(missing)
        else:
            self._close(piece)
            if not piece.keys:
                drawn = len(self._store.online.get(piece.problem.uid, {}))
                self._progress.advance(max(0, self._task.num_traces - drawn))

    def _close(self, piece: Piece) -> None:
        del self._open[piece.name]
        self._claims.drop(piece.name)

    def _submit(self) -> None:
        """While there is room, what belongs together: traces of one prompt share its reading, and may wait for slots.

        Keys that are in the engine come later: a sample and an online trace may have the same.
        """
        later: list[list[Wanted]] = []
        while self._queue and self._engine.free_slots > 0:
            together = self._queue.popleft()
            clashing = [wanted for wanted in together if wanted.request.key in self._drawing]
            ready = [wanted for wanted in together if wanted.request.key not in self._drawing]
            if clashing:
                later.append(clashing)
            self._drawing.update((wanted.request.key, wanted) for wanted in ready)
            self._engine.submit([wanted.request for wanted in ready])
        self._queue.extendleft(reversed(later))

    def _take_in(self, drawn: Sequence[DrawnTrace]) -> None:
        self._judging.put([(self._drawing.pop(trace.key), trace) for trace in drawn])

    def _idle(self) -> None:
        """All that is missing is others': wait for their rows, or for their end."""
        self._watch.check()
        self._watch.beat("waiting for other processes")
        time.sleep(IDLE_SECONDS)

    # -------------------------------------------------------------------------
    # Rows that have come

    def _go_on(self) -> None:
        """Pieces whose rows are all there go on with their next wave, or are done."""
        if (num_judged := self._judging.num_done()) != self._num_judged:
            self._num_judged = num_judged
            self._read()
            while self._keeper.lost:
                self._let_go(self._keeper.lost.popleft())
            for piece, under_way in list(self._open.values()):
                under_way.difference_update([key for key in under_way if key in self._store])
                if not under_way:
                    self._continue(piece)

    def _let_go(self, piece: Piece) -> None:
        """Another process has taken it for dead hands' and does it."""
        if piece.name not in self._open:
            return
        self._close(piece)
        self._left.append(piece)
        self._queue = deque(together for together in self._queue if together[0].piece.name != piece.name)
        keys = [key for key, wanted in self._drawing.items() if wanted.piece.name == piece.name]
        self._engine.abort(keys)
        for key in keys:
            del self._drawing[key]

    def _look(self) -> None:
        """Learn what others have done."""
        self._read()
        self._claims.look()
        self._left = [p for p in self._left if missing_of(p, self._task, self._scaling, self._store)]
        self._num_processes = max(self._least_processes, self._claims.num_alive())
        self._looked_at = time.monotonic()

    def _read(self) -> None:
        found = self._store.refresh()
        if found:
            self._progress.advance(len(found), sum(tokens for _, tokens in found))
