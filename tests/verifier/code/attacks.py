"""Programs that do anything but solve their problem. Their problem: read n, write a secret that no program can know.

`$CANARY` is a file beside the scratch folders, `$PORT` a listening socket, `$TESTS` the folder of this file.
"""

from __future__ import annotations

SECRET = "SECRET-"  # what the expected outputs start with

# A look at everything this process can read of its memory, without a fault: the kernel copies, or says EFAULT.
SCAN = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
reader, writer = os.pipe()
def pages(low, high):
    for address in range(low & ~4095, high, 4096):
        if libc.write(writer, ctypes.c_void_p(address), ctypes.c_size_t(4096)) == 4096:
            yield os.read(reader, 4096)
first, second = bytes(%s), bytes(%s)  # apart, so that the search does not find itself
top = libc.sbrk(ctypes.c_ssize_t(0))
tail = b""
found = None
for low, high in ((top - (24 << 20), top + 4096), (id([]) - (12 << 20), id([]) + (12 << 20))):
    for page in pages(low, high):
        text = tail + page
        at = text.find(first)
        while at >= 0:
            if text[at + len(first):at + len(first) + len(second)] == second:
                found = text[at:at + 40]
            at = text.find(first, at + 1)
        tail = page[-64:]
print(found.decode(errors="replace") if found else "nothing")
"""


def scan_for(text: str) -> str:
    """A program that prints what follows `text` in its memory; it does not hold the text itself."""
    return SCAN % ([ord(c) for c in text[:4]], [ord(c) for c in text[4:]])


# name -> (program, the stages that a verdict may have)
ATTACKS: dict[str, tuple[str, set[str]]] = {
    # Processes
    "fork bomb": ("import os\nwhile True: os.fork()", {"forbidden"}),
    "fork bomb that swallows errors": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        {"time"},
    ),
    "subprocess": (
        "import subprocess\nprint(subprocess.check_output(['cat', '/etc/passwd']))",
        {"runtime", "forbidden"},
    ),
    "os.system": ("import os\nprint(os.system('echo hi'))", {"test"}),
    "multiprocessing": (
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        {"runtime", "forbidden"},
    ),
    "exec another program": ("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo hi'])", {"forbidden"}),
    "daemon": ("import os\nos.setsid()\nos.fork()", {"forbidden"}),
    "fork by a raw system call": (
        "import ctypes\nprint(ctypes.CDLL(None).syscall(57), ctypes.CDLL(None).fork())",
        {"test"},
    ),
    "kill the parent": ("import os\nos.kill(os.getppid(), 9)", {"forbidden"}),
    "kill everything": ("import os\nos.kill(-1, 9)", {"forbidden"}),
    "kill its group": ("import os\nos.killpg(os.getpgrp(), 9)", {"forbidden"}),
    "kill itself": ("import os\nos.kill(os.getpid(), 9)", {"memory"}),
    "stop itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", {"deadline"}),
    "trace the parent": ("import ctypes, os\nprint(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0))", {"test"}),
    "thread bomb": (  # may meet its memory limit before the number of threads, and then waits for those it has
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        {"forbidden", "deadline"},
    ),
    "thread bomb with small stacks": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()",
        {"forbidden", "runtime"},
    ),
    "a thread that never ends": (
        "import threading\nthreading.Thread(target=threading.Event().wait).start()",
        {"deadline"},
    ),
    # Time, memory, output
    "endless loop": ("while True: pass", {"time"}),
    "endless loop that ignores signals": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        {"time"},
    ),
    "endless loop in C": ("print(len(str(9 ** 9 ** 9)))", {"time", "memory"}),
    "endless loop in many threads": (
        "import threading\ndef f():\n    while True: sum(range(10**6))\n"
        "for _ in range(8): threading.Thread(target=f).start()",
        {"time"},
    ),
    "endless sleep": ("import time\ntime.sleep(10**6)", {"deadline"}),
    "endless end": ("import atexit\natexit.register(lambda: [0 for _ in iter(int, 1)])", {"time", "memory"}),
    "list that eats memory": ("a = []\nwhile True: a.append('x' * 10**6)", {"memory", "time"}),  # first or second
    "one large allocation": ("bytearray(1 << 40)", {"memory"}),
    "mapped memory": ("import mmap\nprint(len(mmap.mmap(-1, 1 << 40)))", {"runtime", "memory"}),
    "limits raised": (
        "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))\nx = bytearray(1 << 33)",
        {"runtime"},
    ),
    "deep recursion": ("def f(): f()\nf()", {"runtime", "memory"}),
    "deep recursion without a limit": (
        "import sys\nsys.setrecursionlimit(10**9)\n"
        "class A:\n    def __getattr__(self, n): return getattr(self, n + 'x')\nA().a",
        {"runtime", "memory", "time"},
    ),
    "output without end": ("while True: print('x' * 10**6)", {"output"}),
    "errors without end": ("import sys\nwhile True: sys.stderr.write('x' * 10**6)", {"output"}),
    "output to every descriptor": (
        "import os\nfor fd in range(100):\n    try: os.write(fd, b'x' * 1000)\n    except OSError: pass",
        {"test"},
    ),
    "standard output closed": ("import os\nos.close(1)\nprint('SECRET-')", {"runtime", "test"}),
    "standard output closed by name": ("import sys\nsys.stdout.close()\nprint(1)", {"runtime"}),
    "everything closed": ("import os\nos.closerange(0, 1000)\nprint(1)", {"runtime", "test"}),
    # Ending early, and the harness
    "os._exit": ("import os\nos._exit(0)", {"test"}),
    "sys.exit": ("import sys\nsys.exit(0)", {"test"}),
    "abort": ("import os\nos.abort()", {"runtime"}),
    "os._exit put out of action": ("import os\nos._exit = lambda status: None", {"test", "runtime"}),
    "every exit put out of action": (
        "import os, sys\nf = sys._getframe()\nwhile f:\n    for name in ('_exit', 'os', 'exit_now', 'frames'):\n"
        "        f.f_globals.pop(name, None)\n    f = f.f_back\nos._exit = print\nraise SystemExit(0)",
        {"test", "runtime"},
    ),
    "harness unwound": (
        "import sys\nsys.settrace(lambda *a: None)\nimport builtins\n"
        "builtins.exec = builtins.compile = lambda *a, **k: None\n"
        "sys.modules.clear()",
        {"test", "runtime"},
    ),
    "messages of the supervisor": (
        'import os, struct\nh = b\'{"confined": true, "exit": 0, "stopped": "", "cpu_seconds": 0, "error": ""}\'\n'
        "for fd in range(1, 50):\n    try: os.write(fd, struct.pack('>II', len(h), 7) + h + b'SECRET-')\n"
        "    except OSError: pass",
        {"test"},
    ),
    "expected outputs in the frames": (
        "import sys, gc\nfound = [str(x) for x in gc.get_objects() if 'SECRET' in str(x)[:500]]\nf = sys._getframe()\n"
        "while f:\n    found += [str(v) for v in {**f.f_locals, **f.f_globals}.values() if 'SECRET-' in str(v)[:9]]\n"
        "    f = f.f_back\nprint(found[-1] if found else 0)",
        {"test", "runtime", "time"},
    ),
    "expected outputs in memory": (scan_for(SECRET), {"test"}),
    "an error whose text never ends": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        {"time"},
    ),
    # Files and the network
    "write outside": ("open('$CANARY', 'w').write('x')", {"forbidden"}),
    "append outside": ("open('$CANARY', 'a').write('x')", {"forbidden"}),
    "remove outside": ("import os\nos.remove('$CANARY')", {"forbidden"}),
    "truncate outside": ("import os\nos.truncate('$CANARY', 0)", {"forbidden"}),
    "change a mode outside": ("import os\nos.chmod('$CANARY', 0o777)", {"forbidden"}),
    "change a time outside": ("import os\nos.utime('$CANARY', (0, 0))", {"forbidden"}),
    "a link to a file outside": (
        "import os\nos.link('$CANARY', 'link')\nopen('link', 'w').write('x')",
        {"forbidden", "runtime"},
    ),
    "a symbolic link to a file outside": (
        "import os\nos.symlink('$CANARY', 'link')\nopen('link', 'w').write('x')",
        {"forbidden", "runtime"},
    ),
    "a file in shared memory": ("open('/dev/shm/falcon-left-behind', 'w').write('x')", {"forbidden"}),
    "its own memory as a file": ("open('/proc/self/mem', 'r+b')", {"forbidden"}),
    "many files": (
        "n = 0\nwhile True:\n    open(str(n), 'w').write('x')\n    n += 1",
        {"forbidden"},
    ),
    "a large file": ("f = open('big', 'wb')\nwhile True: f.write(b'x' * 10**6)", {"runtime", "forbidden"}),
    "many large files": (
        "n = 0\nwhile True:\n    n += 1\n    with open(str(n), 'wb') as f: f.write(b'x' * (4 << 20))",
        {"forbidden"},
    ),
    "files left behind": ("open('.hidden', 'w').write('x')\nopen('\\udc80-', 'w').write('y')", {"test", "runtime"}),
    "a connection": ("import socket\nsocket.create_connection(('127.0.0.1', $PORT)).send(b'x')", {"forbidden"}),
    "a request": ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:$PORT/')", {"runtime", "forbidden"}),
    "a datagram": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $PORT))",
        {"forbidden"},
    ),
    "a connection by a raw system call": ("import ctypes\nprint(ctypes.CDLL(None).socket(2, 1, 0))", {"test"}),
    "io_uring": ("import ctypes\nprint(ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)))", {"test"}),
    "a namespace of its own": ("import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000))", {"test"}),
    "another architecture's door": ("import ctypes\nctypes.CDLL(None).syscall(0x40000000 | 57)", {"forbidden", "test"}),
}

# Reads that have to fail. The program prints those that do not.
READS = """
import os
wanted = ["/proc", "/proc/self/environ", "/proc/self/maps", "/proc/self/mem", "/proc/1/environ", "/etc/passwd", "/root",
          "/home", "/tmp", "/sys", "/etc", "/usr/lib", "/dev/shm", "..", "$TESTS", "$TESTS/attacks.py", "$CANARY"]
parent = os.getppid()
wanted += ["/proc/%d/%s" % (parent, name) for name in ("environ", "mem", "cmdline", "maps", "status", "fd")]
wanted += ["/proc/%d/fd/%d" % (parent, fd) for fd in range(12)]
opened = []
for path in wanted:
    for action in (os.listdir, lambda p: open(p, "rb").read(1), os.readlink):
        try:
            action(path)
            opened.append(path)
        except OSError:
            pass
print(opened or "nothing")
"""

# A function's result, forged. With the arguments [n] the right answer is n * 7919.
FORGERIES: dict[str, tuple[str, bool]] = {  # name -> (program, whether it gives the right answer)
    "equal to everything": ("class A:\n    def __eq__(self, o): return True\ndef f(n): return A()", False),
    "an integer equal to everything": (
        "class A(int):\n    def __eq__(self, o): return True\ndef f(n): return A(5)",
        False,
    ),
    "a text equal to everything": ("class A(str):\n    def __eq__(self, o): return True\ndef f(n): return A(5)", False),
    "json replaced": ("import json\njson.dumps = lambda *a, **k: 'true'\ndef f(n): return 5", False),
    "a wrong report": ("import os\nos.write(3, b'5')\nos._exit(0)\ndef f(n): pass", False),
    "two reports": ("import os\ndef f(n):\n    os.write(3, str(n * 7919).encode())\n    return n * 7919", False),
    "no report": ("import os\ndef f(n): os._exit(0)", False),
    "not a number": ("def f(n): return float('nan')", False),
    "infinite": ("def f(n): return float('inf')", False),
    "a generator": ("def f(n): yield n * 7919", False),
    "an exit in place of a result": ("import sys\ndef f(n): sys.exit(0)", False),
    "its expected value by the frames": (
        "import sys\ndef f(n):\n    g = sys._getframe()\n    while g.f_back: g = g.f_back\n"
        "    return g.f_locals.get('expected')",
        False,
    ),
    "the right answer, reported by the program itself": (
        "import os\ndef f(n):\n    os.write(3, str(n * 7919).encode())\n    os._exit(0)",
        True,
    ),
    "the right answer, with noise": ("print('noise')\ndef f(n):\n    print('x' * 10**6)\n    return n * 7919", True),
}
