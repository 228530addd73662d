"""The code reward as a service: programs are run by worker threads, each with a sandbox of its own."""

from __future__ import annotations

import atexit
import hashlib
import os
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from falcon_h1r.types import InputError, Verdict
from falcon_h1r.verifier.code.confined import Limits
from falcon_h1r.verifier.code.extract import extract_program
from falcon_h1r.verifier.code.formats import CodeTests, parse_tests
from falcon_h1r.verifier.code.judge import Outcome, Runner, chosen_cases, judge
from falcon_h1r.verifier.code.local import LocalRunner, RunnerLost
from falcon_h1r.verifier.workers.sandbox import SandboxUnavailable, sandbox_support

if TYPE_CHECKING:
    from falcon_h1r.config import CodeVerifierConfig

MAX_PROGRAM_BYTES = 1 << 20
OUTPUT_BYTES = 8 << 20  # of standard output or a result, for one test
_CACHE_SIZE = 16_384
_TEXTS_KEPT = 32  # of tests that were parsed from text
_LOAD_DEPENDENT = ("deadline", "memory", "sandbox", "error", "closed")  # such a verdict may differ next time

_CLOSED: Outcome = ("undecided", "closed", "the verifier was closed")

_Task = tuple[str, CodeTests, Future[Outcome]]


class CodeVerifier:
    """Judges responses against unit tests: `submit` one, or `score` many, from any thread or process.

    Sandboxes start with the first program. Use as a context manager, or call `close`.

    Args:
        num_workers: programs that run at once; each takes up to one core.
        cpu_seconds: of CPU time a test may take: the budget that decides.
        deadline_seconds: a test is stopped after so long whatever it does; it is undecided then.
        memory_limit_bytes: of address space, the interpreter included.
        after_think: only what follows `</think>` is read.
        max_tests: of one problem, drawn once from `seed` and the tests' content; None: all.
        sandbox_url: of a sandbox elsewhere (see falcon_h1r.verifier.code.remote); None: this machine's.

    Raises:
        SandboxUnavailable: where this machine cannot confine a process and no other sandbox is named.
    """

    def __init__(
        self,
        num_workers: int = 1,
        cpu_seconds: float = 6.0,
        deadline_seconds: float = 30.0,
        memory_limit_bytes: int = 1 << 30,
        after_think: bool = False,
        max_tests: int | None = None,
        seed: int = 0,
        sandbox_url: str | None = None,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}")
        if not 0 < cpu_seconds <= deadline_seconds:
            raise ValueError(f"cpu_seconds must be above 0 and at most deadline_seconds, not {cpu_seconds}")
        if max_tests is not None and max_tests < 1:
            raise ValueError(f"max_tests must be at least 1, not {max_tests}")
        if memory_limit_bytes < 64 << 20:
            raise ValueError(f"memory_limit_bytes must leave room for an interpreter, not {memory_limit_bytes}")
        if sandbox_url is None and (missing := sandbox_support().missing()):
            raise SandboxUnavailable(
                f"programs cannot be confined here: no {' and no '.join(missing)}; sandbox_url names one elsewhere"
            )
        self.after_think = after_think
        self.max_tests, self.seed, self.sandbox_url = max_tests, seed, sandbox_url
        self.num_workers = num_workers
        self.limits = Limits(cpu_seconds, deadline_seconds, memory_limit_bytes, OUTPUT_BYTES)
        self._arguments = (
            num_workers,
            cpu_seconds,
            deadline_seconds,
            memory_limit_bytes,
            after_think,
            max_tests,
            seed,
            sandbox_url,
        )
        self.num_deadline_kills = 0  # tests stopped by the wall clock
        self.num_sandbox_failures = 0  # programs that no sandbox could be had for
        self._reset()
        _services.add(self)

    @classmethod
    def from_config(cls, config: CodeVerifierConfig, seed: int, after_think: bool = False) -> CodeVerifier:
        """The verifier that a run's `verifier.code` section describes.

        Raises:
            InputError: where this machine cannot confine a process and no other sandbox is named.
        """
        try:
            return cls(
                num_workers=config.num_workers,
                cpu_seconds=config.cpu_seconds,
                deadline_seconds=config.deadline_seconds,
                memory_limit_bytes=int(config.memory_limit_gib * 2**30),
                after_think=after_think,
                max_tests=config.max_tests,
                seed=seed,
                sandbox_url=config.sandbox_url,
            )
        except SandboxUnavailable as error:
            raise InputError(f"verifier.code: {error}") from None

    def _reset(self) -> None:
        self._lock = threading.RLock()  # a callback may run in the thread that holds it
        self._cache: OrderedDict[tuple[str, str], Outcome] = OrderedDict()
        self._pending: dict[tuple[str, str], Future[Outcome]] = {}
        self._texts: OrderedDict[str, CodeTests] = OrderedDict()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._runners: list[Runner] = []
        self._closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as its settings; the sandboxes there are its own."""
        return CodeVerifier, self._arguments

    def __enter__(self) -> CodeVerifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, response: str, tests: Any) -> Future[Verdict]:
        """The verdict on one response, as a future that never holds an exception.

        `tests` are CodeTests, or whatever parse_tests reads; what it does not read is `unverifiable_gold`.

        Raises:
            ValueError: after `close`, for a program that would have to be run.
        """
        start = time.perf_counter()
        try:
            parsed = self._parsed(tests)
        except InputError as error:
            return _settled("unverifiable_gold", "tests", str(error))
        program = extract_program(response, self.after_think)
        if program is None or not program.strip():
            return _settled("wrong", "extract", "no program in a closed fence" if program is None else "it is empty")
        if len(program.encode(errors="replace")) > MAX_PROGRAM_BYTES:
            return _settled("wrong", "extract", f"the program is longer than {MAX_PROGRAM_BYTES:,} bytes")
        promise: Future[Verdict] = Future()
        promise.set_running_or_notify_cancel()

        def finish(done: Future[Outcome]) -> None:
            promise.set_result(Verdict(*done.result(), seconds=time.perf_counter() - start))

        self._outcome(program, parsed).add_done_callback(finish)
        return promise

    def score(self, responses: Sequence[str], tests: Sequence[Any]) -> list[Verdict]:
        """Verdicts on many responses, in their order."""
        if len(responses) != len(tests):
            raise ValueError(f"{len(responses)} responses for {len(tests)} tests")
        return [future.result() for future in list(map(self.submit, responses, tests))]

    def process_ids(self) -> list[int]:
        """Of the sandboxes that live now on this machine."""
        return [pid for runner in list(self._runners) for pid in runner.process_ids()]

    def close(self) -> None:
        """End the sandboxes; verdicts still open become undecided. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads, runners = list(self._threads), list(self._runners)
            for _ in threads:
                self._tasks.put(None)
        for runner in runners:
            runner.interrupt()
        for thread in threads:
            thread.join()

    def forget_after_fork(self) -> None:
        """In a forked child: the parent's threads are not here and its sandboxes are not ours."""
        for runner in self._runners:
            runner.abandon()
        self._reset()

    def _parsed(self, tests: Any) -> CodeTests:
        """The same as parse_tests; a problem's responses come together, and its tests' text is read once for all."""
        if not isinstance(tests, str):
            return parse_tests(tests)
        with self._lock:
            found = self._texts.get(tests)
        if found is None:
            found = parse_tests(tests)
            with self._lock:
                self._texts[tests] = found
                if len(self._texts) > _TEXTS_KEPT:
                    self._texts.popitem(last=False)
        return found

    # -- running ------------------------------------------------------------------------------------------

    def _outcome(self, program: str, tests: CodeTests) -> Future[Outcome]:
        """The outcome of a program: from the cache, of the same program in the queue, or queued now."""
        key = _key(program, tests)
        promise: Future[Outcome] = Future()
        with self._lock:
            if self._closed:
                raise ValueError("the verifier is closed")
            if (cached := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                promise.set_result(cached)
                return promise
            if key in self._pending:
                return self._pending[key]
            if not self._threads and not self._start_threads():
                self.num_sandbox_failures += 1
                promise.set_result(("undecided", "sandbox", "no thread could be started"))
                return promise
            self._pending[key] = promise
            self._tasks.put((program, tests, promise))
        return promise

    def _start_threads(self) -> bool:
        """One to a worker, or as many as this process may have."""
        for index in range(self.num_workers):
            runner = self._runner()
            thread = threading.Thread(target=self._serve, args=(runner,), name=f"code-verifier-{index}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            self._runners.append(runner)
            self._threads.append(thread)
        return bool(self._threads)

    def _runner(self) -> Runner:
        if self.sandbox_url is None:
            return LocalRunner(self.limits)
        from falcon_h1r.verifier.code.remote import RemoteRunner  # an HTTP client, which few need

        return RemoteRunner(self.sandbox_url, self.limits)

    def _serve(self, runner: Runner) -> None:
        """One thread: takes programs, has one sandbox run them."""
        try:
            while (task := self._tasks.get()) is not None:
                program, tests, promise = task
                outcome = self._judge(program, tests, runner)
                with self._lock:
                    self._pending.pop(_key(program, tests), None)
                    if outcome[1] not in _LOAD_DEPENDENT:
                        self._cache[_key(program, tests)] = outcome
                        if len(self._cache) > _CACHE_SIZE:
                            self._cache.popitem(last=False)
                promise.set_result(outcome)
        finally:
            runner.close()

    def _is_closed(self) -> bool:
        return self._closed  # asked anew each time: another thread may have closed it

    def _judge(self, program: str, tests: CodeTests, runner: Runner) -> Outcome:
        if self._is_closed():
            return _CLOSED
        indices = chosen_cases(tests, self.max_tests, self.seed)
        try:
            outcome = judge(program, tests, indices, runner, self.limits.cpu_seconds)
        except (RunnerLost, OSError) as error:
            runner.close()
            with self._lock:
                if self._is_closed():
                    return _CLOSED
                self.num_sandbox_failures += 1
            return "undecided", "sandbox", str(error)
        except Exception as error:  # the border of the thread: whatever went wrong, the caller gets a verdict
            runner.close()
            return "undecided", "error", f"{type(error).__name__}: {error}"[:200]
        if outcome[1] == "deadline":
            with self._lock:
                self.num_deadline_kills += 1
        return outcome


def _key(program: str, tests: CodeTests) -> tuple[str, str]:
    return hashlib.sha256(program.encode(errors="replace")).hexdigest(), tests.content_hash


def _settled(status: Any, stage: str, reason: str) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(Verdict(status, stage, reason))
    return future


_services: weakref.WeakSet[CodeVerifier] = weakref.WeakSet()


def _close_all() -> None:
    for service in list(_services):
        service.close()


def _forget_all() -> None:
    for service in list(_services):
        service.forget_after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
