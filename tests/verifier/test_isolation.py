"""Model text is never run, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import falcon_h1r.verifier
from falcon_h1r.verifier import canonical_answer, verify

SOURCES = sorted(Path(falcon_h1r.verifier.__file__).parent.glob("*.py"))

INJECTIONS = [
    "__import__('os').system('touch MARK')",
    "open('MARK', 'w').write('x') or 0",
    "eval(\"open('MARK','w')\")",
    "exec(\"open('MARK','w')\")",
    "getattr(__import__('pathlib').Path('MARK'), 'touch')()",
    "().__class__.__mro__[1].__subclasses__()",
    "Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('MARK','w')",
    "lambdify(x, \"__import__('os').system('touch MARK')\")(1)",
    "{0.__class__.__init__.__globals__}",
    'f\'{open("MARK","w")}\'',
    r"\text{__import__('os').system('touch MARK')}",
    r"\operatorname{open}(MARK)",
    "%(open)s",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_code_in_an_answer_leaves_no_trace(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for gold in ("0", r"\frac{1}{2}", r"\sqrt{2}", text[:-1]):
        assert not verify(f"\\boxed{{{text.replace('MARK', str(tmp_path / 'MARK'))}}}", gold).correct
        verify(r"\boxed{0}", text)
    canonical_answer(f"\\boxed{{{text}}}")
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_the_package_evaluates_text() -> None:
    forbidden = {
        "eval",
        "exec",
        "compile",
        "sympify",
        "parse_expr",
        "parse_latex",
        "lambdify",
        "S",
        "nsimplify",
    }
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                is_regex = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "re"
                assert called not in forbidden or is_regex, (source.name, node.lineno, called)


def test_importing_the_package_is_fast_and_loads_neither_torch_nor_sympy() -> None:
    code = (
        "import time, sys; start = time.process_time();"
        "import falcon_h1r.verifier as v; cpu = time.process_time() - start;"
        r"v.verify(r'\boxed{0.5}', '1/2'); v.verify(r'\boxed{1, 2}', '2, 1');"
        "print(cpu, [m for m in ('torch', 'sympy', 'mpmath', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    cpu, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]"
    assert float(cpu) < 0.2
