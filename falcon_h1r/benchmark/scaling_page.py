"""The page of suite=scaling, from its figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from falcon_h1r.benchmark.tables import NONE, judged, seconds, table
from falcon_h1r.config import Config
from falcon_h1r.scaling.traces import SCORES
from falcon_h1r.tracking import environment_versions

MEASURES = {"top_k": "mean of the top-k logprobs", "sampled": "logprob of the token drawn"}
Point = Mapping[str, Any]
Key = tuple[str, int, str | None, float | None]


def render(config: Config, figures: Mapping[str, Any]) -> str:
    """Markdown."""
    ran_on, sets = figures["environment"], figures["sets"]
    num_runs = len({each["run"] for each in sets})
    num_seeds = len({each["seed"] for each in sets})
    lines = [
        "# Accuracy with its cost in tokens",
        "",
        f"The models after GRPO of {num_runs} pipeline run(s), {config.evaluate.num_problems} held-out problems, "
        f"{config.evaluate.num_samples} traces a problem for each of {num_seeds} seeds, temperature "
        f"{config.evaluate.temperature:g}; groups of {config.scaling.window_tokens} tokens, the partial ones "
        f"{'the mean so far' if config.scaling.partial_window == 'mean' else 'waited for'}. Replayed, so the tokens "
        "are exact; votes weigh by the lowest group. Means over the sets of samples, with their range where it tells. "
        "Formulas and choices: [scaling.md](../scaling.md).",
        "",
        f"{ran_on['hardware']}; torch {ran_on['torch']}, transformers {ran_on['transformers']}; revision "
        f"{environment_versions()['git_revision']}. Made by",
        "",
        f"    {figures['command']}",
        "",
    ]
    lines += _auc(sets)
    for warmup in dict.fromkeys(each["warmup"] for each in sets):
        lines += _warmup([each for each in sets if each["warmup"] == warmup], warmup)
    lines += _timed(config, figures["timed"])
    return "\n".join(lines).rstrip() + "\n"


def _auc(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    first = [each for each in sets if each["warmup"] == sets[0]["warmup"]]
    rows = [
        [
            MEASURES[measure],
            *(
                _spread([each["auc_within"][measure][score]["value"] for each in first if each["auc_within"]], "{:.2f}")
                for score in SCORES
            ),
        ]
        for measure in MEASURES
    ]
    return [
        "## Does confidence tell right from wrong?",
        "",
        "The chance that a right trace scores above a wrong one *of the same problem* (0.5: no better than a coin), "
        "mean over problems that have both.",
        "",
        *table(["confidence of a token", *(f"trace: {score}" for score in SCORES)], rows),
    ]


def _warmup(sets: Sequence[Mapping[str, Any]], warmup: int) -> list[str]:
    by_key: dict[Key, list[Point]] = {}
    for each in sets:
        for point in each["points"]:
            key = (point["method"], point["budget"], point["measure"], point["keep_share"])
            by_key.setdefault(key, []).append(point)
    budget = max(key[1] for key in by_key)
    shown = [key for key in by_key if key[1] == budget or key[0] == "single"]
    shown = [key for key in shown if key[0] in ("single", "majority", "lowest_group", "online")]
    return [
        f"## Budget {budget}, a warm-up and waves of {warmup}",
        "",
        *table(
            ["", "confidence", "accuracy", "of seeds", "against majority", "tokens a problem", "saved", "by stops",
             "by consensus"],
            [_row(key, by_key[key]) for key in shown],
        ),
    ]  # fmt: skip


def _row(key: Key, points: Sequence[Point]) -> list[str]:
    method, _, measure, keep_share = key
    accuracies = [100 * point["accuracy"]["value"] for point in points]
    against = [100 * point["against_majority"]["value"] for point in points if point["against_majority"]]
    by_stops, by_consensus = (mean(point[name] for point in points) for name in _SAVED)
    name = {"online": f"DeepConf, keep {keep_share}", "lowest_group": "vote by lowest group"}.get(method, method)
    is_online = method == "online"
    return [
        name,
        NONE if measure is None else measure,
        f"{mean(accuracies):.1f}%",
        f"{min(accuracies):.1f} to {max(accuracies):.1f}",
        f"{mean(against):+.1f}" if against else NONE,
        f"{mean(point['tokens'] for point in points):,.0f}",
        f"{by_stops + by_consensus:.0%}" if is_online else NONE,
        f"{by_stops:.0%}" if is_online else NONE,
        f"{by_consensus:.0%}" if is_online else NONE,
    ]


_SAVED = ("saved_by_confidence", "saved_by_consensus")


def _timed(config: Config, timed: Mapping[str, Any]) -> list[str]:
    scaling = config.scaling
    rows = [
        [
            name,
            f"{timed['tokens'][way]:,}",
            seconds(median(timed["seconds"][way])),
            f"{seconds(min(timed['seconds'][way]))} to {seconds(max(timed['seconds'][way]))}",
        ]
        for way, name in (("whole", "every trace to its end"), ("online", "DeepConf online"))
    ]
    bar = 0.2 if timed["tokens_saved"] >= 0.3 else None
    return [
        "## By the clock",
        "",
        f"The torch sampler with {config.evaluate.max_slots} slots, the first model and seed: measure "
        f"{scaling.measure}, keep {scaling.keep_share}, warm-up {scaling.warmup_traces}, waves of "
        f"{scaling.wave_traces}, consensus {scaling.consensus_share}. In turns, {config.benchmark.repeats} rounds.",
        "",
        *table(["", "tokens", "seconds", "of rounds"], rows),
        f"Tokens saved: {timed['tokens_saved']:.0%}. Time saved: {judged(timed['seconds_saved'], bar, unit='%')}.",
    ]


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return NONE
    middle, low, high = (form.format(value) for value in (mean(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"
