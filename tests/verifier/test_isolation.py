"""Importing the package stays light: whoever asks for a verdict on 1/2 pays for no torch and no sympy."""

import json
import subprocess
import sys

HEAVY = ("torch", "sympy", "mpmath", "numpy", "transformers", "ctypes", "multiprocessing", "asyncio")
CHEAP = [(r"\boxed{0.5}", "1/2"), (r"\boxed{1, 2}", "2, 1"), (r"\boxed{(0,1]}", "0 < x \\le 1"), ("no box", "1")]


def loaded_by(code: str) -> list[str]:
    probe = f"import json, sys; {code}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    names: list[str] = json.loads(done.stdout)
    return names


def test_importing_the_package_loads_neither_torch_nor_sympy() -> None:
    assert loaded_by("import falcon_h1r.verifier") == []


def test_cheap_verdicts_load_neither_torch_nor_sympy() -> None:
    code = f"from falcon_h1r.verifier import Verifier, verify; pairs = {CHEAP!r}; [verify(*p) for p in pairs]; "
    assert loaded_by(code + "Verifier().score(*map(list, zip(*pairs)))") == []


def test_algebra_is_loaded_by_the_workers_alone() -> None:
    code = r"from falcon_h1r.verifier import Verifier; v = Verifier(); r = v.submit('\\boxed{\\sqrt8}', '2\\sqrt2')"
    assert loaded_by(code + ".result(); v.close(); assert r.correct and r.stage == 'algebra'") == []
