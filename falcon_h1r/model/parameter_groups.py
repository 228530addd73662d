"""Which parameters share a learning rate and a weight decay.

Every parameter that is trained goes to the first entry of `optimizer.groups` whose pattern `re.search` finds in its
name; an entry says by what the learning rate and the weight decay are multiplied. Behind the entries stand two
defaults: no decay on the SSM's A_log, D and dt_bias, on norms and biases; decay on all else, embeddings, head and
the convolution's filters included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from falcon_h1r.config_stage import OptimizerConfig, ParameterGroupConfig
from falcon_h1r.types import InputError

# By name: under ZeRO 3 a parameter no longer shows how many dimensions it has.
NOT_DECAYED = re.compile(r"(^|\.)(A_log|D|dt_bias|bias)$|norm\.weight$")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizerConfig, key: str = "optimizer"
) -> list[dict[str, Any]]:
    """The trained parameters in groups of equal multipliers, as torch's optimizers take them.

    Each group also carries its `learning_rate_multiplier`, which whoever sets "lr" multiplies the schedule's by.

    Args:
        named_parameters: shared ones once, as `Module.named_parameters` gives them: tied weights go by the
            embedding's name.
        key: of the optimizer's section, for messages.

    Raises:
        InputError: where an entry is left without a parameter.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    entry_of = match_entries([name for name, _ in trained], settings.groups, key)
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for (name, parameter), entry in zip(trained, entry_of, strict=True):
        multipliers = group_multipliers(name, settings.groups[entry] if entry is not None else None)
        members.setdefault(multipliers, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay_multiplier * settings.weight_decay,
            "learning_rate_multiplier": learning_rate_multiplier,
        }
        for (learning_rate_multiplier, decay_multiplier), parameters in members.items()
    ]


def group_multipliers(name: str, entry: ParameterGroupConfig | None) -> tuple[float, float]:
    """What a parameter's learning rate and weight decay are multiplied by."""
    default_decay = 0.0 if NOT_DECAYED.search(name) else 1.0
    if entry is None:
        return 1.0, default_decay
    decay = entry.weight_decay_multiplier
    return entry.learning_rate_multiplier, default_decay if decay is None else decay


def match_entries(names: Sequence[str], entries: Sequence[ParameterGroupConfig], key: str) -> list[int | None]:
    """For every name the index of the first entry that matches it.

    Raises:
        InputError: where an entry matches no name, or only such as earlier entries have taken.
    """
    patterns = [re.compile(entry.pattern) for entry in entries]
    found = [next((i for i, pattern in enumerate(patterns) if pattern.search(name)), None) for name in names]
    for index, pattern in enumerate(patterns):
        if index not in found:
            taken = any(pattern.search(name) for name in names)
            reason = "earlier entries have taken all" if taken else f"among trained parameters like {names[0]}, none is"
            raise InputError(f"{key}.groups[{index}].pattern={pattern.pattern}: {reason} that it matches")
    return found
