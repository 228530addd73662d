"""Which system calls a confined process may make, by name, with their numbers on x86_64 and aarch64.

A call that is on neither list, and every call a later kernel adds, fails as if the kernel did not know it
(ENOSYS): the C library then falls back to an older call that the filter does look at.
"""

from __future__ import annotations

import errno
import platform
from dataclasses import dataclass

# name, number on x86_64, number on aarch64; "-": not there
_ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, lseek 8 62, sendfile 40 71, copy_file_range 326 285, close 3 57,
close_range 436 436, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -,
faccessat 269 48, faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61,
getcwd 79 17, chdir 80 49, fchdir 81 50, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -,
ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, timerfd_create 283 85, timerfd_settime 286 86,
timerfd_gettime 287 87, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -,
renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, ftruncate 77 46,
fsync 74 82, fdatasync 75 83, flock 73 32, fadvise64 221 223, umask 95 166, creat 85 -, mmap 9 222, munmap 11 215,
mprotect 10 226, mremap 25 216, madvise 28 233, brk 12 214, mincore 27 232, msync 26 227, rt_sigaction 13 134,
rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, restart_syscall 219 128, alarm 37 -, getitimer 36 102, setitimer 38 103, pause 34 -,
nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169,
time 201 -, times 100 153, futex 202 98, futex_waitv 449 449, set_robust_list 273 99, set_tid_address 218 96,
rseq 334 293, membarrier 324 283, getcpu 309 168, sched_yield 24 124, sched_getaffinity 204 123,
sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
getpid 39 172, getppid 110 173, gettid 186 178, getpgid 121 155, getpgrp 111 -, getsid 124 156, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158,
getrlimit 97 163, getrusage 98 165, getpriority 140 141, sysinfo 99 179, uname 63 160, getrandom 318 278,
wait4 61 260, waitid 247 95, exit 60 93, exit_group 231 94, capget 125 90
"""
# Allowed with some arguments: see `judgements`.
_CONDITIONAL = """
open 2 -, openat 257 56, fcntl 72 25, ioctl 16 29, clone 56 220, kill 62 129, tgkill 234 131, prlimit64 302 261,
setrlimit 160 164, prctl 157 167
"""
# Listed so that they fail with "not permitted" rather than as unknown, and so that the tests can go through them.
_FORBIDDEN = """
socket 41 198, socketpair 53 199, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242,
sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, sendmmsg 307 269, recvmmsg 299 243,
shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209, setsockopt 54 208, fork 57 -,
vfork 58 -, execve 59 221, execveat 322 281, ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271,
kcmp 312 272, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_open 434 434,
pidfd_getfd 438 438, pidfd_send_signal 424 424, process_madvise 440 440, process_mrelease 448 448, setsid 112 157,
setpgid 109 154, setuid 105 146, setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147,
setresgid 119 149, setgroups 116 159, setfsuid 122 151, setfsgid 123 152, capset 126 91, chmod 90 -, fchmod 91 52,
fchmodat 268 53, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -,
utimensat 280 88, futimesat 261 -, truncate 76 45, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, mknod 133 -, mknodat 259 33, chroot 161 51,
pivot_root 155 41, mount 165 40, umount2 166 39, move_mount 429 429, open_tree 428 428, fsopen 430 430,
fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442, unshare 272 97, setns 308 268,
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, keyctl 250 219, add_key 248 217, request_key 249 218,
seccomp 317 277, memfd_create 319 279, memfd_secret 447 447, io_uring_setup 425 425, io_uring_enter 426 426,
io_uring_register 427 427, io_setup 206 0, io_submit 209 2, name_to_handle_at 303 264, open_by_handle_at 304 265,
shmget 29 194, shmat 30 196, shmctl 31 195, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187,
semget 64 190, semop 65 193, semctl 66 191, mq_open 240 180, mq_unlink 241 181, inotify_init 253 -,
inotify_init1 294 26, fanotify_init 300 262, setpriority 141 140, sched_setaffinity 203 122,
sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, ioprio_set 251 30, personality 135 92,
mlock 149 228, mlock2 325 284, mlockall 151 230, vmsplice 278 75, splice 275 76, tee 276 77, swapon 167 224,
swapoff 168 225, reboot 169 142, kexec_load 246 104, kexec_file_load 320 294, init_module 175 105,
finit_module 313 273, delete_module 176 106, syslog 103 116, acct 163 89, quotactl 179 60, settimeofday 164 170,
clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171, sethostname 170 161, setdomainname 171 162,
iopl 172 -, ioperm 173 -, arch_prctl 158 -, migrate_pages 256 238, move_pages 279 239, mbind 237 235,
set_mempolicy 238 237, landlock_create_ruleset 444 444, landlock_add_rule 445 445
"""

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_ANY = 0xFFFFFFFF
_OPEN_MODE, _O_CREAT_UNNAMED = 0o3, 0o20000000  # the access mode; the bit that makes O_TMPFILE
_O_TRUNC = 0o1000
_F_HARMLESS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)  # duplicating, flags, locks, F_GETPIPE_SZ; no F_SETOWN: signals
_IOCTL_HARMLESS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, window, FIONREAD, FIONBIO, close-on-exec
_THREAD = 0x10900  # CLONE_VM | CLONE_SIGHAND | CLONE_THREAD
_NO_THREAD = 0x7E02F080  # new namespaces, a pidfd, tracing, vfork, another parent
_PR_NAMES = (15, 16)  # PR_SET_NAME, PR_GET_NAME
_RLIMIT_STACK = 3


@dataclass(frozen=True)
class Condition:
    """`arguments[argument] & mask == value`, of the lower 32 bits or the upper ones."""

    argument: int
    value: int
    mask: int = _ANY
    upper: bool = False


@dataclass(frozen=True)
class Judgement:
    """What becomes of one system call: `then` where all conditions of any alternative hold, else `otherwise`.

    An outcome is an errno, or 0 for allowed.
    """

    number: int
    otherwise: int
    alternatives: tuple[tuple[Condition, ...], ...] = ()
    then: int = 0


def machine() -> str:
    """This machine's architecture as the tables name it; "" where they have none."""
    return platform.machine() if platform.machine() in AUDIT_ARCHITECTURES else ""


def _table(text: str) -> dict[str, int]:
    column = 1 if machine() == "x86_64" else 2
    rows = [entry.split() for entry in text.replace("\n", " ").split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def numbers() -> dict[str, int]:
    """Every listed call of this machine's architecture."""
    return {**_table(_ALLOWED), **_table(_CONDITIONAL), **_table(_FORBIDDEN)}


def forbidden_names() -> list[str]:
    """Calls that fail whatever their arguments are."""
    return list(_table(_FORBIDDEN))


def _any_of(argument: int, values: tuple[int, ...]) -> tuple[tuple[Condition, ...], ...]:
    return tuple((Condition(argument, value),) for value in values)


def judgements(process_id: int, threads: bool) -> list[Judgement]:
    """The filter for the process `process_id`, which may signal itself alone; `threads`: may start some."""
    number = numbers()
    eperm = errno.EPERM
    found = [Judgement(value, 0) for value in _table(_ALLOWED).values()]
    found += [Judgement(value, eperm) for value in _table(_FORBIDDEN).values()]
    for name, argument in (("open", 1), ("openat", 2)):
        if name in number:
            refused = (
                (Condition(argument, _O_TRUNC, _O_TRUNC | _OPEN_MODE),),  # truncating what is opened to be read
                (Condition(argument, 3, _OPEN_MODE),),  # a mode that older Landlocks do not look at
                (Condition(argument, _O_CREAT_UNNAMED, _O_CREAT_UNNAMED),),  # a file that no clearing would find
            )
            found.append(Judgement(number[name], 0, refused, eperm))
    found.append(Judgement(number["fcntl"], eperm, _any_of(1, _F_HARMLESS)))
    found.append(Judgement(number["ioctl"], errno.ENOTTY, _any_of(1, _IOCTL_HARMLESS)))
    found.append(Judgement(number["prctl"], eperm, _any_of(0, _PR_NAMES)))
    thread = ((Condition(0, _THREAD, _THREAD | _NO_THREAD),),) if threads else ()
    found.append(Judgement(number["clone"], eperm, thread))
    itself = ((Condition(0, process_id),),)
    found += [Judgement(number[name], eperm, itself) for name in ("kill", "tgkill")]
    reading = (Condition(0, 0), Condition(2, 0), Condition(2, 0, upper=True))
    own_reading = (Condition(0, process_id), *reading[1:])
    stack = (Condition(0, 0), Condition(1, _RLIMIT_STACK))  # raising it is a habit of deep recursions
    found.append(Judgement(number["prlimit64"], eperm, (reading, own_reading, stack)))
    found.append(Judgement(number["setrlimit"], eperm, ((Condition(0, _RLIMIT_STACK),),)))
    return found
