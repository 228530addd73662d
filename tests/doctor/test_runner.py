"""A check that fails or hangs becomes its own red line; the others, and the other ranks, go on."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from falcon_h1r.distributed.world import World
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import Finding, merge_ranks, name_ranks
from falcon_h1r.doctor.runner import Check, LostRank, Outcome, Runner
from falcon_h1r.types import InputError
from tests.doctor.examinations import ALONE, RunOnRanks, examination

ROOT = Path(__file__).parents[2]
FINE = Finding("fine", "ok", "1")


def fine(_: Examination) -> list[Finding]:
    return [FINE]


def run_all(world: World, checks: list[Check], folder: Path, seconds: float = 1.0) -> list[Outcome]:
    runner = Runner(world, checks, seconds)
    patient = examination(folder, world)
    return [runner.run(index, patient) for index in range(len(checks))]


def test_an_exception_is_a_red_line_and_keeps_its_traceback(tmp_path: Path) -> None:
    def breaks(_: Examination) -> list[Finding]:
        raise ZeroDivisionError("by nothing")

    broken, after = run_all(ALONE, [Check("breaks", breaks), Check("after", fine)], tmp_path)
    (finding,) = broken.findings
    assert (finding.status, finding.measured) == ("failed", "ZeroDivisionError: by nothing")
    assert "in breaks" in broken.tracebacks[0] and not broken.hung
    assert after.findings == [FINE]


def test_a_wrong_setting_is_told_in_its_own_words(tmp_path: Path) -> None:
    def refuses(_: Examination) -> list[Finding]:
        raise InputError("model.path=x: no such folder")

    (outcome,) = run_all(ALONE, [Check("refuses", refuses)], tmp_path)
    assert outcome.findings[0].measured == "model.path=x: no such folder"
    assert outcome.findings[0].status == "failed" and not outcome.tracebacks


def test_what_hangs_is_red_at_its_deadline_and_holds_nobody_up(tmp_path: Path) -> None:
    def hangs(_: Examination) -> list[Finding]:
        threading.Event().wait()
        return []

    hung, after = run_all(ALONE, [Check("hangs", hangs), Check("after", fine)], tmp_path, seconds=0.2)
    assert hung.hung and hung.findings[0].status == "failed" and "no answer within 0.2 s" in hung.findings[0].measured
    assert after.findings == [FINE]


def test_the_rank_that_failed_is_blamed_and_not_those_that_waited_for_it(
    run_on_ranks: RunOnRanks, tmp_path: Path
) -> None:
    def fails_on_one(patient: Examination) -> list[Finding]:
        if patient.world.rank == 1:
            raise RuntimeError("no device")
        patient.world.barrier()
        return [FINE]

    def meets(patient: Examination) -> list[Finding]:
        return [Finding("sum", "ok", str(patient.world.sum([1.0])[0]))]

    def work(world: World) -> list[Outcome]:
        return run_all(world, [Check("fails", fails_on_one), Check("meets", meets)], tmp_path)

    first, second = run_on_ranks(2, work)
    for failed, after in (first, second):
        (finding,) = failed.findings
        assert finding.measured == "rank 1: RuntimeError: no device"
        assert list(failed.tracebacks) == [1]
        assert after.findings == [Finding("sum", "ok", "2.0")]


def test_after_ranks_left_the_devices_group_apart_only_what_needs_it_is_skipped(
    run_on_ranks: RunOnRanks, tmp_path: Path
) -> None:
    def never_comes(patient: Examination) -> list[Finding]:
        if patient.world.rank == 0:
            dist.barrier()
        else:
            threading.Event().wait()
        return []

    def work(world: World) -> list[Outcome]:
        checks = [
            Check("hangs", never_comes, on_devices=True),
            Check("engine", fine, on_devices=True),
            Check("host", fine),
        ]
        return run_all(world, checks, tmp_path)

    for hung, engine, host in run_on_ranks(2, work):
        assert hung.hung and hung.findings[0].status == "failed"
        assert engine.findings[0].status == "skipped" and "'hangs'" in engine.findings[0].advice
        assert host.findings == [FINE]


def test_a_rank_that_is_gone_ends_the_examination(run_on_ranks: RunOnRanks, tmp_path: Path) -> None:
    def work(world: World) -> str:
        runner = Runner(world, [Check("fine", fine)], 5.0)
        if world.rank == 1:
            return "gone"
        with pytest.raises(LostRank):
            runner.run(0, examination(tmp_path, world))
        return "told"

    assert run_on_ranks(2, work) == ["told", "gone"]


HANGING = """
import threading
from falcon_h1r.doctor import suite
from falcon_h1r.doctor.runner import Check
from pathlib import Path
from tests.doctor.examinations import ALONE, configured
suite.CHECKS = (Check("host", suite.check_host), Check("engine", lambda _: threading.Event().wait()))
suite.examine(configured("doctor.seconds=1"), Path({folder!r}), ALONE)
print("never")
"""


@pytest.mark.slow
def test_a_process_with_a_check_that_still_hangs_ends_with_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING.format(folder=str(tmp_path))]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 1, result.stderr
    assert "FAILED   engine" in result.stdout and "never" not in result.stdout
    assert "NOT fit to train" in result.stdout.splitlines()[-1] and (tmp_path / "doctor.json").exists()


def test_the_gravest_of_all_ranks_is_shown_with_its_ranks() -> None:
    good, bad = Finding("disk", "ok", "fast"), Finding("disk", "failed", "full")
    assert merge_ranks([[good], [good]]) == [good]
    assert merge_ranks([[good], [bad]]) == [Finding("disk", "failed", "rank 1: full")]
    assert merge_ranks([[bad], [bad]]) == [bad]


@pytest.mark.parametrize(
    ("ranks", "named"), [([3], "rank 3"), ([0, 2], "ranks 0, 2"), (range(9), "ranks 0, 1, 2, 3 and 5 more")]
)
def test_ranks_are_named_and_many_are_counted(ranks: list[int], named: str) -> None:
    assert name_ranks(list(ranks)) == named
