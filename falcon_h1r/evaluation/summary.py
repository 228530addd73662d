"""A pipeline's summary.json: each model's accuracy with its interval, paired differences, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from falcon_h1r.config_evaluate import ScalingConfig
from falcon_h1r.evaluation.metrics import VOTES, differences, summarise, votes_of
from falcon_h1r.evaluation.scaling_curves import scaling_summary


def summarise_pipeline(
    samples: Mapping[str, Sequence[dict[str, Any]]],
    wall_seconds: Mapping[str, float],
    seed: int,
    scaling: ScalingConfig,
) -> dict[str, Any]:
    """The summary of `samples` by model, in the order in which one was made from the other.

    Where confidence was measured, a model's has test-time scaling, too, replayed on its samples.

    Args:
        wall_seconds: by stage; their sum is added as `total`.
    """
    votes = min(VOTES, *(votes_of(rows) for rows in samples.values()))
    models = {name: summarise(rows, k=votes, seed=seed) for name, rows in samples.items()}
    for name, rows in samples.items():
        if curves := scaling_summary(rows, [], scaling, scaling.num_traces, seed):
            models[name]["scaling"] = curves
    return {
        **models,
        "differences": {
            f"{after}_minus_{before}": differences([(samples[after], samples[before])], k=votes, seed=seed)
            for before, after in pairwise(samples)
        },
        "wall_seconds": {**wall_seconds, "total": round(sum(wall_seconds.values()), 2)},
        "seed": seed,
    }
