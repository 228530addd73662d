"""The plan against measured peaks: the page's, and two measured here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from falcon_h1r.config import Config
from falcon_h1r.planning.measure import MeasuredRun, MeasurementFailed, measure, predicted
from falcon_h1r.planning.suite import BAR, measured_runs, ratio, render_page
from falcon_h1r.types import InputError

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks" / "plan.md"


def runs_of(composed: Callable[..., Config], *overrides: str) -> dict[str, MeasuredRun]:
    config = composed("suite=plan", *overrides)
    return {run.name: run for run in measured_runs(config.benchmark, config.model.architecture)}


def test_the_page_is_printed_from_its_figures() -> None:
    assert PAGE.read_text() == render_page(json.loads(PAGE.with_suffix(".json").read_text()))


def test_the_page_holds_every_configuration_of_the_suite(composed: Callable[..., Config]) -> None:
    figures = json.loads(PAGE.with_suffix(".json").read_text())
    assert [row["run"]["name"] for row in figures["runs"]] == list(runs_of(composed))


def test_the_plan_still_says_what_the_page_says(composed: Callable[..., Config]) -> None:
    runs = runs_of(composed)
    for row in json.loads(PAGE.with_suffix(".json").read_text())["runs"]:
        assert predicted(runs[row["run"]["name"]], "cpu").peak_bytes == row["predicted_bytes"], row["run"]["name"]


def test_every_measured_configuration_is_within_the_bar() -> None:
    rows = json.loads(PAGE.with_suffix(".json").read_text())["runs"]
    off = {row["run"]["name"]: ratio(row) for row in rows}
    assert all(share is not None and abs(share - 1) <= BAR for share in off.values()), off


def test_an_unknown_field_of_a_run_is_refused(composed: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match="benchmark.plan_runs.one.rows: not one of architecture, checkpointing"):
        runs_of(composed, "+benchmark.plan_runs.one={rows: 3}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "a row on two ranks"])
def test_a_measured_peak_is_within_a_tenth_of_the_plan(composed: Callable[..., Config], name: str) -> None:
    run = runs_of(composed)[name]
    assert predicted(run, "cpu").peak_bytes == pytest.approx(measure(run).peak_bytes, rel=BAR)


@pytest.mark.slow
def test_a_configuration_that_fails_says_why(composed: Callable[..., Config]) -> None:
    run = replace(runs_of(composed)["bfloat16"], sequence_parallel=3)
    with pytest.raises(MeasurementFailed, match="sequence_parallel=3"):
        measure(run)
