"""What a model writes is never run: every known trick, everywhere text goes in, watched by the interpreter itself."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import falcon_h1r.verifier
from falcon_h1r.verifier import Verifier, canonical_answer, check_gold, extract_boxed, verify

PACKAGE = Path(falcon_h1r.verifier.__file__).parent

# MARK becomes the path of a file that must not appear.
TRICKS = [
    "__import__('os').system('touch MARK')",
    "__import__('subprocess').run(['touch','MARK'])",
    "open('MARK', 'w').write('x') or 0",
    "eval(\"open('MARK','w')\")",
    "exec(\"open('MARK','w')\")",
    "exec(compile(\"open('MARK','w')\", 'x', 'exec'))",
    "(lambda: open('MARK','w'))()",
    "[open('MARK','w') for x in (1,)]",
    "getattr(__import__('pathlib').Path('MARK'), 'touch')()",
    "().__class__.__mro__[1].__subclasses__()",
    "().__class__.__base__.__subclasses__()[84].load_module('os').system('touch MARK')",
    "(1).__class__.__reduce_ex__(2)",
    "x.__init__.__globals__['os'].system('touch MARK')",
    "{0.__class__.__init__.__globals__}",
    "{0.__class__}".replace("{", "{{").replace("}", "}}"),
    'f\'{open("MARK","w")}\'',
    "%(open)s",
    "%s%s%s%s%n",
    "${jndi:ldap://127.0.0.1:1/a}",
    # sympy, which evaluates strings wherever it is handed one
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('MARK','w')",
    "Symbol('x').__class__",
    "lambdify(x, \"__import__('os').system('touch MARK')\")(1)",
    "S(\"__import__('os').system('touch MARK')\")",
    'sympify(\'open("MARK","w")\')',
    'parse_expr(\'open("MARK","w")\')',
    "sympy.core.sympify.sympify('1')",
    "Function('open')('MARK','w')",
    'N(\'open("MARK","w")\')',
    "Integer.__new__(Integer, 1).__class__.__bases__",
    r"\operatorname{open}(MARK)",
    r"\text{__import__('os').system('touch MARK')}",
    r"\int_0^1 \operatorname{system}(touch) dx",
    r"\lim_{__import__ \to 0} __import__(os)",
    r"\sum_{open=1}^{\infty} open^{-2}",
    r"x_{__class__} + \sqrt{2}",
    r"x_{\text{__import__('os').system('touch MARK')}} + \sqrt{2}",
    r"\overline{__import__('os')} + \sqrt{2}",
    # other languages
    "; touch MARK;",
    "$(touch MARK)",
    "`touch MARK`",
    "| touch MARK",
    "&& touch MARK",
    "1\n__import__('os').system('touch MARK')\n",
    "'; DROP TABLE golds; --",
    "!!python/object/apply:os.system ['touch MARK']",
    '{"py/object": "os.system", "py/reduce": ["touch MARK"]}',
    '{"__class__": "os.system", "args": ["touch MARK"]}',
    "cos\nsystem\n(S'touch MARK'\ntR.",
    "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAVsczogL5SFlFKULg==",
    "<script>alert(1)</script>",
    "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    r"\input{/etc/passwd}",
    r"\include{MARK}",
    r"\write18{touch MARK}",
    r"\immediate\write18{touch MARK}",
    r"\openout1=MARK \write1{x}",
    r"\newwrite\f\immediate\openout\f=MARK",
    r"\catcode`\@=11 \def\x{\x\x}\x",
    r"\csname input\endcsname /etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/MARK",
    "urllib.request.urlopen('http://127.0.0.1:1')",
    "socket.socket().connect(('127.0.0.1', 1))",
    "\x00\x1b]0;touch MARK\x07",
]
GOLDS = ["0", r"\frac{1}{2}", r"\sqrt{2}", "[0, 1]", "x"]

# Runs in an interpreter of its own: an audit hook cannot be taken back. What the verifier does by itself (it
# imports, it reads its own files, the pool starts workers) is done before the hook looks.
WATCHED = """
import json, sys
from falcon_h1r.verifier import Verifier, canonical_answer, check_gold, verify
pairs = json.load(sys.stdin)
verify(r"\\boxed{\\sqrt{8}}", r"2\\sqrt{2}"), verify(r"\\boxed{\\int_0^1 x^2 dx}", r"\\frac{1}{3}")
canonical_answer(r"\\boxed{\\sqrt{8}}"), canonical_answer(r"\\boxed{x+1}")
import falcon_h1r.verifier.values.symbolic, falcon_h1r.verifier.workers.worker
with Verifier(deadline_seconds=30.0) as verifier:
    verifier.submit(r"\\boxed{\\sqrt{8}}", r"2\\sqrt{2}").result()
    seen, watching = set(), True
    forbidden = ("exec", "compile", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pickle.", "pty.", "urllib.",
                 "marshal.", "code.", "import", "signal.", "tempfile.", "glob.", "syslog.", "http.", "mmap.", "fcntl.")

    def hook(event, arguments):
        if not watching:
            return
        if event == "open" or event.startswith(forbidden):
            seen.add(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)
    for prediction, gold in pairs:
        for text in (prediction, gold):
            canonical_answer("\\\\boxed{" + text + "}"), check_gold(text)
        verify("\\\\boxed{" + prediction + "}", gold), verify(prediction, gold)
        verifier.submit("\\\\boxed{" + prediction + "}", gold).result()
    open("/dev/null").close()  # the hook does look
    watching = False
print(json.dumps(sorted(seen)))
"""


def with_mark(folder: Path) -> list[str]:
    return [trick.replace("MARK", str(folder / "MARK")) for trick in TRICKS]


def pairs(folder: Path) -> list[tuple[str, str]]:
    """Every trick as a prediction, as a gold, and against itself with something added, which needs algebra."""
    tricks = with_mark(folder)
    return [
        *((trick, gold) for trick in tricks for gold in GOLDS),
        *((gold, trick) for trick in tricks for gold in GOLDS),
        *((trick + r"+\sqrt{2}", trick + r"+2^{1/2}") for trick in tricks),
    ]


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier(2, deadline_seconds=20.0)


def test_no_entrance_runs_what_a_model_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: Verifier
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(Path("/tmp").iterdir())
    cases = pairs(tmp_path)
    for prediction, gold in cases:
        boxed = f"\\boxed{{{prediction}}}"
        assert verify(boxed, gold).stage != "error"
        for text in (prediction, gold):
            check_gold(text)
            extract_boxed(text)
            canonical_answer(text)
            canonical_answer(f"\\boxed{{{text}}}")
    verdicts = verifier.score([f"\\boxed{{{p}}}" for p, _ in cases], [g for _, g in cases])
    assert not any(v.stage in ("error", "worker", "deadline") for v in verdicts)
    tricks_as_predictions = verdicts[: len(TRICKS) * len(GOLDS)]
    assert not any(v.correct for v in tricks_as_predictions)
    assert list(tmp_path.iterdir()) == []
    assert not [p for p in set(Path("/tmp").iterdir()) - before if "MARK" in p.name]


def test_the_command_runs_nothing_either(tmp_path: Path) -> None:
    rows = [{"id": n, "prediction": f"\\boxed{{{p}}}", "gold": g} for n, (p, g) in enumerate(pairs(tmp_path))]
    lines = [json.dumps(row) for row in rows] + with_mark(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "falcon_h1r.verifier"],
        input="\n".join(line.replace("\n", " ") for line in lines) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0 and done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["id"] for a in answers[: len(rows)]] == [row["id"] for row in rows]
    assert list(tmp_path.iterdir()) == []


def test_the_interpreter_sees_no_file_socket_process_or_code_while_it_judges(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        input=json.dumps(pairs(tmp_path)),
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    seen = json.loads(done.stdout)
    assert len(seen) == 1 and "/dev/null" in seen[0], seen
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- what the package calls
FORBIDDEN = frozenset(
    "eval exec compile execfile __import__ sympify parse_expr parse_latex parse_mathematica lambdify S nsimplify "
    "literal_eval system popen run_path run_module signal alarm setitimer pthread_kill "
    "autowrap ufuncify srepr".split()
)
FORBIDDEN_MODULES = frozenset(
    "pickle cPickle marshal shelve dill cloudpickle yaml code codeop runpy pty shlex antlr4 numexpr signal".split()
)
# Each with its reason; nothing of it is reached by text.
JUSTIFIED = {
    ("sandbox.py", "signal"),  # SIGKILL as a number: what the kernel sends with the parent's death
    ("process.py", "subprocess"),  # starts the workers, with a fixed command
    ("worker.py", "import_module"),  # of the task named by the service
}


def _judging_files() -> list[Path]:
    """The verifier of mathematics; a package below it that runs programs has walls and tests of its own."""
    return sorted(PACKAGE.glob("*.py"))


def _calls(source: Path) -> list[tuple[int, str, str]]:
    """(line, name called, what it is an attribute of)."""
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                found.append((node.lineno, function.attr, getattr(function.value, "id", "")))
            else:
                found.append((node.lineno, getattr(function, "id", ""), ""))
    return found


@pytest.mark.parametrize("source", _judging_files(), ids=lambda p: p.name)
def test_the_package_calls_nothing_that_evaluates_text_or_sets_a_signal(source: Path) -> None:
    for line, name, owner in _calls(source):
        assert name not in FORBIDDEN or (owner, name) == ("re", "compile"), (source.name, line, name)
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                root = module.partition(".")[0]
                assert root not in FORBIDDEN_MODULES or (source.name, root) in JUSTIFIED, (source.name, module)
                assert root != "subprocess" or (source.name, root) in JUSTIFIED, (source.name, module)


def test_modules_are_imported_by_name_only_in_the_worker() -> None:
    users = {source.name for source in _judging_files() for _, name, _ in _calls(source) if name == "import_module"}
    assert users <= {name for name, what in JUSTIFIED if what == "import_module"}


def test_attributes_looked_up_by_text_come_from_fixed_tables() -> None:
    """The one getattr on a name from a tree is numeric.py's, behind a table of function names."""
    users = {source.name for source in _judging_files() for _, name, _ in _calls(source) if name == "getattr"}
    assert users <= {"numeric.py", "worker.py"}
