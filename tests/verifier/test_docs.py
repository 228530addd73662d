"""The rules as docs/verifier.md states them."""

import re
from pathlib import Path

import pytest

from falcon_h1r.verifier import verify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verifier.md"
PAIR = re.compile(r"`([^`]+)` and `([^`]+)`")


def stated_pairs() -> list[tuple[str, str, bool]]:
    """(prediction, gold, equal) of every example in the table of rules."""
    table = PAGE.read_text().split("## Rules")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    return [
        (prediction.replace(r"\|", "|"), gold.replace(r"\|", "|"), equal)
        for _, right, wrong in rows[2:]
        for cell, equal in ((right, True), (wrong, False))
        for prediction, gold in PAIR.findall(cell)
    ]


def test_the_table_is_found() -> None:
    assert len(stated_pairs()) > 100


@pytest.mark.parametrize(("prediction", "gold", "equal"), stated_pairs())
def test_the_page_says_what_the_verifier_does(prediction: str, gold: str, equal: bool) -> None:
    verdict = verify(f"\\boxed{{{prediction}}}", gold)
    assert verdict.correct is equal, verdict
    assert verdict.status in ("correct", "wrong"), verdict
