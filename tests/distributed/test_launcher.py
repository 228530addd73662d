"""The launcher's own part: it sees that a rank has ended, whichever, and waits for none of the others for ever."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from falcon_h1r.distributed import launcher


def started(*codes: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", code]) for code in codes]


@pytest.mark.timeout(30)
def test_a_rank_that_fails_ends_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.2)
    ranks = started("import time; time.sleep(60)", "raise SystemExit(3)")
    assert launcher._wait_for(ranks) == 3
    assert ranks[0].returncode == -signal.SIGKILL


@pytest.mark.timeout(30)
def test_a_killed_rank_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.2)
    ranks = started("import time; time.sleep(60)", "import os; os.kill(os.getpid(), 9)")
    assert launcher._wait_for(ranks) == launcher.FAILED
    assert capsys.readouterr().err == "error: rank 1 was killed by SIGKILL\n"


@pytest.mark.timeout(30)
def test_a_stop_before_ranks_take_signals_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = started("import os; os.kill(os.getpid(), 15)", "import os; os.kill(os.getpid(), 15)")
    assert launcher._wait_for(ranks, {signal.SIGTERM}) == launcher.STOPPED
    assert capsys.readouterr().err == "SIGTERM: stopped before the run had begun\n"
