"""How fast rollouts are drawn: decoding reads the weights and every sequence's states once a token.

    seconds a token = (weights + slots * (SSM and convolution states, read and written, + KV cache at its mean length))
                      / (bandwidth * decode_utilisation)

On an H100, with decode_utilisation 0.45, this gives 1,095 tokens/s at 32 slots and 1,324 at 64 for the 7B, 512 tokens
in and 32k out; published for vLLM are about 1,000 and 1,500 (arXiv 2601.02346).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from falcon_h1r.planning.layout import DTYPE_BYTES
from falcon_h1r.planning.shape import Parameters, Widths

if TYPE_CHECKING:
    from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.config_tools import PlanConfig

STATE_TRAFFIC = 2  # a state is read and written, a cache read


@dataclass(frozen=True, slots=True)
class DecodeBytes:
    """Of one sequence."""

    state: int  # SSM and convolution
    cache_per_token: int

    def at(self, num_tokens: float) -> float:
        """Held by a sequence of this length."""
        return self.state + self.cache_per_token * num_tokens


@dataclass(frozen=True, slots=True)
class RolloutRate:
    """Of one GPU that does nothing but decode."""

    slots: int
    tokens_per_second: float
    seconds_per_token: float  # of one sequence
    bytes_held: float  # states and caches of all slots at their mean length


def decode_bytes(widths: Widths, dtype: str, wide_state: bool) -> DecodeBytes:
    """The torch sampler keeps SSM states in float32, vLLM in the model's dtype."""
    size = DTYPE_BYTES[dtype]
    state = widths.ssm_state * (max(4, size) if wide_state else size)
    conv = widths.conv * (widths.conv_kernel - 1) * size
    return DecodeBytes(widths.num_layers * (state + conv), widths.num_layers * 2 * widths.key * size)


def decode_rate(
    sequence: DecodeBytes, weight_bytes: int, slots: int, mean_tokens: float, plan: PlanConfig
) -> RolloutRate:
    """Of a GPU with so many slots, each sequence half-way through."""
    traffic = weight_bytes + slots * (STATE_TRAFFIC * sequence.state + sequence.cache_per_token * mean_tokens)
    seconds = traffic / (plan.gpu.memory_bytes_per_second * plan.decode_utilisation)
    return RolloutRate(slots, slots / seconds, seconds, slots * sequence.at(mean_tokens))


@dataclass(frozen=True, slots=True)
class RolloutPhase:
    """One step's rollouts on so many GPUs."""

    rate: RolloutRate
    seconds: float


def rollout_phase(
    widths: Widths,
    parameters: Parameters,
    grpo: GRPOConfig,
    dtype: str,
    plan: PlanConfig,
    num_gpus: int,
    free_bytes: float,
) -> RolloutPhase | None:
    """All of a step's tokens at the GPUs' rate, but no less than a rollout that runs to the limit.

    As many slots are used as are configured, fit, and have something to do. None where not one fits.

    Args:
        free_bytes: of a GPU's memory, for states and caches alone.
    """
    sequence = decode_bytes(widths, dtype, wide_state=grpo.rollout.name == "torch")
    response_tokens = plan.response_share * grpo.limits.response_tokens
    mean_tokens = (grpo.limits.prompt_tokens + response_tokens) / 2
    rollouts = grpo.problems_per_step * grpo.group_size * plan.groups_drawn
    fitting = int(free_bytes // sequence.at(mean_tokens))
    slots = min(grpo.rollout.max_slots, fitting, math.ceil(rollouts / num_gpus))
    if slots < 1:
        return None
    size = DTYPE_BYTES[dtype]
    if grpo.rollout.name == "torch" and not parameters.adapters and size < 4:
        size = 4 + 2 * size  # the trained weights themselves, cast as they are used: read, written and read again
    weight_bytes = parameters.total * size
    rate = decode_rate(sequence, weight_bytes, slots, mean_tokens, plan)
    all_tokens = rollouts * response_tokens / num_gpus / rate.tokens_per_second
    longest = grpo.limits.response_tokens * rate.seconds_per_token
    return RolloutPhase(rate, max(all_tokens, longest))
