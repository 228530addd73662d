"""The gradient of a step does not depend on how its documents are spread over ranks, micro-batches and stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from falcon_h1r.benchmark.layouts import (
    LAYOUTS,
    NUM_ROWS,
    REFERENCE,
    ROW_TOKENS,
    Layout,
    LayoutResult,
    gradient_error,
    loss_error,
    naive_gradients,
    step_documents,
    work_in_layout,
)
from falcon_h1r.data.packing import pack_for_rank
from falcon_h1r.distributed.world import World, join_sequence_group
from tests.conftest import TINY_ARCHITECTURE

ARCHITECTURE = {**TINY_ARCHITECTURE, "vocab_size": 330}
NUM_STEPS = 20
FAST = [layout for layout in LAYOUTS if layout.num_ranks == 2 and layout.zero_stage == 3]
RunOnRanks = Callable[[int, Callable[[World], Any]], list[Any]]

pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def reference() -> LayoutResult:
    from tests.conftest import _run_on_ranks

    return result_of(_run_on_ranks, replace(REFERENCE, dtype="float64"))


def result_of(run_on_ranks: RunOnRanks, layout: Layout, num_steps: int = NUM_STEPS) -> LayoutResult:
    def work(world: World) -> LayoutResult:
        sequence = join_sequence_group(world.rank, world.size, layout.sequence_parallel)
        return work_in_layout(replace(world, sequence=sequence), layout, ARCHITECTURE, num_steps)

    return run_on_ranks(layout.num_ranks, work)[0]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(layout, marks=[pytest.mark.slow] if layout.num_ranks == 4 else [])
        for layout in LAYOUTS[1:]
        if layout.zero_stage is None
    ],
    ids=str,
)
def test_in_float64_gradients_agree_to_1e_10_and_20_losses_to_1e_9(
    reference: LayoutResult, run_on_ranks: RunOnRanks, layout: Layout
) -> None:
    result = result_of(run_on_ranks, replace(layout, dtype="float64"))
    assert gradient_error(result.gradients, reference.gradients) < 1e-10
    assert loss_error(result.losses, reference.losses) < 1e-9


@pytest.mark.parametrize(
    "layout",
    [layout if layout in FAST else pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS],
    ids=str,
)
def test_in_float32_gradients_agree_to_1e_5(reference: LayoutResult, run_on_ranks: RunOnRanks, layout: Layout) -> None:
    result = result_of(run_on_ranks, layout, num_steps=3)
    assert gradient_error(result.gradients, reference.gradients) < 1e-5
    assert loss_error(result.losses, reference.losses[:3]) < 1e-5


def test_the_mean_of_the_ranks_means_is_another_gradient(reference: LayoutResult) -> None:
    assert gradient_error(naive_gradients(ARCHITECTURE, num_ranks=1), reference.gradients) < 1e-10
    assert gradient_error(naive_gradients(ARCHITECTURE, num_ranks=4), reference.gradients) > 0.05
    assert gradient_error(naive_gradients(ARCHITECTURE, 1, by_micro_batch=True), reference.gradients) > 0.05


def test_the_steps_documents_fill_the_same_number_of_rows_in_every_layout() -> None:
    documents = step_documents(330)
    for layout in LAYOUTS:
        data_ranks = layout.num_ranks // layout.sequence_parallel
        assert len(pack_for_rank(documents, ROW_TOKENS, 0, data_ranks)) * data_ranks == NUM_ROWS
