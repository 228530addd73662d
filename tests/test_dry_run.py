"""A dry run tells what a run would do: the recipe's own figures come out of its settings."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from transformers import FalconH1Config

from falcon_h1r.config import Config
from falcon_h1r.dry_run import describe, steps
from falcon_h1r.dry_run.arithmetic import (
    RankPlan,
    count_parameters,
    decode_bytes,
    plan_grpo,
    plan_ranks,
    plan_sft,
    training_bytes,
)
from falcon_h1r.dry_run.steps import run_steps, shrunken_architecture
from falcon_h1r.entry import CONFIGS
from falcon_h1r.model.load import planned_config
from falcon_h1r.types import InputError

PRESETS = ("falcon_h1r_7b", "falcon_h1r_7b_8xh100", "falcon_h1_0_5b")


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@cache
def composed(*overrides: str) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config


def shape_of(config: Config) -> FalconH1Config:
    return planned_config(config.model)[0]


def ranks_of(config: Config) -> RankPlan:
    return plan_ranks(config, shape_of(config))


# -----------------------------------------------------------------------------
# The model, without its weights


def test_the_7b_has_7_59_billion_parameters_and_untied_embeddings() -> None:
    shape = shape_of(composed("experiment=falcon_h1r_7b"))
    assert count_parameters(shape) == 7_585_648_736
    assert shape.tie_word_embeddings is False


def test_the_half_billion_has_0_52_billion_parameters() -> None:
    assert count_parameters(shape_of(composed("experiment=falcon_h1_0_5b"))) == 521_411_104


def test_tied_embeddings_count_once() -> None:
    untied = shape_of(composed())
    tied = FalconH1Config(**{**untied.to_dict(), "tie_word_embeddings": True})
    assert count_parameters(untied) - count_parameters(tied) == untied.vocab_size * untied.hidden_size


def test_decoding_state_of_the_7b_is_what_is_published() -> None:
    """In bfloat16, 44 KiB of KV cache a token. The SSM state is float32: with the convolution's 133 MiB a sequence,
    twice the published 67, which are of a rounded state."""
    state, cache = decode_bytes(shape_of(composed("experiment=falcon_h1r_7b")), "bfloat16")
    assert round(state / 2**20) == 133
    assert cache == 44 * 1024


@pytest.mark.parametrize(("zero_stage", "expected"), [(0, 16.0), (1, 9.5), (2, 6.0), (3, 2.5)])
def test_zero_shards_optimizer_then_gradients_then_weights(zero_stage: int, expected: float) -> None:
    config = composed("experiment=falcon_h1r_7b", f"engine.zero_stage={zero_stage}")
    assert config.engine.name == "deepspeed"
    assert training_bytes(config, num_parameters=1, num_ranks=8) == expected


def test_the_7b_with_adapters_fits_one_gpu() -> None:
    """Weights in bfloat16, 14.1 GiB, and 16 bytes for each of the adapters' parameters."""
    text = describe(composed("experiment=falcon_h1r_7b", "model.lora.rank=16"), "sft")
    assert "50,479,616 parameters (0.67%)" in text
    assert "14.9 GiB a rank" in text


# -----------------------------------------------------------------------------
# Batches and steps


def test_the_cold_start_takes_the_steps_that_follow_from_the_report() -> None:
    """About 18.2k steps of about 5.0M tokens."""
    config = composed("experiment=falcon_h1r_7b")
    data = config.sft.data
    plan = plan_sft(config.sft, ranks_of(config), data.expected_samples, data.expected_tokens)
    assert plan.num_steps == round(3 * 3_110_000 / 512) == 18_223
    assert plan.tokens_per_step == pytest.approx(4.955e6, rel=1e-3)
    assert plan.steps_per_epoch == pytest.approx(6_074.2, abs=0.1)
    assert plan.most_tokens_per_step == 512 * 36 * 1024
    assert (plan.micro_batches, plan.most_micro_batches) == (2, 4)


def test_one_node_takes_the_same_steps_in_more_micro_batches() -> None:
    config = composed("experiment=falcon_h1r_7b_8xh100")
    data = config.sft.data
    plan = plan_sft(config.sft, ranks_of(config), data.expected_samples, data.expected_tokens)
    assert (plan.num_steps, plan.micro_batches, plan.most_micro_batches) == (18_223, 34, 128)


def test_a_grpo_step_of_the_report_is_2048_rollouts() -> None:
    config = composed("experiment=falcon_h1r_7b")
    plan = plan_grpo(config.grpo, ranks_of(config))
    assert plan.rollouts == 128 * 16
    assert plan.most_response_tokens == 2048 * 48 * 1024
    assert plan.most_micro_batches == 2048 // 128
    assert (plan.groups_at_once, plan.most_rollouts) == (160, (160 + 4 * 128) * 16)
    kept = composed("experiment=falcon_h1r_7b", "grpo.zero_variance=reject")
    assert plan_grpo(kept.grpo, ranks_of(kept)).most_rollouts == 160 * 16


def test_ranks_are_the_launchers_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("experiment=falcon_h1r_7b")
    assert ranks_of(config) == RankPlan(num_ranks=256, data_ranks=128, launched=False)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert ranks_of(config) == RankPlan(num_ranks=16, data_ranks=8, launched=True)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["engine.sequence_parallel=3", "launch.num_processes=8"], "engine.sequence_parallel=3"),
        (["engine.sequence_parallel=8", "launch.num_processes=8"], "engine.sequence_parallel=8"),  # heads
        (["sft.batch_sequences=4", "launch.num_processes=8"], "sft.batch_sequences=4"),
        (["grpo.problems_per_step=1", "launch.num_processes=16"], "grpo.problems_per_step=1 x group_size=8"),
        (["grpo.num_steps=5", "grpo.optimizer.warmup_steps=5"], "grpo.optimizer.warmup_steps=5"),
        (["sft.num_steps=5", "sft.optimizer.warmup_steps=9"], "sft.optimizer.warmup_steps=9"),
        (["sft.limits={prompt_tokens: 64, response_tokens: 4096, row_tokens: 5000}"], "sft.limits"),
        (["evaluate.limits={prompt_tokens: 64, response_tokens: 4096, row_tokens: 5000}"], "evaluate.limits"),
        (["+model.architecture.widht=3"], "model.architecture.widht"),
        (["grpo.selection.num_rollouts=2", "grpo.selection.max_response_tokens=4096"], "grpo.selection.limits"),
        (["sft.data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["model.path=./nowhere"], "model.path=./nowhere"),
    ],
)
def test_what_cannot_work_out_is_refused_by_its_key(overrides: list[str], complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        describe(composed(*overrides), "pipeline")
    assert complaint in str(refusal.value)


# -----------------------------------------------------------------------------
# The text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_described(preset: str) -> None:
    text = describe(composed(f"experiment={preset}"), "pipeline")
    assert text.startswith(f"dry run of pipeline: {preset}\n")
    assert all(f"\n{stage}\n" in text for stage in ("curate", "sft", "grpo", "evaluate"))


@pytest.mark.parametrize("stage", ["curate", "sft", "select", "grpo", "evaluate"])
def test_a_stage_is_described_without_the_others(stage: str) -> None:
    headings = [line for line in describe(composed(), stage).splitlines() if line and line[0] != " "][1:]
    assert headings == ["processes", "model", stage]


def test_a_selection_is_described_where_it_is_asked_for(tmp_path: Path) -> None:
    assert "\nselect\n" not in describe(composed("experiment=quickstart"), "pipeline")
    assert "none: no model is read" in describe(composed(), "select")
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}) + "\n")
    settings = (f"grpo.data={{path: {path}, curated: false}}", "sft.data.path=null", "launch.num_processes=2")
    rollouts = ("grpo.selection={num_rollouts: 4, max_response_tokens: 100, disjoint_from_sft: true}",)
    text = describe(composed(*settings, *rollouts, "grpo.rollout.max_slots=8"), "select")
    for line in (
        "What is 1 + 1? -> 2",
        "sft.data: no path given",
        "4 a problem, temperature 0.6, top-p 0.95",
        "dropped from 2 of 4 agreeing on; of the others, 10% are kept",
        "at most 4 rollouts of 1 problems, 400 tokens",
        "16 problems over 2 ranks",
    ):
        assert line in text


def test_the_description_of_the_recipe_holds_its_figures() -> None:
    text = describe(composed("experiment=falcon_h1r_7b"), "pipeline")
    for figure in (
        "256 (32 nodes x 8 processes)",
        "128 (sequence parallel 2)",
        "7.59B (7,585,648,736), embeddings untied",
        "132.9 MiB a sequence and 44.0 KiB a token",
        "revision not pinned",
        "lm_head 0.01302",
        "18,223",
        "4.96M on average",
        "128 problems x 16 = 2,048 a step",
        "published 88.1, with 512 traces 96.7",
        "sequence parallel 2",
        "up to 512 traces a problem, the threshold keeps 10% of 16 warm-up traces",
        "16 samples of at most 65,536 tokens, 512 traces of DeepConf; published 88.1, with 512 traces 96.7",
        "3 samples of at most 32,768 tokens; published 72.1",
        "bridged: not run here; published 11.1",
    ):
        assert figure in text, figure
    assert "data " not in text.partition("\nevaluate\n")[2].partition("published")[0]


def test_a_model_that_is_elsewhere_is_not_measured_by_one_that_is_here() -> None:
    """A server's, or that of a run that is watched: the context of `model.architecture` is not theirs."""
    served = composed("+evaluation=h1r", "evaluate.engine=endpoint", "evaluate.endpoint.urls=[http://node7:8000/v1]")
    watched = composed("+evaluation=quick", "evaluate.watch.run=runs/mine")
    assert "served at http://node7:8000/v1 (chat)" in describe(served, "evaluate")
    text = describe(watched, "evaluate")
    assert "each new checkpoint of runs/mine" in text and "parameters" not in text
    with pytest.raises(InputError, match="evaluate.limits: .* beyond the model's context of 4096"):
        describe(composed("+evaluation=quick"), "evaluate")


def test_only_the_lengths_of_benchmarks_that_are_asked_for_have_to_fit() -> None:
    short = "evaluate.benchmarks.math500.max_response_tokens=512"
    limits = "evaluate.limits.prompt_tokens=1024"
    text = describe(composed("+evaluation=h1r", "evaluate.only=[math500]", short, limits), "evaluate")
    assert "1 sample of at most 512 tokens" in text and "aime24" not in text


def test_the_head_and_the_size_of_the_data_are_shown(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "answer": f"one more than {n} #### {n + 1}"} for n in range(10)]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = describe(composed("data=gsm8k", f"sft.data.path={path}", "sft.batch_sequences=4"), "sft")
    assert "0 + 1? -> one more than 0" in text
    assert "3 + 1?" not in text
    lines = dict(line.split(None, 1) for line in text.splitlines() if line.startswith("  s"))
    assert lines["samples"] == "10"
    assert "steps per epoch" in text and "2.5" in text


def test_a_broken_line_of_the_data_is_named(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n{"question":\n')
    with pytest.raises(InputError, match="line 2"):
        describe(composed("data=gsm8k", f"grpo.data.path={path}"), "grpo")


# -----------------------------------------------------------------------------
# Steps at a sliver of the width


@pytest.mark.parametrize("preset", ["falcon_h1r_7b", "falcon_h1_0_5b"])
def test_two_steps_at_a_sliver_of_the_width_have_finite_losses(preset: str) -> None:
    torch.set_num_threads(1)
    config = composed(f"experiment={preset}", "dry_run_steps=2")
    rows = dict(run_steps(config, "sft", shape_of(config)))
    assert list(rows) == ["model", "step 1", "step 2"]
    losses = [float(rows[step].split()[1].rstrip(",")) for step in ("step 1", "step 2")]
    assert losses[1] < losses[0] < 7.0, "near the logarithm of the vocabulary, and falling"


def test_the_sliver_keeps_heads_groups_and_multipliers() -> None:
    shape = shape_of(composed("experiment=falcon_h1r_7b"))
    sliver = shrunken_architecture(shape)
    for name in (
        "num_attention_heads",
        "num_key_value_heads",
        "mamba_n_heads",
        "mamba_n_groups",
        "ssm_multipliers",
    ):
        assert sliver[name] == getattr(shape, name)
    assert (sliver["hidden_size"], sliver["num_hidden_layers"], sliver["head_dim"]) == (96, 2, 4)
    assert sliver["mamba_d_ssm"] == sliver["mamba_n_heads"] * sliver["mamba_d_head"]


def test_a_loss_that_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_train_step", lambda *_: {"loss": float("nan"), "grad_norm": 1.0})
    config = composed("dry_run_steps=1")
    with pytest.raises(InputError, match="step 1 gives loss nan"):
        run_steps(config, "sft", shape_of(config))
