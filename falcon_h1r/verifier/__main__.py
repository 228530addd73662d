"""Judge pairs: JSON lines {"id", "prediction", "gold"} on stdin, verdicts on stdout in order, streaming.

`--explain` reads one such line, or takes `--explain PREDICTION GOLD`, and shows what each stage makes of it.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from concurrent.futures import Future
from typing import Any

from falcon_h1r.types import Verdict
from falcon_h1r.verifier.explain import explain
from falcon_h1r.verifier.extract import FALLBACKS
from falcon_h1r.verifier.service import DEFAULT_DEADLINE_SECONDS, Verifier

_MAX_WAITING = 1_000  # lines read ahead of the oldest open verdict


def _row(line_id: Any, verdict: Verdict) -> dict[str, Any]:
    judged = verdict.status in ("correct", "wrong")
    return {
        "id": line_id,
        "correct": verdict.correct if judged else None,
        "status": verdict.status,
        "stage": verdict.stage,
        "reason": verdict.reason,
        "seconds": round(verdict.seconds, 6),
    }


class _Output:
    """Prints verdicts in the order of their lines, each as soon as it is there."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Any, Future[Verdict]] | None] = queue.Queue(_MAX_WAITING)
        self._num_waiting = 0  # raised by the reader, lowered by the writer after it has printed
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._write)
        self._writer.start()

    def put(self, line_id: Any, future: Future[Verdict]) -> None:
        """Print a verdict that is there and has nobody before it; queue any other."""
        with self._lock:
            first = self._num_waiting == 0
            at_once = first and future.done()
            self._num_waiting += not at_once
        if at_once:
            self._print(line_id, future)
        else:
            self._waiting.put((line_id, future))

    def close(self) -> None:
        """Wait until everything is printed."""
        self._waiting.put(None)
        self._writer.join()

    def _write(self) -> None:
        while (entry := self._waiting.get()) is not None:
            self._print(*entry)
            with self._lock:
                self._num_waiting -= 1

    def _print(self, line_id: Any, future: Future[Verdict]) -> None:
        sys.stdout.write(json.dumps(_row(line_id, future.result())) + "\n")
        sys.stdout.flush()


def _refusal(reason: str) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(Verdict("undecided", "input", reason))
    return future


def _submit(verifier: Verifier, line: str) -> tuple[Any, Future[Verdict]]:
    """A line's id and the future of its verdict; a line that is no pair is answered, not fatal."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return None, _refusal(f"not JSON: {error}")
    if not isinstance(row, dict):
        return None, _refusal("not a JSON object")
    if not all(isinstance(row.get(field), str) for field in ("prediction", "gold")):
        return row.get("id"), _refusal('needs strings "prediction" and "gold"')
    return row.get("id"), verifier.submit(row["prediction"], row["gold"])


def _explain(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Print the stages of one pair."""
    if not options.explain:
        try:
            row = json.loads(sys.stdin.readline())
            pair = [row["prediction"], row["gold"]]
        except (ValueError, TypeError, KeyError) as error:
            parser.error(f'--explain: stdin holds no line {{"prediction", "gold"}}: {error!r}')
    elif len(options.explain) == 2:
        pair = options.explain
    else:
        parser.error("--explain takes a prediction and a gold, or reads them from stdin")
    for stage, finding in explain(pair[0], pair[1], options.after_think, options.fallback):
        print(f"{stage:<12}{finding}")


def main() -> None:
    """Serve stdin until it ends."""
    parser = argparse.ArgumentParser(prog="python -m falcon_h1r.verifier", description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--deadline", type=float, default=DEFAULT_DEADLINE_SECONDS, help="seconds for one pair's algebra"
    )
    parser.add_argument("--after-think", action="store_true", help="only text behind </think> counts")
    parser.add_argument("--fallback", action="append", default=[], choices=list(FALLBACKS), help="without a box")
    parser.add_argument("--explain", nargs="*", metavar="TEXT", help="a prediction and a gold: show the stages")
    options = parser.parse_args()
    if options.explain is not None:
        _explain(parser, options)
        return
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]  # one broken byte is one wrong answer
    settings = (options.workers, options.deadline, options.after_think)
    with Verifier(*settings, fallbacks=options.fallback) as verifier:
        verifier.start()
        output = _Output()
        try:
            for line in sys.stdin:
                if line.strip():
                    output.put(*_submit(verifier, line))
        finally:
            output.close()


if __name__ == "__main__":
    main()
