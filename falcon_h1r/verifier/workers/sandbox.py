"""Confinement of the calling process by the Linux kernel: what it gives up, it cannot take back.

    forbid_network_and_processes()             seccomp: no socket, no new process, no hold on another process
    read_only_but(scratch, readable)           Landlock: no file but these
    drop_capabilities(), limit_resources(...)  root without root's powers; memory, CPU, file size, descriptors

No privilege is needed and none helps: the process gives up gaining any first (PR_SET_NO_NEW_PRIVS). Nothing is
installed and nothing imported but ctypes. A kernel that lacks a layer gets SandboxUnavailable, never a process
that is confined less than was asked for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from falcon_h1r.verifier.workers import syscalls
from falcon_h1r.verifier.workers.syscalls import Condition, Judgement

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL, _SECCOMP_ALL_THREADS = 1, 2, 1
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # of classic BPF, 32 bits each
_DATA_NUMBER, _DATA_ARCHITECTURE, _DATA_ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_SOME_PROCESS = 0x7FEDCBA9  # stands in a filter for the process that it will bind; no process has this number
_X32 = 0x40000000  # in the number of a call: the same kernel, other numbers

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # on both architectures
_HIGH_DESCRIPTOR = 128  # out of the way of whoever hands out the low ones before a view is applied
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = (
    1 << n for n in (0, 1, 2, 3, 5, 8, 14)
)
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE


class SandboxUnavailable(RuntimeError):
    """This kernel, or what this process may ask of it, lacks a layer: one line says which."""


@dataclass(frozen=True)
class SandboxSupport:
    """Which layers the kernel offers to this process."""

    machine: str  # "": not Linux on x86_64 or aarch64
    seccomp: bool
    landlock_version: int  # of its ABI; 0: not there

    def missing(self) -> list[str]:
        """What is not there, in words; empty where everything is."""
        if not self.machine:
            return ["Linux on x86_64 or aarch64"]
        return [
            *([] if self.seccomp else ["seccomp filters"]),
            *([] if self.landlock_version else ["Landlock (Linux 5.13 or newer, switched on at boot)"]),
        ]


def sandbox_support() -> SandboxSupport:
    """Ask the kernel; nothing is changed by it."""
    machine = syscalls.machine() if sys.platform == "linux" else ""
    if not machine:
        return SandboxSupport("", False, 0)
    action = ctypes.c_uint32(_ERRNO)
    seccomp = _libc.syscall(syscalls.numbers()["seccomp"], _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    return SandboxSupport(machine, seccomp, max(0, version))


# -----------------------------------------------------------------------------
# System calls


def forbid_network_and_processes(threads: bool = True) -> None:
    """From here on this process has no network, starts no process and touches no other.

    Of all its threads, those that run already included. What remains is computing, its open files, opening files
    (see read_only_but), and `threads`. It may signal itself; changing modes, owners or times of files is refused.

    Raises:
        SandboxUnavailable: without seccomp.
    """
    CallFilter(threads).apply()


class CallFilter:
    """The filter of forbid_network_and_processes: made once, applied in every forked child.

    Raises:
        SandboxUnavailable: without seccomp.
    """

    def __init__(self, threads: bool = True) -> None:
        support = sandbox_support()
        if not support.machine or not support.seccomp:
            raise SandboxUnavailable(f"this process cannot be confined: no {support.missing()[0]}")
        self._number = syscalls.numbers()["seccomp"]
        self._instructions = filter_program(syscalls.judgements(_SOME_PROCESS, threads))

    def apply(self) -> None:
        """Bind the calling process: all its threads, those that run already included."""
        _give_up_new_privileges()
        own = self._instructions.replace(struct.pack("I", _SOME_PROCESS), struct.pack("I", os.getpid()))
        buffer = ctypes.create_string_buffer(own, len(own))
        program = struct.pack("HxxxxxxP", len(own) // 8, ctypes.addressof(buffer))
        if done := _libc.syscall(self._number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_ALL_THREADS, program):
            why = f"thread {done} has filters of its own" if done > 0 else os.strerror(ctypes.get_errno())
            raise SandboxUnavailable(f"the kernel refuses the seccomp filter: {why}")


def filter_program(judgements: Iterable[Judgement]) -> bytes:
    """The judgements as classic BPF: one struct sock_filter of 8 bytes an instruction.

    A call of another architecture kills the process, as no honest program makes one.
    """
    code = [
        _instruction(_LOAD, _DATA_ARCHITECTURE),
        _instruction(_IF_EQUAL, syscalls.AUDIT_ARCHITECTURES[syscalls.machine()], 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _DATA_NUMBER),
    ]
    if syscalls.machine() == "x86_64":
        code += [_instruction(_IF_AT_LEAST, _X32, 0, 1), _instruction(_RETURN, _KILL_PROCESS)]
    for judgement in judgements:
        block = [*_alternatives(judgement), _outcome(judgement.otherwise)]
        code += [_instruction(_IF_EQUAL, judgement.number, 0, len(block)), *block]
    return b"".join([*code, _outcome(errno.ENOSYS)])


def _alternatives(judgement: Judgement) -> list[bytes]:
    code: list[bytes] = []
    for conditions in judgement.alternatives:
        for index, condition in enumerate(conditions):
            to_next = 3 * (len(conditions) - index - 1) + 1  # what is left of this alternative, and its outcome
            code += [
                _instruction(_LOAD, _offset(condition)),
                _instruction(_AND, condition.mask),
                _instruction(_IF_EQUAL, condition.value, 0, to_next),
            ]
        code.append(_outcome(judgement.then))
    return code


def _offset(condition: Condition) -> int:
    return _DATA_ARGUMENTS + 8 * condition.argument + 4 * condition.upper  # both architectures are little-endian


def _outcome(error: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | error if error else _ALLOW)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _give_up_new_privileges() -> None:
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise SandboxUnavailable(f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(ctypes.get_errno())}")


# -----------------------------------------------------------------------------
# Files


class FileView:
    """The files that a process will be left with; made once, applied in every forked child.

    Args:
        scratch: a folder in which plain files may be made, read, written, renamed and removed, but no folders,
            links or devices; None: nothing may be written.
        readable: files, and folders with all that is in them. What does not exist is skipped. /dev/null always is.
        listed: folders whose names may be read, and those of the folders in them, but no file.

    Raises:
        SandboxUnavailable: without Landlock.
    """

    def __init__(self, scratch: Path | None, readable: Iterable[Path], listed: Iterable[Path] = ()) -> None:
        version = sandbox_support().landlock_version
        if not version:
            raise SandboxUnavailable(f"files cannot be kept from this process: no {sandbox_support().missing()[-1]}")
        files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # every right that this version knows
        network = 3 if version >= 4 else 0  # bind and connect; the seccomp filter refuses them too
        scope = 3 if version >= 6 else 0  # abstract unix sockets and signals of processes outside
        attributes = struct.pack("QQQ", files, network, scope)[: 8 if version < 4 else 16 if version < 6 else 24]
        made = _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
        if made < 0:
            raise SandboxUnavailable(f"the kernel refuses a Landlock ruleset: {os.strerror(ctypes.get_errno())}")
        self._ruleset = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _HIGH_DESCRIPTOR)
        os.close(made)
        self._add(Path(os.devnull), (_READ_FILE | _WRITE_FILE | _TRUNCATE) & files)
        for path in readable:
            self._add(path, (_READ_FILE | _READ_DIR) & files)
        for path in listed:
            self._add(path, _READ_DIR & files)
        if scratch is not None:
            write = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE
            self._add(scratch, write & files)

    def _add(self, path: Path, rights: int) -> None:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if not path.is_dir():
                rights &= _OF_A_FILE
            rule = struct.pack("=Qi", rights, opened)
            if _libc.syscall(_LANDLOCK_ADD, self._ruleset, 1, rule, 0):
                raise SandboxUnavailable(f"Landlock refuses a rule for {path}: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(opened)

    def apply(self) -> None:
        """Leave the calling process with this view; what it has open stays open.

        Raises:
            SandboxUnavailable: where other threads run, as Landlock would not bind them.
        """
        _refuse_threads("Landlock")
        _give_up_new_privileges()
        if _libc.syscall(_LANDLOCK_RESTRICT, self._ruleset, 0):
            raise SandboxUnavailable(f"landlock_restrict_self: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """Give the ruleset back; processes that have the view keep it."""
        os.close(self._ruleset)


def read_only_but(scratch: Path | None, readable: Iterable[Path]) -> None:
    """From here on this process opens no file but those `readable`, and writes in `scratch` alone: see FileView.

    Raises:
        SandboxUnavailable: without Landlock, or where other threads run.
    """
    view = FileView(scratch, readable)
    try:
        view.apply()
    finally:
        view.close()


def _refuse_threads(layer: str) -> None:
    if (count := len(os.listdir("/proc/self/task"))) > 1:
        raise SandboxUnavailable(f"{layer} binds only the thread that asks for it, and {count} threads run here")


# -----------------------------------------------------------------------------
# Powers, resources, parents


def drop_capabilities() -> None:
    """Leave this process without capabilities: root keeps its name, and no power to raise a limit or pass a mode."""
    _refuse_threads("capset")
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this thread
    if _libc.capset(header, bytes(24)):
        raise SandboxUnavailable(f"capset: {os.strerror(ctypes.get_errno())}")


def limit_resources(memory_bytes: int, cpu_seconds: int, file_bytes: int, open_files: int) -> None:
    """Hard limits, no higher than those inherited: address space, CPU (then SIGKILL), file size, descriptors.

    `cpu_seconds` count from the start of the process. There are no core files.
    """
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))


def die_with_parent(parent_id: int) -> None:
    """Have the kernel kill this process when its parent dies; at once where it is dead already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_id:
        os.kill(os.getpid(), signal.SIGKILL)
