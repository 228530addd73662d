"""Impossible settings of evaluation and test-time scaling. What a benchmark or an endpoint needs is checked where it
is used (falcon_h1r.evaluation.benchmarks, falcon_h1r.scaling.endpoint). Imports no torch."""

from __future__ import annotations

from falcon_h1r.config_evaluate import EvaluateConfig, ScalingConfig
from falcon_h1r.config_rules import at_least, one_of, share
from falcon_h1r.types import InputError


def check_evaluate(evaluate: EvaluateConfig) -> None:
    """
    Raises:
        InputError: naming the key.
    """
    one_of("evaluate.engine", evaluate.engine, ("torch", "endpoint"))
    _check_sampling("evaluate", evaluate.temperature, evaluate.top_p, " (one greedy answer a problem is extra)")
    at_least("evaluate.num_samples", evaluate.num_samples, 0 if evaluate.greedy else 1)
    at_least("evaluate.max_slots", evaluate.max_slots, 1)
    if evaluate.num_problems is not None:
        at_least("evaluate.num_problems", evaluate.num_problems, 1)
    at_least("evaluate.work.claim_traces", evaluate.work.claim_traces, 1)
    at_least("evaluate.work.lost_seconds", evaluate.work.lost_seconds, 1.0)
    at_least("evaluate.watch.idle_minutes", evaluate.watch.idle_minutes, 0.0)
    if evaluate.watch.poll_seconds <= 0:
        raise InputError(f"evaluate.watch.poll_seconds={evaluate.watch.poll_seconds}: has to be above 0")
    for name in evaluate.benchmarks:
        if not name or name.startswith(".") or "/" in name:
            raise InputError(f"evaluate.benchmarks.{name}: has to be the name of a folder")


def check_scaling(scaling: ScalingConfig) -> None:
    """
    Raises:
        InputError: naming the key.
    """
    one_of("scaling.measure", scaling.measure, ("top_k", "sampled"))
    one_of("scaling.trace_score", scaling.trace_score, ("mean", "bottom_10", "lowest_group", "tail"))
    one_of("scaling.partial_window", scaling.partial_window, ("mean", "wait"))
    for name in ("keep_share", "vote_share", "consensus_share"):
        share(f"scaling.{name}", getattr(scaling, name))
    for value in scaling.keep_shares:
        share("scaling.keep_shares", value)
    at_least("scaling.num_traces", scaling.num_traces, 0)
    at_least("scaling.stop_slack", scaling.stop_slack, 0.0)
    for name in ("warmup_traces", "wave_traces", "top_k", "window_tokens"):
        at_least(f"scaling.{name}", getattr(scaling, name), 1)
    for budget in scaling.budgets:
        at_least("scaling.budgets", budget, 1)
    _check_sampling("scaling", scaling.temperature, scaling.top_p)


def _check_sampling(key: str, temperature: float, top_p: float, hint: str = "") -> None:
    if temperature <= 0:
        raise InputError(f"{key}.temperature={temperature}: samples need a temperature above 0{hint}")
    if not 0 < top_p <= 1:
        raise InputError(f"{key}.top_p={top_p}: has to be above 0 and at most 1")
