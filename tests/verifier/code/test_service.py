"""The service: futures, threads, processes, budgets, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.types import Verdict
from falcon_h1r.verifier.code import CodeVerifier, local, service
from falcon_h1r.verifier.code.formats import CodeTests, StdinCase, parse_tests
from falcon_h1r.verifier.code.judge import chosen_cases
from falcon_h1r.verifier.workers import sandbox
from falcon_h1r.verifier.workers.sandbox import SandboxSupport, SandboxUnavailable

DOUBLE = {"inputs": [f"{n}\n" for n in range(6)], "outputs": [f"{2 * n}\n" for n in range(6)]}
RIGHT = "```python\nprint(2 * int(input()))\n```"
# Many competition programs begin like this.
FAST_INPUT = """
import os, sys
from io import BytesIO, IOBase
class FastIO(IOBase):
    newlines = 0
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None
    def readline(self):
        while self.newlines == 0:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, 8192))
            self.newlines = b.count(b"\\n") + (not b)
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines -= 1
        return self.buffer.readline()
    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
class IOWrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
        self.readline = lambda: self.buffer.readline().decode("ascii")
sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip()
print(2 * int(input()))
"""


def response(source: str) -> str:
    return f"```python\n{source}\n```"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between open and read
        return False


def wait_until_gone(*pids: int) -> bool:
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.parametrize(
    ("source", "status", "stage", "reason"),
    [
        ("print(2 * int(input()))", "correct", "test", "6 of 6 tests, all passed"),
        ("print(0 * int(input()))", "wrong", "test", "test 2 of 6: line 1 is '0', not '2'"),
        ("print(2 * int(input())", "wrong", "compile", "test 1 of 6: SyntaxError: '(' was never closed"),
        ("x = 1\n y = 2", "wrong", "compile", "test 1 of 6: IndentationError: unexpected indent"),
        ("n = int(input())\nprint(2 * n // (3 - n) * (3 - n))", "wrong", "runtime", "test 4 of 6: ZeroDivisionError"),
        (
            "n = int(input())\nif n == 4:\n    while 1: pass\nprint(2 * n)",
            "wrong",
            "time",
            "test 5 of 6: more than 0.6 s of CPU",
        ),
        ("n = int(input())\nprint(2 * n)\nif n == 5: x = ' ' * 10**10", "wrong", "memory", "test 6 of 6: MemoryError"),
        ("print(open('/etc/passwd').read())", "wrong", "forbidden", "test 1 of 6: PermissionError"),
        ("import numpy", "wrong", "runtime", "test 1 of 6: ModuleNotFoundError: No module named 'numpy'"),
        ("import time\ntime.sleep(99)", "undecided", "deadline", "test 1 of 6: no end before the deadline"),
        ("raise SystemExit(3)", "wrong", "runtime", "test 1 of 6: exit status 3"),
        ("print(2 * int(input()))\nexit()", "correct", "test", "6 of 6 tests"),
        ("import builtins\nprint(2 * int(input()))\nbuiltins.exit(0)", "correct", "test", "6 of 6 tests"),
        ("print(2 * int(input()))\nquit()\nprint('?')", "correct", "test", "6 of 6 tests"),
        ("", "wrong", "extract", "it is empty"),
    ],
)
def test_a_verdict_names_the_stage_and_the_first_failing_test(
    source: str, status: str, stage: str, reason: str, code_verifier: CodeVerifier
) -> None:
    verdict = code_verifier.submit(response(source), DOUBLE).result(60)
    assert (verdict.status, verdict.stage) == (status, stage), verdict
    assert verdict.reason.startswith(reason)


def test_a_response_without_a_program_is_wrong_and_bad_tests_are_nobodys_fault(code_verifier: CodeVerifier) -> None:
    assert code_verifier.submit("I give up.", DOUBLE).result() == Verdict(
        "wrong", "extract", "no program in a closed fence"
    )
    bad = code_verifier.submit(RIGHT, {"inputs": ["1"], "outputs": []}).result()
    assert bad == Verdict("unverifiable_gold", "tests", "tests have 1 inputs and 0 outputs")
    long = code_verifier.submit(response("#" * (2 << 20)), DOUBLE).result()
    assert (long.status, long.stage) == ("wrong", "extract")


@pytest.mark.parametrize(
    "source",
    [
        "def double(n): return 2 * n",
        "class Solution:\n    def double(self, n: int) -> Optional[int]:\n        return 2 * n",
        "class Solution:\n    @staticmethod\n    def double(n): return 2 * n",
        "double = lambda n: n + n",
        "from __future__ import annotations\ndef double(n: Unknown) -> Unknown: return n << 1",
        "def double(n): return n * 2.0\nif __name__ == '__main__':\n    print(double(int(input())))",
        "from operator import add\nimport pickle\nclass A:\n    pass\n"
        "def double(n): return add(n, n) if pickle.loads(pickle.dumps(A())) else 0",
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    n: int\ndef double(n): return P(2 * n).n",
    ],
)
def test_functions_and_methods_are_found(source: str, code_verifier: CodeVerifier) -> None:
    tests = {"fn_name": "double", "inputs": [[n] for n in range(3)], "outputs": [0, 2, 4]}
    assert code_verifier.submit(response(source), tests).result(60).correct


def test_a_name_that_the_program_never_mentions_is_not_its_function(code_verifier: CodeVerifier) -> None:
    tests = {"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]}
    verdict = code_verifier.submit(response("pass"), tests).result(60)
    assert (verdict.status, verdict.stage) == ("wrong", "runtime") and "defines no gcd" in verdict.reason
    assert code_verifier.submit(response("from math import gcd"), tests).result(60).correct


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nfor line in sys.stdin: print(2 * int(line))",
        "import sys, io, os\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\nprint(2 * int(input()))",
        "print(2 * int(open(0).read()))",
        "print(2 * int(open('/dev/stdin').read()))",
        "import sys\nsys.stdout.write(str(2 * int(sys.stdin.readline())))",
        "import os\nos.write(1, str(2 * int(input())).encode())",
        "import threading\nthreading.Thread(target=lambda: print(2 * int(input()))).start()",
        "import atexit\nn = int(input())\natexit.register(lambda: print(2 * n))",
        "import sys, io\nsys.stdout = o = io.StringIO()\nprint(2 * int(input()))\nsys.__stdout__.write(o.getvalue())",
        "from resource import *\nsetrlimit(RLIMIT_STACK, (RLIM_INFINITY, RLIM_INFINITY))\nprint(2 * int(input()))",
        "import decimal\nprint(decimal.Decimal(input()) * 2)",
        "import asyncio\nprint(2 * int(input()))",
        "import os, sys\nsys.stderr = open(os.devnull, 'w')\nprint(2 * int(input()))",
        "with open('scratch', 'w') as f: f.write(input())\nprint(2 * int(open('scratch').read()))",
        "import sys\nprint(2 * int(sys.stdin.buffer.read()))\nsys.exit()",
        "from functools import *\nprint(2 * int(input()), file=stdout)",
        FAST_INPUT,
        "import sys\nclass Out:\n    def __init__(self, file): self.write, self.flush = file.write, file.flush\n"
        "sys.stdout = Out(sys.stdout)\nprint(2 * int(input()))",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\nprint(2 * int(input()))",
        "out = open(1, 'w')\nprint(2 * int(input()), file=out)",
        "import functools, os\nprint = functools.partial(print, file=os.fdopen(1, 'w'))\nprint(2 * int(input()))",
        "import os\nwrite = open('/dev/stdout', 'w').write\nwrite(str(2 * int(input())))",
        "import os\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\nprint(2 * int(input()))",
        "n = int(input())\nassert len(str(10**49_999)) == 50_000\nprint(2 * n)",
    ],
)
def test_the_habits_of_competition_programs_work(source: str, code_verifier: CodeVerifier) -> None:
    verdict = code_verifier.submit(response(source), DOUBLE).result(60)
    assert verdict.correct, verdict


# -----------------------------------------------------------------------------
# Tests that are drawn, verdicts that are kept


def test_the_drawn_tests_depend_on_seed_and_content_alone() -> None:
    tests = parse_tests({"inputs": [str(n) for n in range(100)], "outputs": [str(n) for n in range(100)]})
    drawn = chosen_cases(tests, 10, seed=0)
    assert drawn == chosen_cases(parse_tests(tests), 10, seed=0) == sorted(set(drawn)) and len(drawn) == 10
    assert drawn != chosen_cases(tests, 10, seed=1)
    other = CodeTests((*tests.cases[:-1], StdinCase("x", "y")))
    assert drawn != chosen_cases(other, 10, seed=0)
    assert chosen_cases(tests, None, 0) == chosen_cases(tests, 100, 0) == list(range(100))


def test_a_reason_names_the_tests_own_number() -> None:
    tests = {"inputs": [str(n) for n in range(50)], "outputs": [str(n) for n in range(50)]}
    with CodeVerifier(max_tests=3, seed=5) as verifier:
        numbers = [n + 1 for n in chosen_cases(parse_tests(tests), 3, 5)]
        assert verifier.submit(response("print(input())"), tests).result(60).reason == "3 of 50 tests, all passed"
        wrong = response(f"n = int(input())\nprint(n if n + 1 != {numbers[1]} else -1)")
        assert verifier.submit(wrong, tests).result(60).reason.startswith(f"test {numbers[1]} of 50: ")


def test_a_repeated_program_is_not_run_again(code_verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    judge = service.judge
    monkeypatch.setattr(service, "judge", lambda source, *rest: runs.append(source) or judge(source, *rest))
    source = response("import time\ntime.sleep(0.1)\nprint(2 * int(input()))")
    first = code_verifier.score([source] * 4, [DOUBLE] * 4)
    again = code_verifier.submit(source, DOUBLE).result(60)
    assert [v.correct for v in [*first, again]] == [True] * 5 and len(runs) == 1
    assert not code_verifier.submit(source, {"inputs": ["1"], "outputs": ["3"]}).result(60).correct  # other tests
    assert len(runs) == 2


def test_the_text_of_tests_is_read_once_for_all_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(service, "parse_tests", lambda tests: read.append(tests) or parse_tests(tests))
    with CodeVerifier() as verifier:
        verdicts = verifier.score(["none"] * 5 + [RIGHT], [json.dumps(DOUBLE)] * 6)
    assert [v.correct for v in verdicts] == [False] * 5 + [True] and read == [json.dumps(DOUBLE)]


def test_a_fault_of_our_own_is_a_verdict_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(service, "judge", broken)
    with CodeVerifier() as verifier:
        verdict = verifier.submit(RIGHT, DOUBLE).result(10)
        assert (verdict.status, verdict.stage, verdict.reason) == ("undecided", "error", "KeyError: 'oops'")


# -----------------------------------------------------------------------------
# Threads, processes, the end


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_threads_do_not_start_nothing_waits_for_ever(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith("code-verifier"):
            if len(started) >= allowed:
                raise RuntimeError("can't start new thread")
            started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with CodeVerifier(num_workers=2) as verifier:
        verdicts = [verifier.submit(RIGHT, DOUBLE).result(60) for _ in range(2)]
        assert [v.correct for v in verdicts] == [bool(allowed)] * 2
        assert allowed or {(v.status, v.stage) for v in verdicts} == {("undecided", "sandbox")}
        monkeypatch.undo()
        assert verifier.submit(RIGHT, DOUBLE).result(60).correct


ALARM = response("""
import signal, time
class Late(Exception): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try: time.sleep(2)
except Late: print(2 * int(input()))
""")


def test_signals_that_the_trainer_ignores_or_blocks_change_nothing() -> None:
    code = f"""
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGCHLD])
from falcon_h1r.verifier.code import CodeVerifier
with CodeVerifier() as verifier:
    print(verifier.submit({ALARM!r}, {DOUBLE!r}).result(60).status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "correct\n", done


def test_scores_come_in_order_from_many_threads(code_verifier: CodeVerifier) -> None:
    def work(seed: int) -> list[bool]:
        sources = [response(f"print({2 + (n + seed) % 2} * int(input()))") for n in range(6)]
        return [v.correct for v in code_verifier.score(sources, [DOUBLE] * 6)]

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(work, range(4)))
    assert results == [[(n + seed) % 2 == 0 for n in range(6)] for seed in range(4)]


def test_an_event_loop_can_wait_for_it(code_verifier: CodeVerifier) -> None:
    async def both() -> list[Verdict]:
        futures = [code_verifier.submit(RIGHT, DOUBLE), code_verifier.submit(response("print(0)"), DOUBLE)]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    assert [v.correct for v in asyncio.run(both())] == [True, False]


def test_a_service_travels_as_its_settings() -> None:
    with CodeVerifier(3, 1.5, 9.0, 256 << 20, True, 7, 11) as original:
        copy = pickle.loads(pickle.dumps(original))
    with copy:
        assert (copy.num_workers, copy.limits, copy.after_think) == (3, original.limits, True)
        assert (copy.max_tests, copy.seed, copy.sandbox_url) == (7, 11, None)
        assert copy.submit(f"</think>{os.linesep}{RIGHT}", DOUBLE).result(60).correct


def test_a_forked_child_gets_sandboxes_of_its_own(code_verifier: CodeVerifier) -> None:
    parents = set(code_verifier.process_ids())
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        right = code_verifier.submit(response("print(4 * int(input()) // 2)"), DOUBLE).result(60).correct
        own = set(code_verifier.process_ids())
        code_verifier.close()
        os._exit(0 if right and own and not own & parents else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert parents and all(map(alive, parents))
    assert code_verifier.submit(response("print(6 * int(input()) // 3)"), DOUBLE).result(60).correct


def test_close_ends_what_runs_and_leaves_nothing() -> None:
    verifier = CodeVerifier(deadline_seconds=60.0)
    assert verifier.submit(RIGHT, DOUBLE).result(60).correct
    (zygote,) = verifier.process_ids()
    runner = verifier._runners[0]
    assert isinstance(runner, local.LocalRunner) and runner._scratch is not None
    scratch = Path(runner._scratch)
    assert scratch.is_dir()
    running = verifier.submit(response("import time\ntime.sleep(50)"), DOUBLE)
    waiting = verifier.submit(response("print(1)"), DOUBLE)
    time.sleep(0.3)
    start = time.monotonic()
    verifier.close()
    verifier.close()
    assert time.monotonic() - start < 10
    assert running.result(5).status == waiting.result(5).status == "undecided"
    assert running.result().stage == waiting.result().stage == "closed"
    assert not alive(zygote) and not scratch.exists()
    assert not any(thread.is_alive() for thread in verifier._threads)
    with pytest.raises(ValueError, match="closed"):
        verifier.submit(RIGHT, {"input": "1", "output": "2"})


def test_a_batch_without_programs_starts_no_process() -> None:
    with CodeVerifier() as verifier:
        assert [v.stage for v in verifier.score(["none", RIGHT], [DOUBLE, []])] == ["extract", "tests"]
        assert verifier.process_ids() == [] and not verifier._threads


def test_a_sandbox_that_is_killed_costs_one_verdict_and_is_replaced() -> None:
    with CodeVerifier() as verifier:
        assert verifier.submit(RIGHT, DOUBLE).result(60).correct
        (zygote,) = verifier.process_ids()
        running = verifier.submit(response("import time\ntime.sleep(20)"), DOUBLE)
        time.sleep(0.3)
        os.kill(zygote, signal.SIGKILL)
        for pid in [int(p) for p in os.listdir("/proc") if p.isdigit()]:
            try:
                if os.getpgid(pid) == zygote:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        verdict = running.result(60)
        assert (verdict.status, verdict.stage) == ("undecided", "sandbox") and verifier.num_sandbox_failures == 1
        assert verifier.submit(response("print(int(input()) * 2)"), DOUBLE).result(60).correct
        assert verifier.process_ids() != [zygote]


def test_when_the_parent_is_killed_its_sandboxes_end_and_take_their_folders_along(tmp_path: Path) -> None:
    code = f"""
from falcon_h1r.verifier.code import CodeVerifier
import time
verifier = CodeVerifier(deadline_seconds=100, cpu_seconds=50)
verifier.submit({RIGHT!r}, {DOUBLE!r}).result()
verifier.submit({response("import time" + chr(10) + "time.sleep(90)")!r}, {DOUBLE!r})
time.sleep(0.5)
print(*verifier.process_ids(), verifier._runners[0]._scratch, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    zygote, scratch = parent.stdout.readline().split()
    group = [p for p in os.listdir("/proc") if p.isdigit() and _group(p) == int(zygote)]
    assert len(group) == 3  # the zygote, the supervisor, the program
    parent.kill()
    parent.communicate()
    assert wait_until_gone(*map(int, group))
    assert not Path(scratch).exists()


def _group(pid: str) -> int:
    try:
        return os.getpgid(int(pid))
    except ProcessLookupError:
        return -1


# -----------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, "num_workers"),
        ({"cpu_seconds": 0.0}, "cpu_seconds"),
        ({"cpu_seconds": 9.0, "deadline_seconds": 8.0}, "cpu_seconds"),
        ({"max_tests": 0}, "max_tests"),
        ({"memory_limit_bytes": 1 << 20}, "memory_limit_bytes"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeVerifier(**settings)


@pytest.mark.parametrize(
    ("support", "missing"),
    [
        (SandboxSupport("x86_64", True, 0), "Landlock"),
        (SandboxSupport("x86_64", False, 3), "seccomp filters"),
        (SandboxSupport("", False, 0), "Linux on x86_64 or aarch64"),
    ],
)
def test_a_machine_that_cannot_confine_is_refused_in_one_line(
    support: SandboxSupport, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "sandbox_support", lambda: support)
    with pytest.raises(SandboxUnavailable, match=missing) as refusal:
        CodeVerifier()
    assert "sandbox_url" in str(refusal.value) and "\n" not in str(refusal.value)
    CodeVerifier(sandbox_url="http://127.0.0.1:1/run_code").close()  # what the line offers is accepted


def test_a_program_never_runs_where_a_wall_cannot_be_put_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says yes when it is asked, and no when it comes to it: here, because of a lower limit of our own."""
    boot = local._BOOT.replace(
        "main(sys.argv[1], path)",
        "from falcon_h1r.verifier.workers.sandbox import CallFilter, SandboxUnavailable\n"
        "def refuse(self): raise SandboxUnavailable('refused in this test')\n"
        "CallFilter.apply = refuse\nmain(sys.argv[1], path)",
    )
    monkeypatch.setattr(local, "_BOOT", boot)
    with CodeVerifier() as verifier:
        verdict = verifier.submit(RIGHT, DOUBLE).result(60)
        assert (verdict.status, verdict.stage) == ("undecided", "sandbox")
        assert (
            verdict.reason.endswith("SandboxUnavailable: refused in this test") and verifier.num_sandbox_failures == 1
        )


def test_batches_of_different_lengths_are_refused(code_verifier: CodeVerifier) -> None:
    with pytest.raises(ValueError, match="1 responses for 2 tests"):
        code_verifier.score(["x"], [DOUBLE, DOUBLE])


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); import falcon_h1r.verifier.code as c;"
        "print(time.process_time() - start, [m for m in ('torch', 'sympy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]" and float(seconds) < 0.4


def test_the_sandbox_is_the_one_that_was_asked_for() -> None:
    assert sandbox.sandbox_support().missing() == []
