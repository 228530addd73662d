"""Layouts that fit, the cheapest of them, and what would fit where none does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from falcon_h1r.config import Config
from falcon_h1r.planning.report import render_plan
from falcon_h1r.planning.rollouts import decode_bytes, decode_rate
from falcon_h1r.planning.search import Subject, best, judge, search, usable_bytes, what_would_fit
from falcon_h1r.planning.speed import step_time
from falcon_h1r.planning.stages import GRPOPlan, StagePlan, check_plan, plan_grpo, plan_sft
from falcon_h1r.types import InputError

Composed = Callable[..., Config]
SMALL = ("plan.gpu.memory_gib=24", "engine.sequence_parallel=1")


def sft_plan(composed: Composed, subject: Subject, num_gpus: int, *overrides: str) -> tuple[Config, StagePlan]:
    config = composed("experiment=falcon_h1r_7b", *overrides)
    return config, plan_sft(config, subject, num_gpus)


@pytest.mark.parametrize("num_gpus", [8, 256])
def test_the_7b_has_a_layout_that_fits(composed: Composed, subject_7b: Subject, num_gpus: int) -> None:
    config = composed("experiment=falcon_h1r_7b" if num_gpus == 256 else "experiment=falcon_h1r_7b_8xh100")
    sft, grpo = plan_sft(config, subject_7b, num_gpus), plan_grpo(config, subject_7b, num_gpus)
    for stage in (sft, grpo.training):
        chosen = best(stage.found)
        assert chosen is not None and stage.advice is None
        assert chosen.memory.peak_bytes <= usable_bytes(config.plan)
        assert stage.asked.fits, "the preset's own layout"
    shown = render_plan(config, subject_7b, num_gpus, sft, grpo)
    assert "cheapest that fits: ZeRO" in shown
    assert "weights" in shown and "logits" in shown and "tokens/s" in shown and "days" in shown
    assert max(map(len, shown.splitlines())) <= 160


def test_layouts_that_fit_come_first_and_the_fastest_before_all(composed: Composed, subject_7b: Subject) -> None:
    _, stage = sft_plan(composed, subject_7b, 16)
    keys = [(not planned.fits, planned.time.seconds) for planned in stage.found]
    assert keys == sorted(keys)
    assert {planned.fits for planned in stage.found} == {True, False}


def test_each_layout_is_listed_once_and_the_one_asked_for_is_among_them(
    composed: Composed, subject_7b: Subject
) -> None:
    _, stage = sft_plan(composed, subject_7b, 256)
    layouts = [planned.layout for planned in stage.found]
    assert len(set(layouts)) == len(layouts)
    assert stage.asked.layout in layouts


def test_degrees_divide_gpus_rows_and_heads(composed: Composed, subject_7b: Subject) -> None:
    _, stage = sft_plan(composed, subject_7b, 4)
    assert {planned.layout.sequence_parallel for planned in stage.found} == {1, 2, 4}


def test_where_nothing_fits_one_line_says_what_would(composed: Composed, subject_7b: Subject) -> None:
    config, stage = sft_plan(composed, subject_7b, 1, *SMALL)
    assert best(stage.found) is None
    assert stage.advice is not None and "\n" not in stage.advice
    assert "would fit: " in stage.advice and " GPUs with ZeRO 3" in stage.advice
    assert stage.advice in render_plan(config, subject_7b, 1, stage, None)


def test_what_is_said_to_fit_does(composed: Composed, subject_7b: Subject) -> None:
    config, stage = sft_plan(composed, subject_7b, 1, *SMALL)
    advice = what_would_fit(subject_7b, stage.asked.layout, stage.work, config.plan)
    number = int(advice.partition("would fit: ")[2].split()[0])
    asked = replace(stage.asked.layout, num_gpus=number)
    assert best(search(subject_7b, asked, stage.work, config.plan)) is not None
    fewer = replace(asked, num_gpus=number // 2)
    assert best(search(subject_7b, fewer, stage.work, config.plan)) is None


# -----------------------------------------------------------------------------
# Time


def test_twice_the_gpus_take_no_longer_and_no_less_than_half(composed: Composed, subject_7b: Subject) -> None:
    config, stage = sft_plan(composed, subject_7b, 8)
    layout = stage.asked.layout
    seconds = [
        judge(subject_7b, replace(layout, num_gpus=number), stage.work, config.plan).time.seconds
        for number in (8, 16, 32, 64, 128)
    ]
    for before, after in itertools.pairwise(seconds):
        assert 0.45 * before <= after <= before


def test_recomputing_takes_longer_and_selective_less_so(composed: Composed, subject_7b: Subject) -> None:
    config, stage = sft_plan(composed, subject_7b, 8)
    none, selective, layer = (
        step_time(
            subject_7b.config,
            subject_7b.widths,
            subject_7b.parameters,
            replace(stage.asked.layout, checkpointing=mode),
            stage.work,
            config.plan,
        ).arithmetic
        for mode in ("none", "selective", "layer")
    )
    assert none < selective < layer < 1.5 * none


def test_model_operations_are_six_a_parameter_and_token_and_attention(composed: Composed, subject_7b: Subject) -> None:
    _, stage = sft_plan(composed, subject_7b, 8)
    parameters = subject_7b.parameters.total - subject_7b.parameters.embedding
    assert stage.asked.time.model_flops == pytest.approx(6 * parameters * stage.work.tokens, rel=0.25)
    assert stage.asked.time.model_flops > 6 * parameters * stage.work.tokens


def test_the_token_budget_is_the_presets(composed: Composed, subject_7b: Subject) -> None:
    _, stage = sft_plan(composed, subject_7b, 256)
    assert stage.num_steps == pytest.approx(3 * 30.1e9 / stage.work.tokens)
    _, half = sft_plan(composed, subject_7b, 256, "plan.tokens=45_150_000_000")
    assert half.num_steps == pytest.approx(stage.num_steps / 2)


# -----------------------------------------------------------------------------
# Rollouts


def grpo_plan(composed: Composed, subject: Subject, num_gpus: int, *overrides: str) -> GRPOPlan:
    return plan_grpo(composed("experiment=falcon_h1r_7b", *overrides), subject, num_gpus)


def test_several_updates_learn_from_one_batch(composed: Composed, subject_7b: Subject) -> None:
    once, twice = (grpo_plan(composed, subject_7b, 64, f"grpo.updates_per_batch={n}").training for n in (1, 2))
    assert (once.num_steps, twice.num_steps) == (300, 150)
    assert once.num_steps * once.work.tokens == twice.num_steps * twice.work.tokens


def test_decoding_is_as_fast_as_published(composed: Composed, subject_7b: Subject) -> None:
    """512 tokens in and 32k out on an H100: about 1,000 tokens/s at 32 slots and 1,500 at 64, for vLLM."""
    plan = composed("experiment=falcon_h1r_7b").plan
    sequence = decode_bytes(subject_7b.widths, "bfloat16", wide_state=False)
    assert sequence.cache_per_token == 44 * 1024
    assert sequence.state / 2**20 == pytest.approx(67, abs=1)
    weights = 2 * subject_7b.parameters.total
    rates = [decode_rate(sequence, weights, slots, 512 + 16_384, plan).tokens_per_second for slots in (32, 64)]
    assert rates == pytest.approx([1095, 1324], abs=1)
    assert rates == pytest.approx([1000, 1500], rel=0.15)


def test_the_best_split_is_the_shortest_step_of_all_that_fit(composed: Composed, subject_7b: Subject) -> None:
    plan = grpo_plan(composed, subject_7b, 64)
    assert not plan.shared
    assert {split.training_gpus for split in plan.splits} == set(range(8, 64, 8))
    assert all(split.rollout_gpus + split.training_gpus == 64 for split in plan.splits)
    assert plan.splits[0].seconds == min(split.seconds for split in plan.splits)
    assert all(split.training.fits for split in plan.splits)


def test_more_gpus_for_rollouts_never_draw_them_more_slowly(composed: Composed, subject_7b: Subject) -> None:
    plan = grpo_plan(composed, subject_7b, 64)
    by_gpus = sorted(plan.splits, key=lambda split: split.rollout_gpus)
    seconds = [split.rollouts.seconds for split in by_gpus]
    assert seconds == sorted(seconds, reverse=True)


def test_the_torch_sampler_takes_turns_on_all_gpus(composed: Composed, subject_7b: Subject) -> None:
    plan = grpo_plan(composed, subject_7b, 64, "grpo.rollout.name=torch", "engine.zero_stage=2")
    assert plan.shared
    (split,) = plan.splits
    assert split.rollout_gpus == split.training_gpus == 64


# -----------------------------------------------------------------------------
# Refusals


def test_a_degree_that_does_not_divide_the_gpus_is_refused(composed: Composed, subject_7b: Subject) -> None:
    config = composed("experiment=falcon_h1r_7b", "engine.sequence_parallel=8")
    with pytest.raises(InputError, match="engine.sequence_parallel=8: does not divide the 4 GPUs"):
        check_plan(config, subject_7b, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.num_gpus=0", "plan.num_gpus=0: has to be at least 1"),
        ("plan.utilisation=1.5", "plan.utilisation=1.5: a share lies between 0 and 1"),
        ("plan.utilisation=0", "plan.utilisation=0: nothing would ever be done"),
        ("plan.gpu.memory_gib=-1", "plan.gpu.memory_gib=-1.0: has to be above 0"),
        ("plan.gpu.memory_gib=3", "plan.gpu.reserved_gib=4.0: leaves nothing of memory_gib=3.0"),
        ("plan.stages=[curate]", "plan.stages=curate: not one of sft, grpo"),
        ("plan.gpu.backend=tpu", "plan.gpu.backend=tpu: not one of cuda, cpu"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(composed: Composed, override: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        composed(override)
    assert str(refused.value) == message


@pytest.mark.parametrize("gpu", ["h100_80gb", "h200", "a100_80gb", "cpu"])
def test_every_gpu_preset_sets_every_field(composed: Composed, gpu: str) -> None:
    from falcon_h1r.entry import CONFIGS

    lines = (CONFIGS / "gpu" / f"{gpu}.yaml").read_text().splitlines()
    named = {line.partition(":")[0] for line in lines if not line.startswith("#")}
    assert named == set(vars(composed(f"gpu={gpu}").plan.gpu))
