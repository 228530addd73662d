"""One service under threads, coroutines, forks, data loaders, ranks, load and every kind of death."""

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.types import Verdict
from falcon_h1r.verifier import Verifier, verify
from falcon_h1r.verifier.workers import pool, process
from falcon_h1r.verifier.workers.pool import WorkerPool

PAIRS = Path(__file__).resolve().parents[2] / "../shared/verifier/dev_pairs.jsonl"
PATIENCE = 60.0  # seconds for what should take one, on a loaded machine

TASKS = """
import os, signal, socket, subprocess, sys, time

kept = []

def play(what, *rest):
    if what == "sleep":
        time.sleep(rest[0])
    if what == "spin":
        end = time.process_time() + rest[0]
        while time.process_time() < end:
            pass
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "garbage":
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, rest[0].encode())
            except OSError:
                pass
    if what == "keep":
        kept.append(b"x" * rest[0])
    if what == "socket":
        socket.socket()
    if what == "process":
        subprocess.run(["true"])
    if what == "fork":
        os.fork()
    if what == "write":
        open(rest[0], "w")
    if what == "read":
        return "correct", "test", open(__file__).read()[:6]
    return "correct", "test", what
"""


@pytest.fixture
def make_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WorkerPool]]:
    (tmp_path / "verifier_load_tasks.py").write_text(TASKS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    made: list[WorkerPool] = []

    def make(task: str = "verifier_load_tasks:play", deadline_seconds: float = 0.5, **rest: Any) -> WorkerPool:
        made.append(WorkerPool(rest.pop("num_workers", 1), deadline_seconds, 1 << 30, task, **rest))
        return made[-1]

    yield make
    for one in made:
        one.close()


def distinct(count: int, start: int = 1) -> tuple[list[str], list[str], list[bool]]:
    """Pairs that need a worker, each of them new to every cache, right and wrong in turn."""
    numbers = range(start, start + count)
    predictions = [rf"\boxed{{\sqrt{{{2 * n * n + n % 2}}}}}" for n in numbers]
    return predictions, [rf"{n}\sqrt{{2}}" for n in numbers], [n % 2 == 0 for n in numbers]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between open and read
        return False


def gone(pids: list[int], seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


# ---------------------------------------------------------------------- what a worker may do
def test_a_worker_has_no_network_starts_nothing_and_writes_nowhere(
    make_pool: Callable[..., WorkerPool], tmp_path: Path
) -> None:
    confined = make_pool(deadline_seconds=10.0)
    assert confined.submit(["ok"]).result(PATIENCE)[0] == "correct"
    if confined.confinement != ("no writing", "no network, no processes"):
        pytest.skip(f"this kernel offers only {confined.confinement}")
    for task in (["socket"], ["process"], ["fork"], ["write", str(tmp_path / "new")], ["write", "/tmp/new"]):
        status, stage, reason = confined.submit(task).result(PATIENCE)
        assert (status, stage) == ("undecided", "error") and "Error" in reason, task
    assert confined.submit(["read"]).result(PATIENCE) == ("correct", "test", "\nimpor")
    assert not (tmp_path / "new").exists() and not Path("/tmp/new").exists()


def test_the_algebra_works_under_confinement_and_the_layers_are_told() -> None:
    with Verifier(deadline_seconds=20.0) as verifier:
        assert verifier.confinement is None
        integral = verifier.submit(
            r"\boxed{\int_0^1 x^2 dx + \sum_{k=1}^{\infty} \frac{1}{k^2}}", r"\frac13 + \frac{\pi^2}{6}"
        )
        assert integral.result(PATIENCE).correct
        assert isinstance(verifier.confinement, tuple)


# ---------------------------------------------------------------------- deadlines and deaths
def test_a_stopped_or_sleeping_worker_misses_its_deadline_in_wall_time(make_pool: Callable[..., WorkerPool]) -> None:
    one = make_pool()
    for task in (["sleep", 600], ["stop"]):
        assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"
        assert one.submit(task).result(PATIENCE)[:2] == ("undecided", "deadline")
    assert one.num_deadline_kills == 2


def test_a_worker_that_never_reads_does_not_hold_its_thread(make_pool: Callable[..., WorkerPool]) -> None:
    one = make_pool()
    assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"
    (pid,) = one.process_ids()
    os.kill(pid, signal.SIGSTOP)
    assert one.submit(["x" * (1 << 20)]).result(PATIENCE)[:2] == ("undecided", "deadline")
    assert gone([pid])


def test_a_starved_worker_gets_its_seconds_of_cpu(make_pool: Callable[..., WorkerPool]) -> None:
    deadline = 1.0
    one = make_pool(deadline_seconds=deadline, starved_factor=5.0)
    assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"
    cores = os.sched_getaffinity(0)
    (pid,) = one.process_ids()
    core = next(iter(cores))
    os.sched_setaffinity(pid, {core})
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for hog in hogs:
            os.sched_setaffinity(hog.pid, {core})
        start = time.monotonic()
        assert one.submit(["spin", 0.7 * deadline]).result(PATIENCE)[0] == "correct"
        if time.monotonic() - start < deadline:
            pytest.skip("the worker was not starved")
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def test_a_worker_that_answers_nonsense_is_lost_and_replaced(make_pool: Callable[..., WorkerPool]) -> None:
    one = make_pool()
    for garbage in ("[1, 2\n", "7\n", '{"id": 1}\n', '{"id": 77, "result": ["a", "b", "c"], "fit": true}\n', "null\n"):
        assert one.submit(["garbage", garbage]).result(PATIENCE)[:2] == ("undecided", "worker"), garbage
        assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"


def test_verdicts_after_a_killed_worker_are_as_before() -> None:
    predictions, golds, right = distinct(30)
    with Verifier(deadline_seconds=20.0) as verifier:
        assert verifier.submit(r"\boxed{\sqrt{8}+1}", r"2\sqrt{2}+1").result(PATIENCE).correct
        (pid,) = verifier._pool.process_ids()
        os.kill(pid, signal.SIGKILL)
        verdicts = verifier.score(predictions, golds)
        assert verifier.num_lost_workers == 1
    lost = [n for n, v in enumerate(verdicts) if v.status == "undecided"]
    assert len(lost) == 1 and verdicts[lost[0]].stage == "worker"
    assert all(v.correct == r for n, (v, r) in enumerate(zip(verdicts, right, strict=True)) if n not in lost)


@pytest.mark.parametrize("task", ["no_such_module:play", "os:no_such_function"])
def test_workers_that_cannot_start_leave_pairs_undecided_with_one_warning(
    make_pool: Callable[..., WorkerPool],
    task: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool.log, "disabled", False)  # a library's logging set-up in an earlier test may disable it
    broken = make_pool(task, num_workers=2)
    with caplog.at_level(logging.WARNING):
        results = [future.result(PATIENCE) for future in [broken.submit([n]) for n in range(200)]]
    assert {result[:2] for result in results} == {("undecided", "worker")}
    assert all("no_such" in reason for _, _, reason in results)
    assert len([r for r in caplog.records if "do not start" in r.message and "no_such" in r.message]) == 1
    assert broken.process_ids() == []


def test_an_interpreter_that_is_not_there_is_no_hang(
    make_pool: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert make_pool().submit(["ok"]).result(PATIENCE)[:2] == ("undecided", "worker")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "exit status" in make_pool().submit(["ok"]).result(PATIENCE)[2]


def test_a_worker_too_small_for_its_imports_is_no_hang() -> None:
    with Verifier(memory_limit_bytes=20 << 20) as tiny:
        predictions, golds, _ = distinct(20)
        assert {(v.status, v.stage) for v in tiny.score(predictions, golds)} == {("undecided", "worker")}


def test_a_start_that_never_ends_is_given_up(
    make_pool: Callable[..., WorkerPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verifier_endless.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(process, "START_SECONDS", 1.0)
    one = make_pool("verifier_endless:play")
    results = [future.result(PATIENCE) for future in [one.submit([n]) for n in range(20)]]
    assert {result[:2] for result in results} == {("undecided", "worker")}


def test_a_pool_that_could_not_start_tries_again_later(
    make_pool: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_RETRY_SECONDS", 0.0)
    one = make_pool()
    real = sys.executable
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert one.submit(["ok"]).result(PATIENCE)[1] == "worker"
    monkeypatch.setattr(sys, "executable", real)
    assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"


def test_a_worker_is_replaced_after_so_many_tasks(
    make_pool: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_TASKS_PER_PROCESS", 3)
    one = make_pool(deadline_seconds=10.0)
    seen = set()
    for _ in range(7):
        assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"
        seen.update(one.process_ids())
    assert len(seen) >= 2 and one.num_lost_workers == one.num_deadline_kills == 0
    assert gone(sorted(seen - set(one.process_ids())))


def test_a_worker_of_a_large_process_is_not_replaced_for_it(make_pool: Callable[..., WorkerPool]) -> None:
    ballast = b"x" * (700 << 20)
    one = make_pool(deadline_seconds=10.0)
    pids = []
    for _ in range(3):
        assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"
        pids += one.process_ids()
    assert len(pids) == 3 and len(set(pids)) == 1 and ballast


def test_a_worker_that_has_grown_is_replaced(make_pool: Callable[..., WorkerPool]) -> None:
    one = make_pool(deadline_seconds=10.0)
    assert one.submit(["keep", 600 << 20]).result(PATIENCE)[0] == "correct"
    assert one.process_ids() == []
    assert one.submit(["ok"]).result(PATIENCE)[0] == "correct"
    assert one.num_lost_workers == 0


# ---------------------------------------------------------------------- coroutines and futures
def test_coroutines_gather_verdicts() -> None:
    predictions, golds, right = distinct(40)

    async def gather(verifier: Verifier) -> list[Verdict]:
        futures = [verifier.submit(p, g) for p, g in zip(predictions, golds, strict=True)]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    with Verifier(2, deadline_seconds=20.0) as verifier:
        assert [v.correct for v in asyncio.run(gather(verifier))] == right


def test_a_coroutine_that_stops_waiting_takes_nothing_from_the_others() -> None:
    slow = (r"\boxed{\int_0^1 \frac{\sin x}{x^2+1} dx}", r"\int_0^1 \frac{\sin x}{1+x^2} dx + 0 \cdot \pi")

    async def race(verifier: Verifier) -> Verdict:
        patient = asyncio.ensure_future(asyncio.wrap_future(verifier.submit(*slow)))
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(verifier.submit(*slow)), 0.001)
        assert not verifier.submit(*slow).cancel()
        return await asyncio.wait_for(patient, PATIENCE)

    with Verifier(deadline_seconds=1.0) as verifier:
        shared = asyncio.run(race(verifier))
        assert shared.stage in ("algebra", "deadline", "budget")
        predictions, golds, right = distinct(4)
        assert [v.correct for v in verifier.score(predictions, golds)] == right  # the threads live on


def test_a_callback_that_raises_or_closes_harms_nobody(make_pool: Callable[..., WorkerPool]) -> None:
    one = make_pool()
    closed: Future[None] = Future()

    def close(_: Future[Any]) -> None:
        one.close()
        closed.set_result(None)

    first = one.submit(["sleep", 0.05])
    first.add_done_callback(lambda _: 1 / 0)
    first.add_done_callback(close)
    later = one.submit(["ok"])
    closed.result(PATIENCE)
    assert later.result(PATIENCE)[0] in ("correct", "undecided")


# ---------------------------------------------------------------------- closing and dying
def test_closing_in_the_middle_of_a_batch_answers_every_future() -> None:
    predictions, golds, _ = distinct(300)
    verifier = Verifier(2, deadline_seconds=20.0)
    futures = [verifier.submit(p, g) for p, g in zip(predictions, golds, strict=True)]
    futures[0].result(PATIENCE)
    pids = verifier._pool.process_ids()
    verifier.close()
    assert {f.result(1.0).stage for f in futures} <= {"algebra", "closed"}
    assert gone(pids) and verifier.num_lost_workers == 0


def test_an_abandoned_service_leaves_no_process() -> None:
    predictions, golds, right = distinct(5)
    verifier = Verifier(2, deadline_seconds=20.0)
    assert [v.correct for v in verifier.score(predictions, golds)] == right
    pids, threads = verifier._pool.process_ids(), list(verifier._pool._threads)
    assert pids
    del verifier
    gc.collect()
    assert gone(pids)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_service_dropped_while_it_works_still_answers() -> None:
    predictions, golds, right = distinct(5)
    futures = [Verifier(deadline_seconds=20.0).submit(p, g) for p, g in zip(predictions, golds, strict=True)]
    gc.collect()
    assert [f.result(PATIENCE).correct for f in futures] == right


CHILD = """
import os, signal, sys, time
from falcon_h1r.verifier import Verifier
verifier = Verifier(2, deadline_seconds=600.0)
n = int(sys.argv[1])
slow = [rf"\\boxed{{\\sqrt{{{2 * k * k}}}}}" for k in range(1, n)], [rf"{k}\\sqrt{{2}}" for k in range(1, n)]
verifier.score(slow[0][:4], slow[1][:4])
print(*verifier._pool.process_ids(), flush=True)
"""


def _child(ending: str, count: int = 3_000) -> tuple[subprocess.Popen[str], list[int]]:
    command = [sys.executable, "-c", CHILD + ending, str(count)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, [int(pid) for pid in child.stdout.readline().split()]


@pytest.mark.parametrize(
    "ending",
    ["raise SystemExit(0)", pytest.param("[verifier.submit(*pair) for pair in zip(*slow)]", marks=pytest.mark.slow)],
)
def test_an_interpreter_that_exits_takes_its_workers_along(ending: str) -> None:
    child, pids = _child(ending)
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0 and errors == ""
    assert pids and gone(pids)


def test_an_interrupt_in_score_leaves_no_process() -> None:
    child, pids = _child("\nprint('scoring', flush=True)\nverifier.score(*slow)", count=200_000)
    assert child.stdout is not None and child.stdout.readline() == "scoring\n"
    time.sleep(0.3)
    assert all(map(alive, pids))
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in errors
    assert pids and gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_killed_parent_leaves_no_orphan_even_of_a_worker_that_computes(tmp_path: Path) -> None:
    (tmp_path / "verifier_load_tasks.py").write_text(TASKS)
    code = (
        f"import sys, time; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from falcon_h1r.verifier.workers.pool import WorkerPool\n"
        "pool = WorkerPool(1, 600.0, 1 << 30, 'verifier_load_tasks:play')\n"
        "pool.submit(['ok']).result(60); pool.submit(['spin', 500.0])\n"
        "print(*pool.process_ids(), flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids and all(map(alive, pids))
    parent.kill()
    parent.communicate(timeout=PATIENCE)
    assert gone(pids)


# ---------------------------------------------------------------------- processes beside it
def test_a_fork_with_pairs_pending_leaves_the_child_a_working_service() -> None:
    predictions, golds, right = distinct(60)
    with Verifier(deadline_seconds=20.0) as verifier:
        futures = [verifier.submit(p, g) for p, g in zip(predictions, golds, strict=True)]
        child = os.fork()
        if child == 0:
            signal.alarm(int(PATIENCE))  # its default action ends the child, should it hang
            same = [v.correct for v in verifier.score(predictions, golds)] == right
            verifier.close()
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [f.result(PATIENCE).correct for f in futures] == right
        assert verifier.num_lost_workers == 0


@pytest.mark.slow
def test_forks_in_the_middle_of_threads_that_score() -> None:
    stop = threading.Event()
    with Verifier(2, deadline_seconds=20.0) as verifier:

        def work(first: int) -> bool:
            good, start = True, first
            while not stop.is_set():
                predictions, golds, right = distinct(5, start)
                good &= [v.correct for v in verifier.score(predictions, golds)] == right
                start += 5
            return good

        with ThreadPoolExecutor(3) as threads:
            running = [threads.submit(work, 100_000 * n) for n in (1, 2, 3)]
            codes = []
            for n in range(5):
                child = os.fork()
                if child == 0:
                    signal.alarm(int(PATIENCE))
                    predictions, golds, right = distinct(3, 1_000 * n + 1)
                    os._exit(0 if [v.correct for v in verifier.score(predictions, golds)] == right else 1)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            stop.set()
            assert codes == [0] * 5
            assert all(future.result(PATIENCE) for future in running)
        assert verifier.num_lost_workers == verifier.num_deadline_kills == 0


def _rank(first: int) -> list[bool]:
    predictions, golds, right = distinct(20, first)
    with Verifier(2, deadline_seconds=20.0) as verifier:
        return [v.correct == r for v, r in zip(verifier.score(predictions, golds), right, strict=True)]


def test_every_rank_has_a_service_at_once() -> None:
    with multiprocessing.get_context("fork").Pool(4) as ranks:
        assert ranks.map_async(_rank, [1, 1, 50, 99]).get(2 * PATIENCE) == [[True] * 20] * 4


class Graded:
    """A dataset whose items are judged where they are loaded."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.predictions, self.golds, self.right = distinct(12)

    def __len__(self) -> int:
        return len(self.predictions)

    def __getitem__(self, index: int) -> bool:
        verdict = self.verifier.submit(self.predictions[index], self.golds[index]).result(PATIENCE)
        return verdict.correct == self.right[index]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_workers_of_a_data_loader_judge(method: str) -> None:
    from torch.utils.data import DataLoader

    with Verifier(deadline_seconds=20.0) as verifier:
        assert verifier.submit(r"\boxed{\sqrt{8}}", r"2\sqrt{2}").result(PATIENCE).correct  # before the fork
        data: Any = Graded(verifier)
        loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=method)
        assert [bool(x) for batch in loader for x in batch] == [True] * 12


def test_many_services_at_once_keep_apart() -> None:
    predictions, golds, right = distinct(8)
    verifiers = [Verifier(deadline_seconds=30.0) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        scored = list(threads.map(lambda v: [x.correct for x in v.score(predictions, golds)], verifiers))
    pids = [pid for v in verifiers for pid in v._pool.process_ids()]
    assert scored == [right] * 6 and len(set(pids)) == 6
    for verifier in verifiers:
        verifier.close()
    assert gone(pids)


# ---------------------------------------------------------------------- load
def _labelled() -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()] if PAIRS.exists() else []
    predictions, golds, _ = distinct(30)
    own = [
        (r"\boxed{\int_0^1 x^2 dx}", r"\frac13"), (r"\boxed{\sum_{k=1}^{\infty} 2^{-k}}", "1"),
        (r"\boxed{\lim_{x \to 0} \frac{\sin x}{x}}", "1"), (r"\boxed{9^{9^{9}}}", r"\pi"),
        (r"\boxed{\sin^2 x + \cos^2 x}", "1"), (r"\boxed{(x+1)^{20}}", "x"),
        (r"\boxed{\{x \mid x^2 < 2\}}", r"(-\sqrt2, \sqrt2)"),
    ]  # fmt: skip
    return (
        [*predictions, *(p for p, _ in own), *(row["prediction"] for row in rows)],
        [*golds, *(g for _, g in own), *(row["gold"] for row in rows)],
    )


def test_verdicts_do_not_depend_on_workers_nor_on_load() -> None:
    predictions, golds = _labelled()

    def judged(num_workers: int) -> list[tuple[str, str]]:
        with Verifier(num_workers, deadline_seconds=5.0) as verifier:
            return [(v.status, v.stage) for v in verifier.score(predictions, golds)]

    alone = judged(1)
    assert judged(4) == alone
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        assert judged(2) == alone
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    plain = [verify(p, g) for p, g in zip(predictions, golds, strict=True)]
    assert [(v.status, v.stage) for v in plain] == alone
