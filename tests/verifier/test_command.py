"""`python -m falcon_h1r.verifier`."""

import json
import subprocess
import sys

COMMAND = [sys.executable, "-m", "falcon_h1r.verifier"]


def run(lines: list[str], *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def pair(line_id: object, answer: str, gold: str) -> str:
    return json.dumps({"id": line_id, "prediction": f"\\boxed{{{answer}}}", "gold": gold})


def test_verdicts_come_in_the_order_of_their_lines() -> None:
    lines = [pair(n, r"\sqrt{8}" if n % 2 else "2", r"2\sqrt{2}" if n % 2 else "3") for n in range(12)]
    rows = run(lines)
    assert [row["id"] for row in rows] == list(range(12))
    assert [row["correct"] for row in rows] == [bool(n % 2) for n in range(12)]
    assert {"id", "correct", "stage", "reason", "seconds"} <= set(rows[0])


def test_a_line_that_is_no_pair_is_answered_and_the_stream_goes_on() -> None:
    rows = run(["not json", "[1]", '{"id": 3, "prediction": 4}', pair(4, "1", "1")])
    assert [row["correct"] for row in rows] == [None, None, None, True]
    assert [row["id"] for row in rows] == [None, None, 3, 4]


def test_what_cannot_be_judged_is_null() -> None:
    rows = run([pair(1, "2", r"\frac{1}{"), pair(2, r"9^{9^{9}}", r"\pi")])
    assert [row["correct"] for row in rows] == [None, None]


def test_thinking_is_left_out_on_request() -> None:
    line = json.dumps({"id": 1, "prediction": r"<think>\boxed{1}", "gold": "1"})
    assert run([line])[0]["correct"] is True
    assert run([line], "--after-think")[0]["correct"] is False


def test_each_verdict_is_written_as_soon_as_it_is_there() -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for n in range(3):
            process.stdin.write(pair(n, str(n), str(n)) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == n
        process.stdin.close()
