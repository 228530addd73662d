"""Programs that attack: none is rewarded, none harms anything, and none leaves anything behind."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from falcon_h1r.verifier.code import CallCase, CodeTests, CodeVerifier, StdinCase
from falcon_h1r.verifier.code.local import LocalRunner
from tests.verifier.code.attacks import ATTACKS, FORGERIES, READS, SECRET, scan_for


def response(source: str) -> str:
    return f"```python\n{source}\n```"


def scratch_folders(verifier: CodeVerifier) -> list[Path]:
    """Of the sandboxes that live."""
    return [
        Path(runner._scratch) for runner in verifier._runners if isinstance(runner, LocalRunner) and runner._scratch
    ]


def secret_tests() -> CodeTests:
    """A problem whose answer no program can know."""
    return CodeTests(tuple(StdinCase(f"{n}\n", f"{SECRET}{secrets.token_hex(16)}\n") for n in (7, 8)))


@pytest.fixture
def surroundings(tmp_path: Path, code_verifier: CodeVerifier) -> Iterator[SimpleNamespace]:
    """A canary file and a listening socket; afterwards nothing may have touched them, and nothing may remain."""
    canary = tmp_path / "canary"
    canary.write_text("sings")
    os.utime(canary, (1, 1))
    mode = canary.stat().st_mode
    shared_memory = set(os.listdir("/dev/shm"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield SimpleNamespace(canary=canary, port=server.getsockname()[1])
        with pytest.raises(TimeoutError):
            server.accept()
    assert canary.read_text() == "sings" and canary.stat().st_mode == mode and canary.stat().st_mtime == 1
    assert canary.stat().st_nlink == 1
    sandboxes = set(code_verifier.process_ids())
    end = time.monotonic() + 5
    while strays := [p for pid in sandboxes for p in psutil.Process(pid).children(recursive=True)]:
        assert time.monotonic() < end, strays
        time.sleep(0.02)
    assert "falcon-left-behind" not in set(os.listdir("/dev/shm")) - shared_memory
    assert [list(folder.iterdir()) for folder in scratch_folders(code_verifier)] == [[], []]


SLEEPERS = ("thread bomb", "a thread that never ends")  # as "endless sleep", they wait out the deadline


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLEEPERS)) for n in ATTACKS])
def test_an_attack_is_not_rewarded_and_leaves_nothing(
    name: str, code_verifier: CodeVerifier, surroundings: SimpleNamespace
) -> None:
    program, stages = ATTACKS[name]
    for mark, value in (
        ("$CANARY", surroundings.canary),
        ("$PORT", surroundings.port),
        ("$TESTS", Path(__file__).parent),
    ):
        program = program.replace(mark, str(value))
    sandboxes = code_verifier.process_ids()
    verdict = code_verifier.submit(response(program), secret_tests()).result(60)
    assert verdict.status in ("wrong", "undecided"), verdict
    assert verdict.stage in stages, verdict
    if "in memory" in name:
        assert "line 1 is 'nothing'" in verdict.reason  # the search itself worked, and found no secret
    assert code_verifier.process_ids() == sandboxes and code_verifier.num_sandbox_failures == 0  # no sandbox was lost
    assert code_verifier.submit(response("print(input())"), {"input": "1", "output": "1"}).result(60).correct


def test_nothing_that_matters_can_be_read(code_verifier: CodeVerifier, surroundings: SimpleNamespace) -> None:
    program = READS.replace("$CANARY", str(surroundings.canary)).replace("$TESTS", str(Path(__file__).parent))
    verdict = code_verifier.submit(response(program), {"input": "", "output": "nothing"}).result(60)
    assert verdict.correct, verdict


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_result_is_worth_what_it_says(
    name: str, code_verifier: CodeVerifier, surroundings: SimpleNamespace
) -> None:
    program, right = FORGERIES[name]
    tests = CodeTests(tuple(CallCase([n], n * 7919) for n in (secrets.randbelow(10**9), 3)), "f")
    verdict = code_verifier.submit(response(program), tests).result(60)
    assert verdict.status == ("correct" if right else "wrong"), verdict


def test_a_program_finds_its_own_text_in_memory_but_no_earlier_programs(surroundings: SimpleNamespace) -> None:
    marker = f"EARLIER-{secrets.token_hex(8)}"
    with CodeVerifier(num_workers=1, cpu_seconds=5.0, deadline_seconds=20.0) as one_worker:
        earlier = one_worker.submit(response(f"print('{marker}')"), {"input": "", "output": marker}).result(60)
        assert earlier.correct
        looking = {"input": "", "output": "nothing"}
        assert one_worker.submit(response(scan_for(marker)), looking).result(60).correct
        own = scan_for(marker) + f"\n# {marker}"
        verdict = one_worker.submit(response(own), looking).result(60)
        assert "EARLIER-" in verdict.reason  # the scan does find what is there


def test_a_program_meets_a_clean_process(code_verifier: CodeVerifier) -> None:
    program = """
import os, sys, resource
print(dict(os.environ), sys.argv, [m for m in sys.modules if m.startswith("falcon")], os.listdir("."))
print([fd for fd in range(200) if os.path.exists("/proc/self/fd/%d" % fd)] and "proc")
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
print([fd for fd in range(1000) if is_open(fd)], resource.getrlimit(resource.RLIMIT_CORE))
print(hash("a text"), random.random())
"""
    verdicts = [
        code_verifier.submit(response(program + f"# {n}"), {"input": "", "output": "?"}).result(60) for n in range(2)
    ]
    assert all(verdict.reason == "test 1 of 1: line 1 is \"{} ['program.py'] [] []\", not '?'" for verdict in verdicts)


@pytest.mark.parametrize("kept", ["print(hash('a text'))", "print(random.random())", "print({'b', 'a', 'c'})"])
def test_the_same_program_does_the_same_twice(kept: str, code_verifier: CodeVerifier) -> None:
    reasons = {
        code_verifier.submit(response(f"{kept}  # {n}"), {"input": "", "output": "?"}).result(60).reason
        for n in range(4)
    }
    assert len(reasons) == 1
