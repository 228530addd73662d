"""Chunks worked on in processes, their results in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from falcon_h1r.config import Config
from falcon_h1r.data.chunks import Chunk
from falcon_h1r.data.curation.facts import ChunkFiles
from falcon_h1r.data.curation.judge import ChunkJudge, open_judge
from falcon_h1r.data.curation.render import ChunkDecisions, RenderedFiles, render_chunk

Result = TypeVar("Result")

POLL_SECONDS = 0.5  # between two looks at whether the run is to stop
WAITING_TASKS = 2  # a worker, beside the one it is at; each holds the decisions of a chunk


class ChunkPool:
    """Judges and renders chunks: in `num_workers` processes of their own, or in this one where that is 1.

    Worker processes start with the first task, and end when this one does, however it ends.
    """

    def __init__(self, config: Config, num_workers: int, check: Callable[[], None]) -> None:
        self._config, self._num_workers, self._check = config, num_workers, check
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> ChunkPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is None:
            _close_judge()
        else:
            if error is not None:  # what is unfinished is done again
                for process in list((self._executor._processes or {}).values()):
                    process.terminate()
            self._executor.shutdown(cancel_futures=True)

    def judge(self, chunks: Iterable[Chunk], work: Path) -> Iterator[tuple[int, int]]:
        """Numbers of traces and tokens, chunk by chunk."""
        return self._run(_judge, ((chunk, ChunkFiles(work, chunk.index)) for chunk in chunks))

    def render(self, tasks: Iterable[tuple[Chunk, ChunkFiles, ChunkDecisions, RenderedFiles]]) -> Iterator[None]:
        return self._run(_render, tasks)

    def _run(self, work: Callable[..., Result], tasks: Iterable[Sequence[Any]]) -> Iterator[Result]:
        if self._num_workers == 1:
            _start_worker(self._config, alone=True)
            for task in tasks:
                self._check()
                yield work(*task)
            return
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._num_workers, get_context("spawn"), initializer=_start_worker, initargs=(self._config,)
            )
        running: deque[Future[Result]] = deque()
        for task in tasks:
            try:
                running.append(self._executor.submit(work, *task))
            except BrokenProcessPool:
                raise _killed() from None
            if len(running) >= (1 + WAITING_TASKS) * self._num_workers:
                yield self._wait(running.popleft())
        while running:
            yield self._wait(running.popleft())

    def _wait(self, future: Future[Result]) -> Result:
        """
        Raises:
            RuntimeError: where a worker process was killed.
        """
        while not wait([future], timeout=POLL_SECONDS).done:
            self._check()
        try:
            return future.result()
        except BrokenProcessPool:
            raise _killed() from None


def _killed() -> RuntimeError:
    return RuntimeError(
        "a process of curation was killed, perhaps for its memory: what it had finished stays, and "
        "resume=true goes on from there (curate.work.num_workers, chunk_megabytes)"
    )


# -----------------------------------------------------------------------------
# In the worker's process

_config: Config | None = None
_judges: list[ChunkJudge] = []


def _start_worker(config: Config, alone: bool = False) -> None:
    global _config
    if not alone:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _config = config


def _end_with_parent() -> None:
    """A parent that was killed closes nothing: its workers would wait for tasks for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _close_judge() -> None:
    while _judges:
        _judges.pop().close()


def _judge(chunk: Chunk, files: ChunkFiles) -> tuple[int, int]:
    assert _config is not None
    if not _judges:
        _judges.append(open_judge(_config))
    return _judges[0].judge_chunk(chunk, files)


def _render(chunk: Chunk, judged: ChunkFiles, decisions: ChunkDecisions, files: RenderedFiles) -> None:
    assert _config is not None
    render_chunk(chunk, judged.read_notes(), decisions, _config.curate, files)
