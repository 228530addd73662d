"""Claims: a piece is one process's at a time, and those of the dead are anybody's, once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from falcon_h1r.evaluation.work import Claims, has_ended, this_process


def dead_owner(folder: Path, pieces: list[str], elsewhere: bool = False) -> str:
    """A process that has claimed pieces and was killed; or whose machine we do not see."""
    context = multiprocessing.get_context("fork")
    box: Any = context.SimpleQueue()

    def work() -> None:
        with Claims(folder, 60.0) as claims:
            assert all(claims.take(piece) for piece in pieces)
            box.put(claims.owner)
            os.kill(os.getpid(), signal.SIGKILL)

    process = context.Process(target=work)
    process.start()
    owner: str = box.get()
    process.join(timeout=30)
    if elsewhere:
        path = folder / "owners" / owner
        path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere"}))
    return owner


def test_a_piece_is_taken_once(tmp_path: Path) -> None:
    with Claims(tmp_path, 60.0) as one, Claims(tmp_path, 60.0) as other:
        assert one.take("piece")
        assert not one.take("piece")
        assert not other.take("piece")
        assert one.holds("piece") and not other.holds("piece")
        assert one.num_alive() == 2


def test_what_a_process_holds_is_free_when_it_leaves(tmp_path: Path) -> None:
    with Claims(tmp_path, 60.0) as one:
        assert one.take("piece")
        with Claims(tmp_path, 60.0) as other:
            assert not other.take("piece")
    with Claims(tmp_path, 60.0) as other:
        other.look()
        assert other.take("piece")
        assert other.num_alive() == 1


def test_the_claims_of_a_killed_process_of_this_machine_are_taken_at_once(tmp_path: Path) -> None:
    dead_owner(tmp_path, ["a", "b"])
    with Claims(tmp_path, 1e6) as claims:
        claims.look()
        assert claims.num_alive() == 1
        assert claims.take("a") and claims.take("b")


def test_those_of_a_process_elsewhere_are_taken_when_it_gives_no_sign_of_life_for_long(tmp_path: Path) -> None:
    dead_owner(tmp_path, ["a"], elsewhere=True)
    with Claims(tmp_path, 0.4) as claims:
        claims.look()
        assert not claims.take("a")
        deadline = time.monotonic() + 30
        while not claims.take("a"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_signs_of_life_keep_a_claim_longer_than_it_takes_to_be_lost(tmp_path: Path) -> None:
    with Claims(tmp_path, 0.6) as one:
        assert one.take("a")
        path = tmp_path / "owners" / one.owner
        before = path.stat().st_mtime_ns
        deadline = time.monotonic() + 30
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_of_many_that_find_an_owner_dead_one_takes_its_claim(tmp_path: Path) -> None:
    pieces = [f"piece-{n}" for n in range(20)]
    dead_owner(tmp_path, pieces)
    gate, taken = threading.Barrier(4), []

    def compete() -> None:
        with Claims(tmp_path, 60.0) as claims:
            claims.look()
            gate.wait()
            found = [piece for piece in pieces if claims.take(piece)]
            assert all(claims.holds(piece) for piece in found)
            taken.extend(found)
            gate.wait()  # nobody leaves, and frees its own, before all have tried

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(pieces)


def test_an_owner_that_wakes_up_finds_its_claim_taken(tmp_path: Path) -> None:
    sleeper = Claims(tmp_path, 0.2)
    sleeper._beat = lambda: None  # type: ignore[method-assign]
    sleeper._thread = threading.Thread(target=sleeper._beat)
    with sleeper:
        assert sleeper.take("a") and sleeper.holds("a")
        path = tmp_path / "owners" / sleeper.owner
        path.write_text(json.dumps({**this_process(), "host": "elsewhere"}))
        with Claims(tmp_path, 0.2) as other:
            other.look()
            deadline = time.monotonic() + 30
            while not other.take("a"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert other.holds("a") and not sleeper.holds("a")
            sleeper.look()
            assert not sleeper.take("a")


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    own = this_process()
    assert not has_ended(own)
    assert has_ended({**own, "started": own["started"] - 100})
    assert not has_ended({**own, "started": own["started"] - 100, "boot": "another start of the machine"})
