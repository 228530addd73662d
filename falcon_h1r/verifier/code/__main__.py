"""How many programs this machine judges a second: `python -m falcon_h1r.verifier.code --workers 2`."""

from __future__ import annotations

import argparse
import os
import time

from falcon_h1r.verifier.code import CodeVerifier

_PROGRAM = """
import sys
numbers = [int(word) for word in sys.stdin.read().split()]  # {number}
best = total = numbers[0]
for x in numbers[1:]:
    total = max(x, total + x)
    best = max(best, total)
print(best)
"""


def main() -> None:
    """Judge a small right program, in as many versions as asked for, and print the rates."""
    parser = argparse.ArgumentParser(description="Programs judged a second by the sandbox of this machine.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--tests", type=int, default=10, help="of each program")
    options = parser.parse_args()
    tests = {"inputs": [f"{n} -3 4 -1 2 1 -5 4\n" for n in range(options.tests)]}
    tests["outputs"] = [str(max(6, n + 3)) for n in range(options.tests)]
    responses = [f"```python\n{_PROGRAM.format(number=number)}```" for number in range(options.programs + 1)]
    with CodeVerifier(options.workers) as verifier:
        verifier.score(responses[:1] * options.workers, [tests] * options.workers)  # the sandboxes start
        start = time.perf_counter()
        verdicts = verifier.score(responses[1:], [tests] * options.programs)
        seconds = time.perf_counter() - start
    right = sum(verdict.correct for verdict in verdicts)
    print(
        f"{options.programs} programs of {options.tests} tests, {options.workers} workers, {os.cpu_count()} cores: "
        f"{seconds:.1f} s, {options.programs / seconds:.1f} programs/s, "
        f"{options.programs * options.tests / seconds:.0f} tests/s; {right} judged right"
    )


if __name__ == "__main__":
    main()
