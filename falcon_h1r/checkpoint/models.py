"""Models on disk: what a stage starts from and what it hands over.

A folder is written beside, synced to the disk and then renamed: where it exists, it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from falcon_h1r.checkpoint.files import sync_path
from falcon_h1r.config import Config
from falcon_h1r.config_checks import check_shared_rows
from falcon_h1r.config_selection import selection_limits
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.data.tokenisation import stop_token_ids, train_tokenizer
from falcon_h1r.distributed.batch_scaling import scaled_to_batch
from falcon_h1r.model.inspect import inspect_checkpoint, print_inspection
from falcon_h1r.model.kernels import choose_kernels
from falcon_h1r.model.load import (
    load_config,
    load_model,
    load_tokenizer,
    planned_config,
    random_policy,
    weightless_model,
)
from falcon_h1r.model.lora import add_adapters, has_adapters, is_adapter, merged_state
from falcon_h1r.model.precision import compute_dtype, handed_over_dtype
from falcon_h1r.model.sequence import check_degree
from falcon_h1r.model.training_plan import plan_training

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import FalconH1ForCausalLM, PreTrainedTokenizerBase

    from falcon_h1r.distributed.engine import Engine
    from falcon_h1r.distributed.world import World


def publish_policy(engine: Engine, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write the folder that a stage hands over, from an engine's weights; every rank has to call it.

    Shards are consolidated weight by weight on rank 0's CPU, in the dtype that the model computes in (A_log, D and
    dt_bias in float32 at least), and written there while the other ranks wait on the CPU's group.
    """
    world, dtype = engine.world, compute_dtype(engine.model)
    weights = {}
    with world.watch.long("publishing"):
        for name, weight in engine.full_weights():
            if world.is_main:
                kept = weight.dtype if is_adapter(name) else handed_over_dtype(name, dtype)
                weights[name] = weight.to("cpu", kept, copy=True)
        if world.is_main:
            publish_model(engine.model, tokenizer, folder, weights)
    world.barrier()
    return folder


def publish_model(
    model: FalconH1ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the folder that a stage hands over: safetensors, config, tokenizer with template, generation config.

    It loads with plain `FalconH1ForCausalLM.from_pretrained(folder)`: adapters are merged into what is written, the
    model keeps them.

    Args:
        weights: the model's parameters by name, where it does not hold them itself as they are to be written.
    """
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    model.generation_config.eos_token_id = stop_token_ids(tokenizer)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if weights is None:
        weights = dict(model.named_parameters())
    written = weightless_model(model.config, compute_dtype(model))  # of plain modules: no adapters, no engine's hooks
    written.generation_config = model.generation_config
    written.save_pretrained(beside, state_dict=merged_state(model, weights) if has_adapters(model) else dict(weights))
    tokenizer.save_pretrained(beside)
    for path in (*beside.iterdir(), beside):
        sync_path(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)
    sync_path(folder.parent)
    return folder


def publish_random_base(config: Config, texts: list[str], folder: Path) -> Path:
    """A random model of `model.architecture` with a tokenizer trained on `texts`, as a checkpoint like any other.

    One that an earlier try of the run has left there is whole, and taken.
    """
    if folder.is_dir():
        return folder
    tokenizer = train_tokenizer(texts, config.model.tokenizer_vocab_size)
    return publish_model(random_policy(config.model, tokenizer, config.seed), tokenizer, folder)


def open_policy(
    config: Config, texts: Callable[[], list[str]], folder: Path, world: World, stage: str
) -> tuple[FalconH1ForCausalLM, PreTrainedTokenizerBase]:
    """The policy that a stage starts from: `model.path`, or a random base published under `folder` first.

    Tokenizer, template, vocabulary and multipliers are inspected before the weights are loaded: what would corrupt
    training is refused.

    Args:
        texts: what a tokenizer is trained on, where there is no checkpoint.
        stage: sft, select, grpo or evaluate, whose limits have to fit the checkpoint's context and whose learning rate,
            if it has one, its multipliers.
    """
    check_training(config, stage)
    settings = config.model
    if settings.path is None:
        base = world.on_main(lambda: publish_random_base(config, texts(), folder / "base"))
        settings = replace(settings, path=str(base), revision=None)
    shape, tokenizer = load_config(settings), load_tokenizer(settings)
    limits, optimizer = _limits(config, stage), _optimizer(config, stage)
    results = inspect_checkpoint(
        settings,
        shape,
        tokenizer,
        config.system_prompt,
        optimizer.learning_rate if optimizer is not None else None,
        limits.prompt_tokens + limits.response_tokens,
        f"{stage}.optimizer.learning_rate",
    )
    if world.is_main:
        print_inspection(results)
    with world.watch.long("loading"):
        model = load_model(settings, world.device, to_train=optimizer is not None and not settings.lora.rank)
    if world.is_main:
        print(choose_kernels(world.device, compute_dtype(model), shape.mamba_chunk_size).description)
    if optimizer is not None and settings.lora.rank:
        add_adapters(model, settings.lora, config.seed)
    return model, tokenizer


def check_training(config: Config, stage: str) -> None:
    """Refuse what a stage cannot train, from the model's shape alone.

    Raises:
        InputError: naming the key.
    """
    if (optimizer := _optimizer(config, stage)) is not None:
        shape, _ = planned_config(config.model)
        check_shared_rows(f"{stage}.limits", _limits(config, stage), config.engine.sequence_parallel)
        check_degree(config.engine.sequence_parallel, shape.mamba_n_heads, shape.mamba_n_groups)
        if optimizer.batch_tokens is not None:
            optimizer = scaled_to_batch(optimizer)
        plan_training(shape, config.model.lora, optimizer, f"{stage}.optimizer")


def _limits(config: Config, stage: str) -> LimitsConfig:
    return {
        "sft": config.sft.limits,
        "select": selection_limits(config.grpo),
        "grpo": config.grpo.limits,
        "evaluate": config.evaluate.limits,
    }[stage]


def _optimizer(config: Config, stage: str) -> OptimizerConfig | None:
    """Of the stages that train."""
    return {"sft": config.sft.optimizer, "grpo": config.grpo.optimizer}.get(stage)
