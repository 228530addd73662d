"""The packing suite: its peers pack as they are called, and the page says whether the bars are met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import FalconH1Config

from falcon_h1r.benchmark import packing
from falcon_h1r.benchmark.flops import document_cost, forward_flops
from falcon_h1r.benchmark.packing import PackingResult, Spread, first_fit, measure, next_fit, peak, recipe_lengths
from falcon_h1r.benchmark.packing_page import render
from falcon_h1r.data.packing_plan import FALCON_H1_7B
from tests.conftest import TINY_ARCHITECTURE

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60)


@given(lengths=LENGTHS)
def test_first_fit_takes_the_first_row_with_room(lengths: list[int]) -> None:
    room: list[int] = []
    expected = []
    for length in lengths:
        row = next((row for row, left in enumerate(room) if left >= length), len(room))
        room += [64] * (row == len(room))
        room[row] -= length
        expected.append(row)
    assert first_fit(np.array(lengths), 64).tolist() == expected


def test_next_fit_goes_on_where_a_document_does_not_fit() -> None:
    assert next_fit(np.array([40, 20, 4, 1, 64, 10]), 64).tolist() == [0, 0, 0, 1, 2, 3]


def test_lengths_are_the_recipes() -> None:
    lengths = recipe_lengths(20_000, seed=0)
    assert lengths.mean() == pytest.approx(9_700, rel=0.001)
    assert 40_000 < lengths.max() <= 49_152 and lengths.min() >= 1


def test_ours_is_even_and_full_where_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "RANKS", (8,))
    lengths = recipe_lengths(6_000, seed=0)
    results = {name: measure(name, way, lengths, FALCON_H1_7B, 0) for name, way in packing.WAYS.items()}
    ours = results.pop("ours")
    assert ours.spreads[0].num_steps == int(lengths.sum() / ours.fill / 49_152 / 32 + 1e-6)
    for other in results.values():
        assert ours.fill > other.fill
        assert ours.spreads[0].worst < 0.02 < other.spreads[0].worst


def test_the_page_says_what_was_met_and_what_was_missed() -> None:
    spreads = [Spread(8, 100, 0.001, 0.001, 0.01, 0.019), Spread(64, 10, 0.01, 0.01, 0.02, 0.021)]
    result = PackingResult("ours", 0.98, 1.0, {8: 0.001}, spreads)
    page = render(np.array([10, 20]), FALCON_H1_7B, [result], [("cost", spreads[0])], {"hardware": "A machine"}, "run")
    assert "98.00% (at least 99%: **missed**)" in page
    assert "1.90% (at most 2%: met)" in page and "2.10% (at most 2%: **missed**)" in page


def test_a_documents_cost_is_its_operations() -> None:
    config = FalconH1Config(**TINY_ARCHITECTURE)
    cost = document_cost(config)
    for length in (1, 7, 1000):
        assert float(cost.of(np.array(length))) == pytest.approx(forward_flops(config, [length]).total, rel=1e-12)


def test_the_default_cost_is_the_7bs() -> None:
    shape = yaml.safe_load((ROOT / "configs" / "model" / "falcon_h1_7b.yaml").read_text())["architecture"]
    cost = document_cost(FalconH1Config(**shape))
    assert cost.quadratic / cost.linear == pytest.approx(FALCON_H1_7B.quadratic / FALCON_H1_7B.linear, rel=0.01)


def test_a_peak_is_above_the_mean() -> None:
    assert peak([1.0, 2.0, 3.0]) == pytest.approx(0.5)
