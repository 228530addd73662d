"""Judges that hang, die, chatter or do not start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from falcon_h1r.benchmark.verifier.judges import HANG, Judge, JudgeProcess, Limits, last_core, our_judge, peer_versions
from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.types import InputError

# Obeys its gold, and otherwise says correct.
OBEDIENT = r"""
import json, os, subprocess, sys, time
for line in sys.stdin:
    row = json.loads(line)
    if row["gold"] == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        open(row["prediction"], "w").write(str(child.pid))
        time.sleep(600)
    if row["gold"] == "exit":
        sys.exit(3)
    if row["gold"] == "die":
        os.kill(os.getpid(), 9)
    if row["gold"] == "chatter":
        print("hello", "[1]", json.dumps({"id": "someone else", "correct": False}), sep="\n", flush=True)
    verdict = None if row["gold"] == "shrug" else True
    print(json.dumps({"id": row["id"], "correct": verdict, "stage": "%d" % len(row["prediction"])}), flush=True)
"""


def pair(gold: str, prediction: str = "") -> Pair:
    return Pair("id", prediction, gold, True, "numeric")


@contextmanager
def obedient(call_seconds: float = 20.0) -> Iterator[JudgeProcess]:
    judge = Judge("obedient", (sys.executable, "-c", OBEDIENT))
    with closing(JudgeProcess(judge, Limits(call_seconds, None, last_core()))) as process:
        yield process


@pytest.mark.parametrize(
    ("order", "fault"), [("exit", "ended with status 3"), ("die", "killed by signal 9"), ("shrug", None)]
)
def test_the_next_pair_is_judged_whatever_happened(order: str, fault: str | None) -> None:
    with obedient() as process:
        judgement = process.judge_pair(pair(order))
        assert (judgement.verdict, judgement.fault) == (None, fault)
        assert process.judge_pair(pair("1")).verdict is True


def test_a_hang_is_killed_at_its_limit_with_its_children(tmp_path: Path) -> None:
    with obedient(call_seconds=2.0) as process:
        judgement = process.judge_pair(pair("hang", str(tmp_path / "pid")))
        assert (judgement.verdict, judgement.fault) == (None, HANG)
        assert 2.0 <= judgement.seconds < 4.0
        assert is_gone(int((tmp_path / "pid").read_text()))
        assert process.judge_pair(pair("1")).verdict is True


def is_gone(pid: int) -> bool:
    """Within a while: an orphan is reaped by whoever adopts it."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):  # the second where it ends between open and read
            return True
        time.sleep(0.05)
    return False


def test_lines_that_answer_something_else_are_passed_over() -> None:
    with obedient() as process:
        assert process.judge_pair(pair("chatter")).verdict is True


def test_a_long_response_arrives_whole() -> None:
    with obedient() as process:
        assert process.judge_pair(pair("1", "x" * 3_000_000)).note == "3000000"


def test_a_judge_that_does_not_start_is_one_line() -> None:
    judge = Judge("nobody", (sys.executable, "-c", "raise SystemExit(4)"))
    failure = pytest.raises(InputError, match=r"nobody does not start: ended with status 4")
    with closing(JudgeProcess(judge, Limits(1.0, None, None))) as process, failure:
        process.start()


def test_ours_judges_on_the_core_it_is_given_and_leaves_nothing_behind() -> None:
    core = last_core()
    with closing(JudgeProcess(our_judge(), Limits(60.0, 2.0, core))) as process:
        algebra = process.judge_pair(Pair("a", r"\boxed{(x+1)^2}", "x^2+2x+1", True, "symbolic"))
        assert algebra.verdict is True and algebra.peak_bytes > 10 * 1024**2
        assert process.judge_pair(Pair("b", r"\boxed{2}", "3", False, "numeric")).verdict is False
        family = process._family()
        if core is not None:
            assert {tuple(member.cpu_affinity()) for member in family} == {(core,)}
    assert all(is_gone(member.pid) for member in family)


def test_an_interpreter_without_math_verify_is_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    assert subprocess.run([bare, "-c", "import math_verify"], capture_output=True).returncode != 0
    with pytest.raises(InputError, match=r"peer_python=.*: cannot import math_verify there"):
        peer_versions(str(bare))
    with pytest.raises(InputError, match=r"peer_python=/nowhere/python: cannot be started"):
        peer_versions(os.path.join("/nowhere", "python"))
