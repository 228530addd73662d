"""What the forward computes, held against a configuration: a field that it would ignore is refused, not ignored.

`falcon_h1r.model.hybrid` reads weights, multipliers, norms, biases and head counts. transformers' Falcon-H1 knows some
more; where they would make another model of the same weights, and where sizes do not fit, nothing is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import FalconH1Config

ROTATIONS = ("default", "linear", "llama3", "yarn")  # whose frequencies do not change with a row's length


def check_supported(config: FalconH1Config, source: str) -> None:
    """Refuse a configuration that the forward does not compute.

    Args:
        source: begins the message: `model.architecture.`, or the checkpoint's config.json.

    Raises:
        InputError: naming the field.
    """
    rotation = (config.rope_parameters or {}).get("rope_type", "default")
    _refuse(config.hidden_act != "silu", source, "hidden_act", config.hidden_act, "only silu is computed")
    dropout = config.attention_dropout
    _refuse(bool(dropout), source, "attention_dropout", dropout, "has to be 0: nothing is dropped")
    _refuse(
        rotation not in ROTATIONS, source, "rope_parameters.rope_type", rotation, f"not one of {', '.join(ROTATIONS)}"
    )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    _refuse(
        kv_heads < 1 or heads % kv_heads != 0,
        source,
        "num_key_value_heads",
        kv_heads,
        f"does not divide num_attention_heads={heads}",
    )
    ssm_heads, groups = config.mamba_n_heads, config.mamba_n_groups
    _refuse(
        groups < 1 or ssm_heads % groups != 0,
        source,
        "mamba_n_groups",
        groups,
        f"does not divide mamba_n_heads={ssm_heads}",
    )
    _refuse(config.mamba_d_conv < 1, source, "mamba_d_conv", config.mamba_d_conv, "has to be at least 1")
    limit = config.time_step_limit
    _refuse(
        not isinstance(limit, (list, tuple)) or len(limit) != 2,
        source,
        "time_step_limit",
        limit,
        "has to be two numbers, the least and the largest step",
    )
    head_dim = getattr(config, "head_dim", heads)
    _refuse(not isinstance(head_dim, int) or head_dim < 2, source, "head_dim", head_dim, "has to be a number above 1")


def _refuse(wrong: bool, source: str, field: str, value: Any, why: str) -> None:
    if wrong:
        raise InputError(f"{source}{field}={'null' if value is None else value}: {why}")
