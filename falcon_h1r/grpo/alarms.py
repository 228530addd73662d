"""Alarms for collapse and reward hacking: rules over a short history of a run's metrics. They stop nothing.

A rule looks at one metric. With r the mean over the last 5 steps and b, "before", the median over up to 40 steps that
precede them (at least 5), it is on where

    above, below     r is beyond a level, whatever was before
    at_once          ... the step's own value is: for what is broken from one step to the next
    growth, shrink   r is so many times b
    rise             r - b is at least so much
    spike            the step's own value is so many times b

A metric that a step lacks, or that is not finite, is passed over. The levels are ours: wide enough to be silent over a
run that learns, and to be told from noise with a few hundred rollouts a step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

RECENT_STEPS = 5
STEPS_BEFORE = 40
FEWEST_BEFORE = 5
CALM_STEPS = 5  # for so many an alarm has to be off before it is announced again
SHARED_RISE = 0.02
PREFIX = "alarm_"


@dataclass(frozen=True, slots=True)
class Rule:
    """One alarm: when it is on, and what to look at then."""

    name: str
    metric: str
    look_at: str
    above: float | None = None
    below: float | None = None
    at_once: bool = False
    growth: float | None = None
    shrink: float | None = None
    rise: float | None = None
    spike: float | None = None
    without_rise_of: str | None = None  # on only where this metric rises by less than SHARED_RISE


RULES = (
    Rule(
        "length_explosion", "response_tokens_mean", growth=2.0,
        look_at="response_tokens_right_mean against _wrong_mean, truncated_share, transcripts: longer for a reason, or "
        "filler; overlong_penalty, loss aggregation",
    ),
    Rule(
        "truncation", "truncated_share", above=0.5,
        look_at="limits.response_tokens, overlong_penalty, truncated: mask",
    ),
    Rule(
        "entropy_collapse", "entropy", below=0.02, shrink=0.25,
        look_at="clip_high, temperature, learning rate; pass_at_group, which falls when exploration ends",
    ),
    Rule(
        "entropy_explosion", "entropy", growth=3.0,
        look_at="transcripts for noise, sampler_kl, entropy_coefficient, learning rate",
    ),
    Rule(
        "repetition", "repeated_ngrams_share", above=0.6, rise=0.15,
        look_at="the transcripts that repeat themselves most, truncated_share",
    ),
    Rule(
        "several_boxes", "several_boxes_share", rise=0.1,
        look_at="transcripts for answers that hedge; several_boxes_penalty",
    ),
    Rule(
        "format_broken", "format_broken_share", rise=0.1,
        look_at="`structure` in samples.jsonl, format_penalty, truncated_share",
    ),
    Rule(
        "language_mixing", "language_mixing_share", rise=0.05,
        look_at="transcripts; language_mixing_penalty",
    ),
    Rule(
        "empty_responses", "empty_share", above=0.05,
        look_at="the sampler's stop tokens and weights: a policy hardly learns to say nothing",
    ),
    Rule(
        "reward_hacking", "reward_mean", rise=0.1, without_rise_of="pass_at_1",
        look_at="which reward_*_mean it is that rises; dev_pass_at_1; transcripts of the best rewards",
    ),
    Rule(
        "no_contrast", "zero_variance_share", above=0.9,
        look_at="all_right_share and all_wrong_share: problems too easy or too hard (recipes/selection.py), group_size",
    ),
    Rule(
        "nothing_solved", "all_wrong_share", above=0.9,
        look_at="pass_at_group, the problems' difficulty: what contrast there is comes of penalties alone",
    ),
    Rule(
        "verifier", "undecided_share", above=0.05,
        look_at="verifier_fault_share: workers that die or sandboxes that do not start; verifier.deadline_seconds",
    ),
    Rule(
        "sampler_gap", "sampler_kl", above=0.05, at_once=True,
        look_at="the last weight sync, the sampler's dtype, version_lag_mean",
    ),
    Rule(
        "importance_ratio", "importance_ratio", above=1.1, below=0.9, at_once=True,
        look_at="the last weight sync, sampler_kl, version_lag_mean",
    ),
    Rule(
        "gradient_spike", "grad_norm", spike=10.0,
        look_at="the step's transcripts, sampler_kl, learning rate; clipping has bounded the step",
    ),
)  # fmt: skip
BY_NAME = {rule.name: rule for rule in RULES}
WATCHED = tuple(dict.fromkeys(key for rule in RULES for key in (rule.metric, rule.without_rise_of) if key))


def judge_rule(rule: Rule, history: Sequence[Mapping[str, float]]) -> str | None:
    """What a rule has seen in the metrics of the steps so far, the newest last; None: nothing. Pure."""
    if not history or rule.metric not in history[-1]:
        return None
    now, recent, before = _levels(rule.metric, history)
    level, words = (now, "") if rule.at_once else (recent, f" over {RECENT_STEPS} steps")
    if level is not None:
        if rule.above is not None and level > rule.above:
            return f"{rule.metric} is {level:.4g}{words}, above {rule.above:g}"
        if rule.below is not None and level < rule.below:
            return f"{rule.metric} is {level:.4g}{words}, below {rule.below:g}"
    if before is None or recent is None:
        return None
    comparison = f"{rule.metric} is {recent:.4g}{words}, {before:.4g} before"
    if rule.growth is not None and recent > rule.growth * before > 0:
        return comparison
    if rule.shrink is not None and recent < rule.shrink * before:
        return comparison
    if rule.spike is not None and now > rule.spike * before > 0:
        return f"{rule.metric} is {now:.4g}, {before:.4g} before"
    if rule.rise is not None and recent - before >= rule.rise:
        return comparison if rule.without_rise_of is None else _unshared_rise(rule, comparison, history)
    return None


def _unshared_rise(rule: Rule, comparison: str, history: Sequence[Mapping[str, float]]) -> str | None:
    """The words on a rise that another metric does not share; None where it does."""
    assert rule.without_rise_of is not None
    _, recent, before = _levels(rule.without_rise_of, history)
    if recent is None or before is None or recent - before >= SHARED_RISE:
        return None
    return f"{comparison}, and {rule.without_rise_of} is {recent:.4g}, {before:.4g} before"


def _levels(metric: str, history: Sequence[Mapping[str, float]]) -> tuple[float, float | None, float | None]:
    """The newest value, the mean over the last steps and the median before them; None where there are too few."""
    values = [row[metric] for row in history if metric in row]
    recent = fmean(values[-RECENT_STEPS:]) if len(values) >= RECENT_STEPS else None
    earlier = values[:-RECENT_STEPS]
    return values[-1] if values else math.nan, recent, median(earlier) if len(earlier) >= FEWEST_BEFORE else None


class Alarms:
    """Looks at each step's metrics, says once when an alarm begins, and remembers what it has to over a resume."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._history: deque[dict[str, float]] = deque(maxlen=STEPS_BEFORE + RECENT_STEPS)
        self._calm: dict[str, int] = {}  # steps since an alarm was on, of those that were lately
        self._num_steps = 0

    def look(self, metrics: Mapping[str, float], announce: bool = True) -> dict[str, float]:
        """`alarm_<name>`, 1 or 0, of every rule whose metric there is; nothing where alarms are switched off.

        Args:
            announce: print a line for each alarm that begins.
        """
        if not self.enabled:
            return {}
        self._num_steps += 1
        self._history.append({key: float(metrics[key]) for key in WATCHED if math.isfinite(metrics.get(key, math.nan))})
        states = {}
        for rule in RULES:
            if rule.metric not in metrics:
                continue
            seen = judge_rule(rule, self._history)
            states[PREFIX + rule.name] = float(seen is not None)
            if seen is not None and rule.name not in self._calm and announce:
                print(f"alarm: {rule.name} at step {self._num_steps}: {seen}; look at {rule.look_at}", flush=True)
            self._note(rule.name, seen is not None)
        return states

    def _note(self, name: str, is_on: bool) -> None:
        if is_on:
            self._calm[name] = 0
        elif name in self._calm:
            self._calm[name] += 1
            if self._calm[name] >= CALM_STEPS:
                del self._calm[name]

    def state_dict(self) -> dict[str, Any]:
        """The history and what is on, as JSON."""
        return {"history": list(self._history), "calm": dict(self._calm), "num_steps": self._num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._history.clear()
        self._history.extend(state["history"])
        self._calm, self._num_steps = dict(state["calm"]), state["num_steps"]
