"""What the settings of both training stages share: limits in tokens, and the optimizer. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

# ruff: noqa: UP045  (OmegaConf reads these annotations at run time)


@dataclass
class LimitsConfig:
    """Three limits, in tokens. Nothing is cut without being counted."""

    prompt_tokens: int = 512
    response_tokens: int = 1536
    row_tokens: int = 2048  # a packed row: what one micro-batch holds


@dataclass
class ParameterGroupConfig:
    """Parameters trained unlike the rest; the first entry whose pattern is found in a parameter's name has it."""

    pattern: str = ""  # a regular expression, searched for in names such as model.layers.0.mamba.in_proj.weight
    learning_rate_multiplier: float = 1.0
    weight_decay_multiplier: Optional[float] = None  # null: as without the entry (0 or 1, by the parameter's kind)


@dataclass
class OptimizerConfig:
    """AdamW with a warm-up and a linear decay to zero, or constant after the warm-up."""

    learning_rate: float = 1e-3
    schedule: str = "linear"  # linear or constant
    warmup_share: float = 0.0  # of all steps; used where warmup_steps is 0
    warmup_steps: int = 0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_grad_norm: float = 1.0
    groups: list[ParameterGroupConfig] = field(default_factory=list)
    reference_batch_tokens: Optional[int] = None  # scale the rate with sqrt(batch's tokens / these); null: never
    batch_tokens: Optional[int] = None  # of a step, for that; null: the data's mean, which GRPO cannot know
