"""The arithmetic of a run: ranks, batches, steps, memory. What cannot work out is refused, naming the key.

Nothing is loaded; parameters are counted on a model without memory.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from falcon_h1r.config import Config, LoRAConfig, SFTConfig
from falcon_h1r.config_checks import check_shared_rows
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.model.sequence import check_degree
from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import FalconH1Config

DTYPE_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class RankPlan:
    """How many processes there are, and how many of them see data of their own."""

    num_ranks: int
    data_ranks: int
    launched: bool  # by torchrun or the like, whose number holds


def plan_ranks(config: Config, shape: FalconH1Config) -> RankPlan:
    """Ranks of the run; sequence parallelism has to divide them and the model's heads."""
    launched = "WORLD_SIZE" in os.environ
    launch, degree = config.launch, config.engine.sequence_parallel
    num_ranks = int(os.environ["WORLD_SIZE"]) if launched else launch.num_nodes * launch.num_processes
    key = f"engine.sequence_parallel={degree}"
    if num_ranks % degree:
        raise InputError(f"{key}: does not divide the {num_ranks} processes (launch.num_nodes x num_processes)")
    check_degree(degree, shape.mamba_n_heads, shape.mamba_n_groups)
    return RankPlan(num_ranks, num_ranks // degree, launched)


@dataclass(frozen=True, slots=True)
class SFTPlan:
    """The cold start in numbers. None where the size of the data is unknown."""

    num_samples: int | None
    steps_per_epoch: float | None
    num_steps: int | None
    tokens_per_step: float | None  # on average
    most_tokens_per_step: int  # if every sequence were as long as the limits allow
    micro_batches: int | None  # of a rank and a step, on average
    most_micro_batches: int  # if no two sequences shared a row


def plan_sft(sft: SFTConfig, ranks: RankPlan, num_samples: int | None, num_tokens: int | None) -> SFTPlan:
    """Steps and tokens from what is known of the data."""
    from falcon_h1r.sft.steps import total_steps

    check_shared_rows("sft.limits", sft.limits, ranks.num_ranks // ranks.data_ranks)
    name = "batch_sequences" if sft.batch_rows is None else "batch_rows"
    batch: int = getattr(sft, name)
    if batch < ranks.data_ranks:
        raise InputError(f"sft.{name}={batch}: fewer than the {ranks.data_ranks} data ranks, some would never learn")
    longest = sft.limits.prompt_tokens + sft.limits.response_tokens
    mean_tokens = num_tokens / num_samples if num_samples and num_tokens else None
    if sft.batch_rows is None:
        steps_per_epoch = num_samples / batch if num_samples else None
        tokens = batch * mean_tokens if mean_tokens else None
        most_tokens, most_micro_batches = batch * longest, math.ceil(batch / ranks.data_ranks)
    else:  # rows are all but full
        most_tokens, most_micro_batches = batch * sft.limits.row_tokens, math.ceil(batch / ranks.data_ranks)
        tokens = float(most_tokens) if mean_tokens else None
        steps_per_epoch = num_tokens / most_tokens if num_tokens else None
    num_steps = sft.num_steps if steps_per_epoch is None else total_steps(sft, steps_per_epoch)
    _check_warmup("sft", sft.optimizer, num_steps)
    return SFTPlan(
        num_samples=num_samples,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        tokens_per_step=tokens,
        most_tokens_per_step=most_tokens,
        micro_batches=math.ceil(tokens / sft.limits.row_tokens / ranks.data_ranks) if tokens else None,
        most_micro_batches=most_micro_batches,
    )


@dataclass(frozen=True, slots=True)
class GRPOPlan:
    """A GRPO step in numbers. "Most": if every response were as long as the limits allow."""

    rollouts: int
    groups_at_once: int
    most_rollouts: int  # begun, if groups without contrast were replaced as often as they may be
    longest_tokens: int
    most_response_tokens: int
    most_tokens: int
    most_micro_batches: int  # of a rank, if no two rollouts shared a row


def plan_grpo(grpo: GRPOConfig, ranks: RankPlan) -> GRPOPlan:
    """Rollouts, tokens and rows of a step."""
    _check_warmup("grpo", grpo.optimizer, grpo.num_steps)
    check_shared_rows("grpo.limits", grpo.limits, ranks.num_ranks // ranks.data_ranks)
    rollouts = grpo.problems_per_step * grpo.group_size
    if rollouts < ranks.data_ranks:
        raise InputError(
            f"grpo.problems_per_step={grpo.problems_per_step} x group_size={grpo.group_size}: "
            f"{rollouts} rollouts for {ranks.data_ranks} data ranks, some would never learn"
        )
    longest = grpo.limits.prompt_tokens + grpo.limits.response_tokens
    at_once = math.ceil(grpo.rollout.oversampling * grpo.problems_per_step)
    replacements = grpo.problems_per_step * grpo.max_backfill_rounds if grpo.zero_variance == "backfill" else 0
    return GRPOPlan(
        rollouts=rollouts,
        groups_at_once=at_once,
        most_rollouts=(at_once + replacements) * grpo.group_size,
        longest_tokens=longest,
        most_response_tokens=rollouts * grpo.limits.response_tokens,
        most_tokens=rollouts * longest,
        most_micro_batches=math.ceil(rollouts / ranks.data_ranks),
    )


def _check_warmup(stage: str, optimizer: OptimizerConfig, num_steps: int | None) -> None:
    if num_steps is not None and optimizer.warmup_steps >= num_steps:
        raise InputError(f"{stage}.optimizer.warmup_steps={optimizer.warmup_steps}: the run has only {num_steps} steps")


def check_context(key: str, limits: LimitsConfig, shape: FalconH1Config) -> None:
    """Refuse limits beyond the length that the model was made for."""
    longest = limits.prompt_tokens + limits.response_tokens
    if longest > shape.max_position_embeddings:
        raise InputError(
            f"{key}.limits: prompt_tokens + response_tokens = {longest} is beyond the model's context "
            f"of {shape.max_position_embeddings}"
        )


# -----------------------------------------------------------------------------
# Memory


def count_parameters(shape: FalconH1Config) -> int:
    """Parameters of a model of this shape, built without memory; tied ones count once."""
    from falcon_h1r.model.load import weightless_model

    return sum(parameter.numel() for parameter in weightless_model(shape).parameters())


def count_adapter_parameters(shape: FalconH1Config, lora: LoRAConfig) -> int:
    """Parameters of the adapters, where there are any."""
    from falcon_h1r.model.load import weightless_model
    from falcon_h1r.model.lora import add_adapters, is_adapter

    if not lora.rank:
        return 0
    model = add_adapters(weightless_model(shape), lora, seed=0)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter(name))


def training_bytes(config: Config, num_parameters: int, num_ranks: int, num_adapter_parameters: int = 0) -> float:
    """Weights, gradients and AdamW's states on one rank. Activations come on top.

    With adapters only their part is trained: 16 bytes each, for they are in float32.

    All four are in float32 at least, whatever the forward computes in (falcon_h1r.model.precision). ZeRO 1 shards
    the moments, and a copy of the weights that it keeps for its own update, 2 gradients too, 3 all.
    """
    size, engine = DTYPE_BYTES[config.model.dtype], config.engine
    if num_adapter_parameters:
        shards = num_ranks if engine.zero_stage >= 3 else 1
        return size * num_parameters / shards + 4.0 * max(4, size) * num_adapter_parameters
    stage, size = engine.zero_stage if engine.name == "deepspeed" else 0, max(4, size)
    divisors = [num_ranks if stage >= sharded_from else 1 for sharded_from in (3, 2, 1)]
    own_copy = size if stage >= 1 else 0  # of the weights a rank updates
    parts = (size, size, 2 * size + own_copy)
    return num_parameters * sum(part / divisor for part, divisor in zip(parts, divisors, strict=True))


def decode_bytes(shape: FalconH1Config, dtype: str) -> tuple[int, int]:
    """What a sequence keeps while it is decoded: SSM and convolution states, and KV cache for every token."""
    size, layers = DTYPE_BYTES[dtype], shape.num_hidden_layers
    inner = shape.mamba_n_heads * shape.mamba_d_head
    conv_channels = inner + 2 * shape.mamba_n_groups * shape.mamba_d_state
    ssm_bytes = max(4, size) * inner * shape.mamba_d_state  # float32 at least, whatever the model is in
    conv_bytes = size * conv_channels * (shape.mamba_d_conv - 1)
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return layers * (ssm_bytes + conv_bytes), size * layers * 2 * shape.num_key_value_heads * head_dim
