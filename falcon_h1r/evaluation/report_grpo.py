"""GRPO's part of the report page: which metrics are drawn together, the alarms that were on, rewards by family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from falcon_h1r.evaluation.run_folder import Row
from falcon_h1r.grpo.alarms import BY_NAME, PREFIX

Panel = tuple[str, tuple[str, ...]]  # title, keys drawn together

PANELS: tuple[Panel, ...] = (
    ("Reward", ("reward_mean",)),
    ("pass@k in training", ("pass_at_1", "pass_at_4", "pass_at_group")),
    ("Dev accuracy", ("dev_greedy", "dev_pass_at_1")),
    ("Response tokens", ("response_tokens_mean", "response_tokens_p95")),
    ("Response tokens, right and wrong", ("response_tokens_right_mean", "response_tokens_wrong_mean")),
    ("Cut at the limit", ("truncated_share",)),
    ("Entropy, nats", ("entropy",)),
    ("Groups without contrast", ("zero_variance_share", "all_right_share", "all_wrong_share")),
    ("What responses show", ("format_broken_share", "several_boxes_share", "no_box_share", "repeated_ngrams_share")),
    ("Clipped tokens", ("clip_low_share", "clip_high_share")),
    ("Sampler KL", ("sampler_kl",)),
    ("Importance ratio", ("importance_ratio",)),
    ("Gradient norm", ("grad_norm",)),
    ("Batches behind the policy", ("version_lag_mean", "version_lag_max")),
    ("Tokens of a step, and those dropped", ("sampled_tokens", "dropped_tokens")),
    ("Tokens per second", ("sampling_tokens_per_second", "training_tokens_per_second")),
)
PHASES = ("sampling", "verdicts", "meetings", "exchange", "training", "sync")
MOST_PHASES = 5  # as many as a plot has colours
PARTS = ("reward_", "_mean")
FAMILY_REWARD, FAMILY_PASS = "family_reward_mean/", "family_pass_at_1/"
GRADIENTS = ("grad_norm_", "grad_norm/")
TABLED = (PREFIX, FAMILY_REWARD, FAMILY_PASS, *GRADIENTS)  # beginnings of keys that get a table, not a plot each


def grpo_panels(rows: Sequence[Row]) -> list[Panel]:
    """The plots of a run: the known ones, and those whose keys depend on the config."""
    keys = dict.fromkeys(key for row in rows for key in row)
    parts = [key for key in keys if key.startswith(PARTS[0]) and key.endswith(PARTS[1]) and key != "reward_mean"]
    panels = list(PANELS)
    if len(parts) > 1:
        panels.insert(1, ("Reward by part", tuple(parts)))
    phases = [f"{name}_seconds" for name in PHASES]
    seconds = {key: _mean_of(rows, key) for key in phases if key in keys}
    longest = sorted(seconds, key=lambda key: -(seconds[key] or 0.0))[:MOST_PHASES]
    skews = [f"{name}_skew_seconds" for name in PHASES if f"{name}_skew_seconds" in keys]
    panels.append(("Seconds by phase", tuple(key for key in phases if key in longest)))
    panels.append(("Skew over ranks, seconds", tuple(skews[:MOST_PHASES])))
    return panels


def alarm_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The alarms that were on, the first to begin first: their steps, the metric's last value then, where to look."""
    found = []
    for key in dict.fromkeys(key for row in rows for key in row if key.startswith(PREFIX)):
        on = [row for row in rows if row.get(key)]
        rule = BY_NAME.get(key.removeprefix(PREFIX))
        if on and rule is not None:
            steps = [row["step"] for row in on]
            words = {"name": rule.name.replace("_", " "), "metric": rule.metric, "look_at": rule.look_at}
            found.append(words | {"steps": stretches(steps), "first": steps[0], "last": on[-1].get(rule.metric)})
    return sorted(found, key=lambda alarm: (alarm["first"], alarm["name"]))


def stretches(steps: Iterable[int]) -> str:
    """Ascending steps as text: 3-7, 12."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def family_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Reward and pass@1 of each family over the first tenth of the run and over the last, the best last one first."""
    keys = dict.fromkeys(key for row in rows for key in row)
    families = [key.removeprefix(FAMILY_REWARD) for key in keys if key.startswith(FAMILY_REWARD)]
    size = max(1, len(rows) // 10)
    found = [
        {
            "name": family.replace("_", " "),
            "pass": [_mean_of(part, FAMILY_PASS + family) for part in (rows[:size], rows[-size:])],
            "reward": [_mean_of(part, FAMILY_REWARD + family) for part in (rows[:size], rows[-size:])],
        }
        for family in families
    ]
    return sorted(found, key=lambda row: (-(row["pass"][1] or 0.0), row["name"]))


def gradient_rows(rows: Sequence[Row]) -> list[tuple[str, float | None, float | None]]:
    """Gradient norms by part of the model, over the first tenth of the run and over the last."""
    size = max(1, len(rows) // 10)
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(GRADIENTS))
    return [
        (key[len(GRADIENTS[0]) :].replace("_", " "), _mean_of(rows[:size], key), _mean_of(rows[-size:], key))
        for key in keys
    ]


def _mean_of(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return fmean(values) if values else None
