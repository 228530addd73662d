"""The verifier as a service: cheap stages at once in the calling thread, algebra in killable processes."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from falcon_h1r.types import Verdict, VerdictStatus
from falcon_h1r.verifier.compare import NeedsAlgebra
from falcon_h1r.verifier.equivalence import check_gold, judged
from falcon_h1r.verifier.extract import extract_answer
from falcon_h1r.verifier.workers.pool import WorkerPool
from falcon_h1r.verifier.workers.process import Result

if TYPE_CHECKING:
    from falcon_h1r.config import VerifierConfig

DEFAULT_DEADLINE_SECONDS = 1.2  # with a worker's start and a starved worker's extra time, a verdict within two
DEFAULT_MEMORY_LIMIT_BYTES = 1 << 30
_TASK = "falcon_h1r.verifier.equivalence:judge"
_PRELOAD = ("falcon_h1r.verifier.values.algebra", "falcon_h1r.verifier.values.symbolic")
_MAX_CACHE_BYTES = 32 << 20
_MAX_CACHED_PAIR_BYTES = 4_000  # longer answers hardly repeat
_ENTRY_BYTES = 700  # of a verdict, its reason, and the cache's own links
_PASSING_STAGES = ("deadline", "memory", "worker", "closed", "error")  # such a verdict may differ next time


class Verifier:
    """Judges responses against golds: `submit` one, or `score` many, from any thread or process.

    A batch that strings, numbers and structure settle starts no process. What misses the deadline is
    undecided and counted in `num_deadline_kills`. Use as a context manager, or call `close`; one that is
    merely dropped ends its processes when it is collected.

    A future is shared by all who ask for the same pair at the same time. It cannot be cancelled: a coroutine
    that stops waiting (`asyncio.wrap_future`, `wait_for`) takes nothing from the others.

    Args:
        num_workers: processes, each of up to one core; they start with the first pair that needs algebra.
        deadline_seconds: of CPU time for the algebra of one pair (WorkerProcess.ask says what a starved worker gets).
        after_think: only what follows the last `</think>` counts.
        memory_limit_bytes: of address space, for each process.
        fallbacks: where an answer is looked for without a box, in this order (see extract.py).

    Raises:
        ValueError: for a number that is too small, or a fall-back that there is not.
    """

    def __init__(
        self,
        num_workers: int = 1,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        after_think: bool = False,
        memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES,
        fallbacks: Sequence[str] = (),
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}")
        if deadline_seconds <= 0:
            raise ValueError(f"deadline_seconds must be positive, not {deadline_seconds}")
        self.after_think = after_think
        self.fallbacks = tuple(fallbacks)
        extract_answer("", fallbacks=self.fallbacks)  # refuses unknown ones
        self._arguments = (num_workers, deadline_seconds, after_think, memory_limit_bytes, self.fallbacks)
        self._pool = WorkerPool(num_workers, deadline_seconds, memory_limit_bytes, _TASK, _PRELOAD)
        self._cache: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._cache_bytes = 0
        self._reset()
        _verifiers.add(self)

    @classmethod
    def from_config(cls, config: VerifierConfig, after_think: bool = False) -> Verifier:
        """The verifier that a run's `verifier` section describes."""
        return cls(config.num_workers, config.deadline_seconds, after_think, fallbacks=config.fallbacks)

    def _reset(self) -> None:
        self._pending: dict[tuple[str, str], Future[Verdict]] = {}
        self._lock = threading.RLock()  # a callback may run in the thread that holds it

    def forget_after_fork(self) -> None:
        """In a forked child: nobody here will finish what is pending, nor free a lock that was held."""
        self._reset()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as its settings; the processes there are its own."""
        return Verifier, self._arguments

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_deadline_kills(self) -> int:
        """Worker processes killed because they missed the deadline."""
        return self._pool.num_deadline_kills

    @property
    def num_lost_workers(self) -> int:
        """Worker processes that died by themselves, mostly of a resource limit."""
        return self._pool.num_lost_workers

    @property
    def confinement(self) -> tuple[str, ...] | None:
        """What the kernel keeps the worker processes from, as worker.py lists it; None before one has started."""
        return self._pool.confinement

    def submit(self, prediction: str, gold: str) -> Future[Verdict]:
        """The verdict on one response, as a future that never holds an exception.

        Raises:
            ValueError: after `close`, for a pair that needs algebra.
        """
        start = time.perf_counter()
        answer = extract_answer(prediction, self.after_think, self.fallbacks)
        key = (answer or "", gold)
        with self._lock:
            if (cached := self._cached(key)) is not None and answer is not None:
                return _done(cached)
            if key in self._pending:
                return self._pending[key]
        try:
            verdict = _verdict(judged(answer, gold, algebra=False), start)
        except NeedsAlgebra:
            return self._submit_algebra(key, start)
        if answer is not None:
            self._remember(key, verdict)
        return _done(verdict)

    def score(self, predictions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Verdicts on many responses, in their order.

        Raises:
            ValueError: where there are not as many golds, and as `submit` does.
        """
        if len(predictions) != len(golds):
            raise ValueError(f"{len(predictions)} predictions for {len(golds)} golds")
        futures = [self.submit(prediction, gold) for prediction, gold in zip(predictions, golds, strict=True)]
        return [future.result() for future in futures]

    def check_gold(self, gold: str) -> bool:
        """Whether a gold can be judged against."""
        return check_gold(gold)

    def start(self) -> None:
        """Start the worker processes now rather than with the first pair that needs one, and wait for them."""
        for future in [self._pool.submit(["0", "0"]) for _ in range(self._arguments[0])]:
            future.result()

    def close(self) -> None:
        """End the worker processes; verdicts still open become undecided."""
        self._pool.close()

    def _submit_algebra(self, key: tuple[str, str], start: float) -> Future[Verdict]:
        promise: Future[Verdict] = Future()
        promise.set_running_or_notify_cancel()
        with self._lock:
            if key in self._pending:
                return self._pending[key]
            self._pending[key] = promise

        def finish(result: Future[Result]) -> None:
            verdict = _verdict(result.result(), start)
            with self._lock:
                self._pending.pop(key, None)
                self._remember(key, verdict)
            promise.set_result(verdict)

        try:
            self._pool.submit([*key]).add_done_callback(finish)
        except ValueError:  # closed; another thread may wait for this promise already
            with self._lock:
                self._pending.pop(key, None)
            promise.set_result(_verdict(("undecided", "closed", "the verifier was closed"), start))
            raise
        return promise

    def _cached(self, key: tuple[str, str]) -> Verdict | None:
        verdict = self._cache.get(key)
        if verdict is not None:
            self._cache.move_to_end(key)
        return verdict

    def _remember(self, key: tuple[str, str], verdict: Verdict) -> None:
        if verdict.stage in _PASSING_STAGES or (cost := _cost(key)) > _MAX_CACHED_PAIR_BYTES:
            return
        with self._lock:
            if self._cache.pop(key, None) is None:
                self._cache_bytes += cost
            self._cache[key] = verdict
            while self._cache_bytes > _MAX_CACHE_BYTES:
                self._cache_bytes -= _cost(self._cache.popitem(last=False)[0])


def _cost(key: tuple[str, str]) -> int:
    """Bytes that a cached pair holds on to, about."""
    return sys.getsizeof(key[0]) + sys.getsizeof(key[1]) + _ENTRY_BYTES


def _verdict(result: Result, start: float) -> Verdict:
    status, stage, reason = result
    return Verdict(cast(VerdictStatus, status), stage, reason, time.perf_counter() - start)


def _done(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


_verifiers: weakref.WeakSet[Verifier] = weakref.WeakSet()


def _forget_all() -> None:
    for verifier in list(_verifiers):
        verifier.forget_after_fork()


os.register_at_fork(after_in_child=_forget_all)
