"""Math-Verify behind the protocol of `python -m falcon_h1r.verifier`: JSON lines in, verdicts out.

    PYTHON -I math_verify_judge.py              serve
    PYTHON -I math_verify_judge.py --versions   what it runs on, as JSON

Run by an interpreter that has Math-Verify and nothing of ours; imports nothing of this package.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata

PACKAGES = ("math-verify", "latex2sympy2_extended", "antlr4-python3-runtime", "sympy")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def serve() -> None:
    """Judge stdin's pairs until it ends, with Math-Verify's defaults and its timeouts; the gold stands in a box."""
    from math_verify import parse, verify  # type: ignore[import-not-found]

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no verdict
    for line in sys.stdin:
        row = json.loads(line)
        gold = row["gold"] if "\\boxed" in row["gold"] else "\\boxed{" + row["gold"] + "}"
        answer = {"id": row["id"], "correct": None, "reason": ""}
        try:
            answer["correct"] = bool(verify(parse(gold), parse(row["prediction"])))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # its timeout is no Exception
            answer["reason"] = type(error).__name__
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    if "--versions" in sys.argv[1:]:
        import math_verify  # noqa: F401

        print(json.dumps(versions()))
    else:
        serve()
