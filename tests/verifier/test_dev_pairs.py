"""Accuracy on labelled pairs that are kept beside the repository."""

import json
from pathlib import Path

import pytest

from falcon_h1r.verifier import verify

PAIRS = Path(__file__).resolve().parents[2] / "../shared/verifier/dev_pairs.jsonl"
ACCURACY_FLOOR = 0.985


def test_labelled_pairs_are_judged_as_their_labels_say() -> None:
    if not PAIRS.exists():
        pytest.skip("the labelled pairs (../shared/verifier/dev_pairs.jsonl beside the repository) are not here")
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    rows = [row for row in rows if not row.get("any_verdict")]
    right = {row["id"]: verify(row["prediction"], row["gold"]).correct == row["expected"] for row in rows}
    plain = [right[row["id"]] for row in rows if row["kind"] != "adversarial"]
    assert sum(plain) / len(plain) >= ACCURACY_FLOOR
    assert [row["id"] for row in rows if row["kind"] == "adversarial" and not right[row["id"]]] == []
