"""A learning rate that follows the batch, on request: it grows with the square root of the batch's tokens.

    learning_rate * sqrt(batch_tokens / reference_batch_tokens)

The square-root rule for Adam (Malladi et al. 2022, arXiv 2205.10782): k times the batch at sqrt(k) times the rate
approximates the same stochastic process, where noise dominates the gradient. The rule counts examples; we count
tokens, which is what a step averages over. It also takes 1 - beta times k and epsilon by 1 / sqrt(k), and a beta then
leaves its range where k is large; we scale the rate alone.
"""

from __future__ import annotations

import math
from dataclasses import replace

from falcon_h1r.config_stage import OptimizerConfig


def scaled_to_batch(settings: OptimizerConfig, expected_tokens: float | None = None) -> OptimizerConfig:
    """The settings with the learning rate of their batch; as they are where no reference is given.

    Args:
        expected_tokens: of a step's batch, used where `batch_tokens` is null.
    """
    if settings.reference_batch_tokens is None:
        return settings
    batch_tokens = settings.batch_tokens or expected_tokens
    assert batch_tokens is not None, "config_checks asks for batch_tokens where none can be expected"
    factor = math.sqrt(batch_tokens / settings.reference_batch_tokens)
    return replace(settings, learning_rate=settings.learning_rate * factor)


def describe_scaling(settings: OptimizerConfig, expected_tokens: float | None = None) -> str:
    """The learning rate, and how it came about."""
    reference, batch_tokens = settings.reference_batch_tokens, settings.batch_tokens or expected_tokens
    if reference is None:
        return f"learning rate {settings.learning_rate:g}"
    if batch_tokens is None:
        return f"learning rate {settings.learning_rate:g} x sqrt(a batch's mean tokens / {reference:,})"
    scaled = scaled_to_batch(settings, expected_tokens).learning_rate
    return f"learning rate {settings.learning_rate:g} x sqrt({batch_tokens:,.0f} / {reference:,} tokens) = {scaled:.4g}"
