"""What a confined process can no longer do, tried in child processes."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.verifier.workers import sandbox, syscalls
from falcon_h1r.verifier.workers.sandbox import SandboxSupport, SandboxUnavailable

pytestmark = pytest.mark.skipif(bool(sandbox.sandbox_support().missing()), reason="this kernel offers no confinement")

NUMBERS = syscalls.numbers()
CLONE_VFORK_LIKE = {
    "fork": signal.SIGCHLD,
    "vfork": 0x4100 | signal.SIGCHLD,
    "new user": 0x10000000,
    "no sighand": 0x10100,
}


def in_child(work: Callable[[], Any], seconds: int = 60) -> Any:
    """What `work` returns in a forked child; ("killed", signal) where it dies of one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return ("killed", -code) if code < 0 else json.loads(answer)


def error_of(action: Callable[[], Any]) -> int | None:
    """The errno an action fails with; None where it succeeds."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def raw(name: str, *arguments: Any) -> int:
    """The errno of a system call made without the C library; 0 where it succeeds."""
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, *[0] * (6 - len(arguments))]
    done = libc.syscall(NUMBERS[name], *[ctypes.c_long(a) if isinstance(a, int) else a for a in padded])
    return ctypes.get_errno() if done == -1 else 0


# -----------------------------------------------------------------------------
# System calls


def test_every_forbidden_call_fails_whatever_the_c_library_would_have_done() -> None:
    names = syscalls.forbidden_names()

    def work() -> dict[str, int]:
        sandbox.forbid_network_and_processes()
        return {name: raw(name) for name in names}

    assert in_child(work) == dict.fromkeys(names, errno.EPERM)
    assert {"socket", "connect", "execve", "ptrace", "bpf", "io_uring_setup", "chmod", "setsid"} <= set(names)


def test_no_socket_of_any_family() -> None:
    def work() -> list[int | None]:
        sandbox.forbid_network_and_processes()
        families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK)
        return [error_of(lambda f=family: socket.socket(f)) for family in families] + [error_of(socket.socketpair)]

    assert in_child(work) == [errno.EPERM] * 5


def test_no_new_process_by_any_road() -> None:
    def work() -> dict[str, Any]:
        sandbox.forbid_network_and_processes()
        found: dict[str, Any] = {name: raw("clone", flags) for name, flags in CLONE_VFORK_LIKE.items()}
        found["os.fork"] = error_of(os.fork)
        found["os.execv"] = error_of(lambda: os.execv("/bin/true", ["true"]))
        found["os.posix_spawn"] = error_of(lambda: os.posix_spawn("/bin/true", ["true"], {}))
        found["subprocess"] = error_of(lambda: subprocess.run(["/bin/true"]))
        found["os.system"] = os.system("true")
        return found

    found = in_child(work)
    assert found.pop("os.system") not in (0, None)
    assert set(found.values()) == {errno.EPERM}


def test_calls_the_filter_does_not_know_look_unknown_to_the_kernel() -> None:
    def work() -> list[int]:
        sandbox.forbid_network_and_processes()
        libc = ctypes.CDLL(None, use_errno=True)
        clone3, openat2, later = 435, 437, 600
        return [ctypes.get_errno() if libc.syscall(number, 0, 0) == -1 else 0 for number in (clone3, openat2, later)]

    assert in_child(work) == [errno.ENOSYS] * 3


def test_threads_run_unless_they_are_forbidden_too() -> None:
    def work(threads: bool) -> list[str]:
        sandbox.forbid_network_and_processes(threads)
        heard: list[str] = []
        thread = threading.Thread(target=lambda: heard.append("ran"))
        try:
            thread.start()
            thread.join()
        except RuntimeError as error:
            heard.append(str(error))
        return heard

    assert in_child(lambda: work(True)) == ["ran"]
    assert in_child(lambda: work(False)) == ["can't start new thread"]


def test_a_thread_that_runs_already_is_bound_too() -> None:
    def work() -> list[int | None]:
        go, found = threading.Event(), []

        def later() -> None:
            go.wait()
            found.append(error_of(socket.socket))

        thread = threading.Thread(target=later)
        thread.start()
        sandbox.forbid_network_and_processes()
        go.set()
        thread.join()
        return found

    assert in_child(work) == [errno.EPERM]


def test_no_other_process_is_reached() -> None:
    witness = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:

        def work() -> list[int | None]:
            sandbox.forbid_network_and_processes()
            targets = (os.getppid(), witness.pid, 0, -1, -witness.pid, 1)
            found = [error_of(lambda pid=pid: os.kill(pid, signal.SIGTERM)) for pid in targets]
            found += [raw("tgkill", witness.pid, witness.pid, 9), raw("process_vm_readv", witness.pid)]
            found.append(error_of(lambda: resource.prlimit(witness.pid, resource.RLIMIT_CPU, (1, 1))))
            os.kill(os.getpid(), 0)  # itself, it may
            return found

        assert in_child(work) == [errno.EPERM] * 9
        assert witness.poll() is None
    finally:
        witness.kill()
        witness.communicate()


def test_signals_by_way_of_a_descriptor_are_refused() -> None:
    def work() -> list[int | None]:
        import fcntl

        reader, _ = os.pipe()
        sandbox.forbid_network_and_processes()
        set_owner, set_signal = 8, 10
        return [error_of(lambda c=c: fcntl.fcntl(reader, c, os.getppid())) for c in (set_owner, set_signal)]

    assert in_child(work) == [errno.EPERM] * 2


@pytest.mark.skipif(syscalls.machine() != "x86_64", reason="other doors of an x86")
def test_a_call_by_another_architectures_door_kills() -> None:
    def x32() -> None:
        sandbox.forbid_network_and_processes()
        ctypes.CDLL(None).syscall(0x40000000 | NUMBERS["getpid"])

    def i386() -> None:
        sandbox.forbid_network_and_processes()
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid of i386); int 0x80; ret
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

    assert in_child(x32) == ("killed", signal.SIGSYS)
    assert in_child(i386) == ("killed", signal.SIGSYS)


def test_a_filter_cannot_be_taken_off_or_loosened() -> None:
    def work() -> list[str | int | None]:
        sandbox.forbid_network_and_processes(threads=False)
        try:
            sandbox.forbid_network_and_processes(threads=True)
            again = "loosened"
        except SandboxUnavailable:
            again = "refused"
        return [again, error_of(socket.socket)]

    assert in_child(work) == ["refused", errno.EPERM]


# -----------------------------------------------------------------------------
# Files


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A scratch folder, one to read, and one that nobody named; a file in each of the latter two."""
    scratch, readable, elsewhere = (tmp_path / name for name in ("scratch", "readable", "elsewhere"))
    for folder in (scratch, readable, elsewhere):
        folder.mkdir()
    (readable / "text").write_text("to be read")
    (elsewhere / "secret").write_text("not to be read")
    return scratch, readable, elsewhere


def test_only_the_named_files_are_there(folders: tuple[Path, Path, Path]) -> None:
    scratch, readable, elsewhere = folders

    def work() -> list[Any]:
        sandbox.read_only_but(scratch, [readable, Path("/no/such/path")])
        (scratch / "new").write_text("mine")
        (scratch / "new").rename(scratch / "renamed")
        mine = (scratch / "renamed").read_text()
        (scratch / "renamed").unlink()
        return [
            mine,
            (readable / "text").read_text(),
            error_of((elsewhere / "secret").read_text),
            error_of(lambda: os.listdir(elsewhere)),
            error_of(lambda: os.listdir("/proc")),
            error_of(lambda: Path("/etc/passwd").read_text()),
            error_of(lambda: open("/proc/self/mem", "rb")),
            error_of(lambda: open(f"/proc/{os.getppid()}/environ", "rb")),
            error_of(lambda: os.listdir(f"/proc/{os.getppid()}/fd")),
        ]

    assert in_child(work) == ["mine", "to be read", *[errno.EACCES] * 7]


def test_nothing_is_written_outside_the_scratch_folder_by_any_road(folders: tuple[Path, Path, Path]) -> None:
    scratch, readable, elsewhere = folders

    def work() -> list[int | None]:
        sandbox.read_only_but(scratch, [readable])
        sandbox.forbid_network_and_processes()
        actions: list[Callable[[], Any]] = [
            lambda: (elsewhere / "x").write_text("x"),
            lambda: (readable / "text").write_text("x"),
            lambda: os.open(readable / "text", os.O_RDONLY | os.O_TRUNC),
            lambda: os.truncate(readable / "text", 0),
            lambda: os.open(readable / "text", 3),
            lambda: (readable / "text").unlink(),
            lambda: os.rename(readable / "text", scratch / "text"),
            lambda: os.link(elsewhere / "secret", scratch / "link"),
            lambda: os.symlink(elsewhere / "secret", scratch / "link"),
            lambda: os.mkdir(scratch / "folder"),
            lambda: os.mkfifo(scratch / "fifo"),
            lambda: os.open(scratch, os.O_TMPFILE | os.O_RDWR),
            lambda: os.chmod(readable / "text", 0o777),
            lambda: os.utime(readable / "text", (0, 0)),
            lambda: os.rmdir(scratch),
        ]
        return [error_of(action) for action in actions]

    errors = in_child(work)
    assert all(error in (errno.EACCES, errno.EPERM, errno.EXDEV) for error in errors), errors
    assert (readable / "text").read_text() == "to be read"
    assert list(scratch.iterdir()) == [] and [path.name for path in elsewhere.iterdir()] == ["secret"]


def test_a_view_is_made_once_and_applied_in_many_children(folders: tuple[Path, Path, Path]) -> None:
    scratch, readable, elsewhere = folders
    view = sandbox.FileView(scratch, [readable])
    try:

        def work() -> list[Any]:
            view.apply()
            view.close()
            return [(readable / "text").read_text(), error_of((elsewhere / "secret").read_text)]

        assert [in_child(work) for _ in range(3)] == [["to be read", errno.EACCES]] * 3
        assert (elsewhere / "secret").read_text() == "not to be read"  # this process is as free as before
    finally:
        view.close()


def test_landlock_refuses_a_process_whose_other_threads_it_would_not_bind() -> None:
    def work() -> None:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        sandbox.read_only_but(None, [])

    assert in_child(work).startswith("SandboxUnavailable: Landlock binds only the thread that asks for it, and 2")


# -----------------------------------------------------------------------------
# Powers, resources, parents


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has powers to lose")
def test_root_loses_its_powers() -> None:
    def work() -> list[int | None]:
        sandbox.drop_capabilities()
        return [error_of(lambda: os.chown("/", 0, 0) or os.setgroups([1])), error_of(lambda: os.chroot("/"))]

    assert in_child(work) == [errno.EPERM] * 2


def test_limits_hold_and_cannot_be_raised() -> None:
    def work() -> list[Any]:
        sandbox.drop_capabilities()
        sandbox.limit_resources(memory_bytes=1 << 40, cpu_seconds=50, file_bytes=1000, open_files=20)
        sandbox.forbid_network_and_processes()
        kept = [resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_CORE)]
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            raised = "raised"
        except ValueError as error:
            raised = str(error)
        resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))
        return [kept, raised]

    kept, raised = in_child(work)
    assert kept[1] == [0, 0] and kept[0][1] <= 50
    assert raised == "not allowed to raise maximum limit"


def test_a_process_that_computes_beyond_its_cpu_limit_is_killed() -> None:
    def work() -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        sandbox.limit_resources(1 << 40, cpu_seconds=1, file_bytes=0, open_files=20)
        while True:
            pass

    assert in_child(work) == ("killed", signal.SIGKILL)


def test_a_child_dies_with_its_parent() -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        here = os.getpid()
        if os.fork() == 0:
            sandbox.die_with_parent(here)
            sandbox.drop_capabilities()  # which must not undo it
            sandbox.forbid_network_and_processes()
            os.write(writer, b"ready")
            time.sleep(100)
        os.read(reader, 5)
        os._exit(0)
    os.close(writer)
    os.waitpid(parent, 0)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() in (b"", b"ready")  # the end: nobody holds the pipe any more


# -----------------------------------------------------------------------------
# What is missing, and what it costs


def test_a_missing_layer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "sandbox_support", lambda: SandboxSupport("x86_64", False, 0))
    with pytest.raises(SandboxUnavailable, match="no seccomp filters"):
        sandbox.forbid_network_and_processes()
    with pytest.raises(SandboxUnavailable, match=r"no Landlock \(Linux 5.13 or newer"):
        sandbox.read_only_but(None, [])
    monkeypatch.setattr(sandbox, "sandbox_support", lambda: SandboxSupport("", False, 0))
    with pytest.raises(SandboxUnavailable, match="no Linux on x86_64 or aarch64"):
        sandbox.forbid_network_and_processes()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_both_tables_name_a_number_once(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls.platform, "machine", lambda: machine)
    assert syscalls.machine() == machine
    table = syscalls.numbers()
    assert len(set(table.values())) == len(table) > 200
    judged = [judgement.number for judgement in syscalls.judgements(1, threads=True)]
    assert sorted(judged) == sorted(table.values())
    assert len(sandbox.filter_program(syscalls.judgements(1, threads=True))) // 8 < 4096  # the kernel's limit


def test_a_process_full_of_modules_can_be_confined() -> None:
    code = """
import asyncio, concurrent.futures, ctypes, decimal, email, http.client, multiprocessing, numpy, sqlite3, sympy, socket
from falcon_h1r.verifier.workers import sandbox
from pathlib import Path
import os
sandbox.forbid_network_and_processes()
print(numpy.ones((300, 300)).dot(numpy.ones((300, 300))).sum(), sympy.integrate(sympy.Symbol("x") ** 2))
try:
    socket.socket()
except PermissionError:
    print("confined")
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.split() == ["27000000.0", "x**3/3", "confined"], done.stderr


def test_importing_it_is_cheap() -> None:
    code = (
        "import sys, time; import falcon_h1r.verifier; start = time.process_time();"
        "import falcon_h1r.verifier.workers.sandbox;"
        "print(time.process_time() - start, [m for m in ('torch', 'sympy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]" and float(seconds) < 0.1
