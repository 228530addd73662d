"""The service: futures, threads, processes, deadlines, and nothing left behind."""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from falcon_h1r.verifier import Verifier, verify
from falcon_h1r.verifier.workers.pool import WorkerPool

ALGEBRA = [(rf"\boxed{{\sqrt{{{n * n * 2}}}}}", rf"{n}\sqrt{{2}}") for n in range(1, 30)]

TASKS = """
import os, time

def play(what):
    if what == "hang":
        while True:
            pass
    if what == "bignum":  # holds the interpreter lock: no signal handler of Python would run
        return "correct", "test", str(len(bin(9 ** (9 ** 9))))
    if what == "memory":
        return "correct", "test", str(len("x" * (8 << 30)))
    if what == "die":
        os._exit(3)
    if what == "raise":
        raise KeyError("oops")
    if what == "print":
        print("this is no reply")
    if what.startswith("/"):
        with open(what, "w") as file:
            file.write("x" * 100)
    return "correct", "test", what
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    (tmp_path / "verifier_test_tasks.py").write_text(TASKS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    pool = WorkerPool(1, deadline_seconds=0.5, memory_limit_bytes=1 << 30, task="verifier_test_tasks:play")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(num_workers=2, deadline_seconds=10.0) as shared:
        yield shared


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("bomb", ["hang", "bignum"])
def test_a_hanging_worker_is_killed_replaced_and_counted(pool: WorkerPool, bomb: str) -> None:
    assert pool.submit(["ok"]).result(60) == ("correct", "test", "ok")
    (first,) = pool.process_ids()
    start = time.monotonic()
    status, stage, _ = pool.submit([bomb]).result(60)
    assert (status, stage) == ("undecided", "deadline")
    assert time.monotonic() - start < 10
    assert pool.num_deadline_kills == 1
    assert not alive(first)
    assert pool.submit(["ok"]).result(60) == ("correct", "test", "ok")
    assert pool.process_ids() != [first]


def test_a_memory_bomb_meets_the_limit_and_harms_nobody(pool: WorkerPool) -> None:
    assert pool.submit(["memory"]).result(60)[:2] == ("undecided", "memory")
    assert pool.submit(["ok"]).result(60)[0] == "correct"
    assert pool.num_deadline_kills == 0


def test_a_worker_that_dies_is_replaced(pool: WorkerPool) -> None:
    assert pool.submit(["die"]).result(60)[:2] == ("undecided", "worker")
    assert pool.submit(["ok"]).result(60)[0] == "correct"
    assert pool.num_lost_workers == 1


def test_an_exception_in_a_worker_is_a_verdict_that_names_it(pool: WorkerPool) -> None:
    assert pool.submit(["raise"]).result(60) == ("undecided", "error", "KeyError: 'oops'")


def test_what_a_library_prints_is_no_reply(pool: WorkerPool) -> None:
    assert pool.submit(["print"]).result(60) == ("correct", "test", "print")


def test_a_worker_cannot_fill_a_file(pool: WorkerPool, tmp_path: Path) -> None:
    target = tmp_path / "written"
    status, _, reason = pool.submit([str(target)]).result(60)
    assert status == "undecided" and ("OSError" in reason or "PermissionError" in reason)
    assert not target.exists() or target.stat().st_size == 0


def test_close_kills_a_running_task_and_leaves_no_process(pool: WorkerPool) -> None:
    pool.deadline_seconds = 60
    pool.submit(["ok"]).result(60)
    pids = pool.process_ids()
    running, waiting = pool.submit(["hang"]), pool.submit(["ok"])
    pool.close()
    assert running.result(5)[0] == waiting.result(5)[0] == "undecided"
    assert pids and not any(map(alive, pids))
    with pytest.raises(ValueError, match="closed"):
        pool.submit(["ok"])


def test_a_batch_that_cheap_stages_settle_starts_no_process() -> None:
    with Verifier() as fresh:
        verdicts = fresh.score([r"\boxed{1}", r"\boxed{0.5}", r"\boxed{2, 1}", "none"], ["1", "1/2", "1, 2", "3"])
        assert [v.correct for v in verdicts] == [True, True, True, False]
        assert fresh._pool.process_ids() == []
        assert not fresh._pool._threads


def test_the_service_agrees_with_the_plain_function(verifier: Verifier) -> None:
    pairs = [
        *ALGEBRA,
        (r"\boxed{x}", "y"),
        (r"\boxed{\sqrt{3}}", r"\sqrt{2}"),
        ("no box", "1"),
        (r"\boxed{9^{9^{9}}}", r"\pi"),
    ]
    verdicts = verifier.score([p for p, _ in pairs], [g for _, g in pairs])
    plain = [verify(p, g) for p, g in pairs]
    assert [(v.status, v.stage) for v in verdicts] == [(v.status, v.stage) for v in plain]


def test_scores_come_in_the_order_of_their_pairs(verifier: Verifier) -> None:
    predictions = [rf"\boxed{{\sqrt{{{n % 3}}} + {n}}}" for n in range(40)]
    golds = [rf"{n} + \sqrt{{{n % 2}}}" for n in range(40)]
    correct = [v.correct for v in verifier.score(predictions, golds)]
    assert correct == [n % 3 == n % 2 for n in range(40)]


def test_many_threads_share_one_service(verifier: Verifier) -> None:
    def work(_: int) -> list[bool]:
        return [v.correct for v in verifier.score([p for p, _ in ALGEBRA], [g for _, g in ALGEBRA])]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [[True] * len(ALGEBRA)] * 8


def test_a_repeated_pair_comes_from_the_cache(verifier: Verifier) -> None:
    pair = (r"\boxed{\sqrt{50} + 1}", r"5\sqrt{2} + 1")
    first = verifier.submit(*pair).result(60)
    again = verifier.submit(*pair)
    assert again.done() and again.result() is first


def test_a_forked_child_gets_workers_of_its_own(verifier: Verifier) -> None:
    assert verifier.submit(*ALGEBRA[3]).result(60).correct
    parents = set(verifier._pool.process_ids())
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        right = verifier.submit(r"\boxed{\sqrt{300}}", r"10\sqrt{3}").result(60).correct
        own = set(verifier._pool.process_ids())
        verifier.close()
        os._exit(0 if right and own and not own & parents else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert all(map(alive, parents))
    assert verifier.submit(r"\boxed{\sqrt{700}}", r"10\sqrt{7}").result(60).correct


def test_a_service_travels_as_its_settings() -> None:
    with Verifier(num_workers=3, deadline_seconds=1.5, after_think=True) as original:
        copy = pickle.loads(pickle.dumps(original))
    with copy:
        assert copy.after_think and copy._pool.num_workers == 3 and copy._pool.deadline_seconds == 1.5
        assert copy.score([r"</think>\boxed{1}"], ["1"])[0].correct


def test_close_leaves_neither_process_nor_thread() -> None:
    fresh = Verifier(deadline_seconds=10.0)
    assert fresh.submit(r"\boxed{\sqrt{18}}", r"3\sqrt{2}").result(60).correct
    pids = fresh._pool.process_ids()
    fresh.close()
    fresh.close()
    assert pids and not any(map(alive, pids))
    assert not any(t.name.startswith("verifier-") and t in fresh._pool._threads for t in threading.enumerate())


@pytest.mark.parametrize("settings", [{"num_workers": 0}, {"deadline_seconds": 0.0}])
def test_impossible_settings_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Verifier(**settings)  # type: ignore[arg-type]


def test_batches_of_different_lengths_are_refused(verifier: Verifier) -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 golds"):
        verifier.score(["x"], ["1", "2"])
