"""The muP forward multipliers of a Falcon-H1: their names, what a checkpoint must say of them, what 1 everywhere means.

Falcon-H1 was trained with these scalars in its forward (arXiv 2507.22448), and its learning rates count on them.
A config that lacks one is read by transformers as 1, and the model then computes something else without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from falcon_h1r.types import InputError

if TYPE_CHECKING:
    from transformers import FalconH1Config

SCALARS = (
    "embedding_multiplier",
    "lm_head_multiplier",
    "attention_in_multiplier",
    "attention_out_multiplier",
    "key_multiplier",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
)
VECTORS = {"ssm_multipliers": 5, "mlp_multipliers": 2}  # z, x, B, C, dt; gate, down
MULTIPLIERS = (*SCALARS, *VECTORS)

SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "mamba_d_ssm")  # what multipliers belong to
AGREEMENT = 1e-4  # relative: presets hold the published figures, some of them with six digits

RECIPE_LEARNING_RATE = 1024e-6  # of Falcon-H1R's SFT, which means something only with multipliers
WIDE_HIDDEN_SIZE = 1024
WIDE_LEARNING_RATE = 5e-4  # no model so wide trains at more without muP


def multiplier_values(config: FalconH1Config) -> dict[str, tuple[float, ...]]:
    """Every multiplier by its name; scalars as tuples of one."""
    return {name: _as_tuple(getattr(config, name)) for name in MULTIPLIERS}


def all_multipliers_are_one(config: FalconH1Config) -> bool:
    return all(value == 1.0 for values in multiplier_values(config).values() for value in values)


def check_written_multipliers(written: Mapping[str, Any], source: str) -> None:
    """Refuse a config.json in which a multiplier is missing, of another length, or not a positive number.

    Args:
        written: the file's own fields, before transformers fills in defaults.
        source: names the file in the message.

    Raises:
        InputError: naming the multiplier.
    """
    for name in MULTIPLIERS:
        if written.get(name) is None:
            raise InputError(f"{source}: config.json has no {name}; it would count as 1")
        values, length = written[name], VECTORS.get(name)
        if isinstance(values, (list, tuple)) != (length is not None) or len(_as_tuple(values)) != (length or 1):
            wanted = "one number" if length is None else f"a list of {length}"
            raise InputError(f"{source}: {name}={values} in config.json has to be {wanted}")
        for value in _as_tuple(values):
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise InputError(f"{source}: {name}={values} in config.json has to be finite and above 0")


def check_against_preset(config: FalconH1Config, architecture: Mapping[str, Any], source: str) -> None:
    """Refuse a checkpoint whose multipliers are not those of the preset of the same shape.

    A preset of another shape (the default one, when a checkpoint is named by its path alone) says nothing about
    this checkpoint and is not compared. Neither is the chunk size: it changes speed, not results.

    Raises:
        InputError: naming the first multiplier that differs, with both values.
    """
    if not describes_shape(config, architecture):
        return
    for name in MULTIPLIERS:
        if name not in architecture:
            continue
        found, wanted = _as_tuple(getattr(config, name)), _as_tuple(architecture[name])
        agree = len(found) == len(wanted) and all(
            math.isclose(a, b, rel_tol=AGREEMENT) for a, b in zip(found, wanted, strict=True)
        )
        if not agree:
            raise InputError(
                f"model.architecture.{name}={_shown(wanted, 6)}: {source} has {_shown(found, 6)}; name the preset that "
                "the checkpoint belongs to, or correct its config.json"
            )


def describes_shape(config: FalconH1Config, architecture: Mapping[str, Any]) -> bool:
    """Whether the architecture names a shape, and it is this model's."""
    named = [name for name in SHAPE if name in architecture]
    return bool(named) and all(architecture[name] == getattr(config, name) for name in named)


def check_learning_rate(config: FalconH1Config, learning_rate: float, key: str) -> None:
    """Refuse a learning rate that counts on multipliers where there are none.

    With every multiplier 1, the recipe's 1024e-6 is refused at any width (to 1%: it was copied, not chosen), and
    whatever is above 5e-4 from a hidden size of 1024 on.

    Raises:
        InputError: naming the key.
    """
    if not all_multipliers_are_one(config):
        return
    copied = math.isclose(learning_rate, RECIPE_LEARNING_RATE, rel_tol=0.01)
    too_large = config.hidden_size >= WIDE_HIDDEN_SIZE and learning_rate > WIDE_LEARNING_RATE
    if copied or too_large:
        raise InputError(
            f"{key}={learning_rate:g}: means something only with muP multipliers, and the model's are all 1; "
            f"take a checkpoint that keeps its multipliers, or at most {WIDE_LEARNING_RATE:g}"
        )


def describe_multipliers(config: FalconH1Config) -> str:
    """All of them in one line, names without their endings."""
    values = multiplier_values(config)
    return ", ".join(
        f"{name.removesuffix('s').removesuffix('_multiplier')} {_shown(value)}" for name, value in values.items()
    )


def multiplier_remark(config: FalconH1Config) -> str:
    """What is unusual about them; empty where nothing is."""
    if all_multipliers_are_one(config):
        return "all are 1: a model without muP, or one whose multipliers were folded into its weights"
    if config.lm_head_multiplier == 1.0:
        return "lm_head_multiplier is 1 and others are not: it may have been folded into the head's weights"
    return ""


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _shown(values: tuple[float, ...], digits: int = 4) -> str:
    shown = [f"{value:.{digits}g}" for value in values]
    return shown[0] if len(shown) == 1 else "[" + ", ".join(shown) + "]"
