"""Collectives, verifier, clocks and limits: green here, red or yellow where they are broken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from falcon_h1r.checkpoint import publish_model
from falcon_h1r.distributed.world import World
from falcon_h1r.doctor import collectives, host, verifier
from falcon_h1r.doctor.finding import Finding
from falcon_h1r.doctor.inspection import check_checkpoint
from falcon_h1r.verifier import Verifier
from tests.doctor.examinations import ALONE, RunOnRanks, assert_green, examination, only, statuses

KINDS = [each.name for each in collectives.COLLECTIVES]


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_are_right_and_measured(run_on_ranks: RunOnRanks, tmp_path: Path, size: int) -> None:
    for findings in run_on_ranks(size, lambda world: collectives.check_collectives(examination(tmp_path, world))):
        assert_green(findings)
        assert [f.name for f in findings] == ["CPU group", *KINDS]
        assert all("at 0.01 MiB" in f.measured for f in findings[1:])


def test_one_rank_has_no_collectives(tmp_path: Path) -> None:
    (found,) = collectives.check_collectives(examination(tmp_path))
    assert found.status == "skipped"


@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_result_on_one_rank_is_red(run_on_ranks: RunOnRanks, tmp_path: Path, name: str) -> None:
    def work(world: World) -> list[Finding]:
        def spoil(each: collectives.Collective) -> collectives.Collective:
            def run(sent: torch.Tensor, received: torch.Tensor) -> None:
                each.run(sent, received)
                received.view(-1)[-1] += float(world.rank == 1)

            return replace(each, run=run) if each.name == name else each

        collectives.COLLECTIVES = tuple(spoil(each) for each in collectives.COLLECTIVES)
        return collectives.check_collectives(examination(tmp_path, world))

    for findings in run_on_ranks(2, work):
        assert [f.name for f in findings if f.status == "failed"] == [name]
        assert "ranks [1]" in only(findings, name).measured


def test_a_network_below_what_is_asked_for_is_a_warning(run_on_ranks: RunOnRanks, tmp_path: Path) -> None:
    def work(world: World) -> list[Finding]:
        patient = examination(tmp_path, world, "doctor.least_bus_gigabytes_per_second=1e6")
        return collectives.check_collectives(patient)

    for findings in run_on_ranks(2, work):
        assert {f.status for f in findings if f.name in KINDS} == {"warn"}


def test_bus_bandwidth_counts_what_crosses_a_link() -> None:
    """A ring of n sends a buffer's (n - 1) / n over each link once, and twice where it reduces and gathers."""
    factors = {each.name: each.bus_factor(4) for each in collectives.COLLECTIVES}
    assert factors == {"all-reduce": 1.5, "all-gather": 0.75, "reduce-scatter": 0.75, "all-to-all": 0.75}


@pytest.fixture
def closing() -> Iterator[list[Verifier]]:
    opened: list[Verifier] = []
    yield opened
    for each in opened:
        each._pool.close()


def test_the_verifier_judges_and_its_workers_end(tmp_path: Path) -> None:
    findings = verifier.check_verifier(examination(tmp_path))
    assert only(findings, "verdicts").status == "ok"
    assert only(findings, "verifier workers").status in ("ok", "warn")  # some kernels confine nothing


def test_a_wrong_verdict_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Verifier.score

    def flattering(self: Verifier, *arguments: Any) -> Any:
        return [replace(verdict, status="correct") for verdict in score(self, *arguments)]

    monkeypatch.setattr(Verifier, "score", flattering)
    assert only(verifier.check_verifier(examination(tmp_path)), "verdicts").status == "failed"


def test_workers_that_stay_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: list[Verifier]) -> None:
    monkeypatch.setattr(Verifier, "close", lambda self: closing.append(self))
    monkeypatch.setattr(verifier, "END_SECONDS", 0.2)
    assert only(verifier.check_verifier(examination(tmp_path)), "verifier workers").status == "failed"


def test_clocks_that_differ_are_a_warning(run_on_ranks: RunOnRanks, tmp_path: Path) -> None:
    def work(world: World) -> tuple[Finding, Finding]:
        agreeing = host.check_clocks(examination(tmp_path, world))
        real = time.time
        host.time = SimpleNamespace(time=lambda: real() + 100.0 * world.rank)  # type: ignore[assignment]
        return agreeing, host.check_clocks(examination(tmp_path, world))

    for agreeing, differing in run_on_ranks(2, work):
        assert agreeing.status == "ok"
        assert differing.status == "warn" and "rank 1" in differing.measured


@pytest.mark.parametrize(("soft", "status"), [(-1, "ok"), (1_000_000, "ok"), (256, "warn")])
def test_low_limits_are_a_warning(soft: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.resource, "getrlimit", lambda _: (soft, soft))
    assert host.check_limits().status == status


@pytest.mark.parametrize(("size", "status"), [(64 * 2**20, "warn"), (2**34, "ok")])
def test_a_containers_small_shared_memory_is_a_warning(
    size: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda _: SimpleNamespace(total=size))
    assert host.check_shared_memory().status == status


def test_a_checkpoints_tokenizer_is_inspected(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    publish_model(tiny_model, tokenizer, tmp_path / "model")
    limits = ["sft.limits={prompt_tokens: 8, response_tokens: 8, row_tokens: 16}"]
    limits += ["grpo.limits={prompt_tokens: 8, response_tokens: 8, row_tokens: 16}", "model.architecture={}"]
    findings = check_checkpoint(examination(tmp_path, ALONE, f"model.path={tmp_path / 'model'}", *limits))
    assert {"BOS", "stop tokens", "chat template", "vocabulary"} <= statuses(findings).keys()
    assert "failed" not in statuses(findings).values()


def test_a_random_start_has_no_checkpoint_to_inspect(tmp_path: Path) -> None:
    (found,) = check_checkpoint(examination(tmp_path))
    assert found.status == "skipped"
