"""The page from figures made up by hand, and what is kept of a run that was cut short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from falcon_h1r.benchmark.verifier.figures import PairFigures, VerifierFigures, append_row, shown_pair
from falcon_h1r.benchmark.verifier.judges import HANG, OURS, PEER, Judgement
from falcon_h1r.benchmark.verifier.page import render, write_page
from falcon_h1r.benchmark.verifier.pairs import Pair
from falcon_h1r.types import InputError

ENVIRONMENT = {"hardware": "Abacus", "ours": {"python": "3"}, "peer": {"math-verify": "0"}, "call_seconds": 10.0}
BATCH = {
    "num_problems": 1250, "num_rollouts": 8, "num_verdicts": 10_000, "num_golds": 5, "mean_chars": 5000.0,
    "num_workers": 2, "repeats": 1, "seconds": 12.5, "longest_seconds": 12.5, "repeated_share": 0.5,
    "cached_share": 0.25, "statuses": {"wrong": 4000, "correct": 6000}, "deadline_kills": 0,
}  # fmt: skip


def measured(pair: Pair, ours: Judgement, peer: Judgement | None = None) -> PairFigures:
    judgements = {OURS: ours} if peer is None else {OURS: ours, PEER: peer}
    return PairFigures(shown_pair(pair), pair.content, judgements)


def numbered(number: int, expected: bool = True, kind: str = "numeric") -> Pair:
    return Pair(f"p{number}", rf"\boxed{{{number}}}", str(number), expected, kind)


def figures_of(*pairs: PairFigures, **rest: Any) -> VerifierFigures:
    found = VerifierFigures(ENVIRONMENT, ["pairs.jsonl"], ["python x.py"], ["abc"], **rest)
    found.pairs = {one.pair.id: one for one in pairs}
    return found


def cells(page: str, *starts: str) -> list[str]:
    """Of the one table row that starts with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in page.splitlines() if line[:1] == "|"]
    (found,) = [row for row in rows if row[: len(starts)] == list(starts)]
    return found


def test_figures_stand_beside_their_bars() -> None:
    pairs = [measured(numbered(n), Judgement(True, 0.0005), Judgement(n > 3, 0.04)) for n in range(8)]
    page = render(figures_of(*pairs, batch=BATCH), None)
    assert cells(page, "right") == ["right", "100.00% (at least 97.5%: met)", "50.00%"]
    assert cells(page, "others", OURS)[3:6] == ["0.5 (at most 1: met)", "0.5", "0.5 (at most 50: met)"]
    assert cells(page, "others", PEER)[3] == "40"
    assert "80.00x (at least 20x: met) that of Math-Verify; without each judge's longest call 80.00x" in page
    assert "10,000 verdicts in 12.50 s (at most 10 s: **missed**), one run (longest 12.50 s): 800 verdicts/s" in page
    assert "came before: 50.0%; served by the cache: 25.0%" in page


def test_a_small_batch_is_not_judged() -> None:
    pairs = [measured(numbered(1), Judgement(True, 0.0005))]
    page = render(figures_of(*pairs, batch={**BATCH, "num_verdicts": 80}), None)
    assert "80 verdicts in 12.50 s, one run" in page


def test_a_page_without_the_peer_says_so_and_compares_nothing() -> None:
    figures = figures_of(measured(numbered(1), Judgement(True, 0.0005)))
    figures.environment = {**ENVIRONMENT, "peer": None}
    page = render(figures, None)
    assert "Math-Verify was **not measured**" in page
    assert "Where the two judges differ" not in page and "throughput" not in page
    assert cells(page, "numeric") == ["numeric", "1", "100.00%", "0 of 1", "0 of 0", "0"]


def test_differences_are_listed_with_their_texts_made_harmless() -> None:
    odd = Pair("odd", "\\boxed{a|b`c\n\ud800}", "x" * 200, True, "text")
    page = render(figures_of(measured(odd, Judgement(None, 10.0, HANG, HANG), Judgement(True, 0.1))), None)
    row = cells(page, "odd")
    assert row[1:5] == ["text", "correct", "undecided", "hang"]
    assert row[5] == "`` a\\|b`c \N{REPLACEMENT CHARACTER} ``"
    assert len(row[6]) < 100
    assert cells(page, "text", "0") == ["text", "0", "1", "0", "0"], "only Math-Verify is right"
    assert page.encode()


def test_hangs_and_adversarial_pairs_are_counted_apart() -> None:
    bomb = numbered(2, expected=False, kind="adversarial")
    page = render(
        figures_of(measured(numbered(1), Judgement(True, 0.001)), measured(bomb, Judgement(None, 10.0, HANG, HANG))),
        None,
    )
    assert cells(page, "adversarial", OURS)[-2:] == ["1", "0"]
    assert cells(page, "others", OURS)[-2:] == ["0", "0"]
    assert cells(page, "adversarial: undecided")[1] == "1"


def test_page_and_plot_are_written(tmp_path: Path) -> None:
    write_page(figures_of(measured(numbered(1), Judgement(True, 0.001), Judgement(True, 0.1))), tmp_path / "page.md")
    assert "](page.svg)" in (tmp_path / "page.md").read_text()
    assert PEER in (tmp_path / "page.svg").read_text()


# -----------------------------------------------------------------------------
# The figures' file


def test_a_line_that_a_kill_cut_off_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "page.jsonl"
    first, second = (measured(numbered(n), Judgement(True, 0.25, "string"), Judgement(None, 1.0)) for n in (1, 2))
    figures = figures_of(first, imports={"seconds": 0.1})
    figures.write(path)
    append_row(path, second.as_row())
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert VerifierFigures.read(path) == figures
    append_row(path, second.as_row())
    figures.pairs["p2"] = second
    assert VerifierFigures.read(path) == figures


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(InputError, match="holds something else"):
        VerifierFigures.read(tmp_path / "page.jsonl")


def test_the_content_is_that_of_prediction_and_gold() -> None:
    pair = numbered(1)
    assert replace(pair, expected=False, kind="set").content == pair.content
    assert replace(pair, gold="1.0").content != pair.content
    assert Pair("a", "xy", "z", True, "k").content != Pair("a", "x", "yz", True, "k").content
