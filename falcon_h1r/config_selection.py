"""The settings of RL selection: what they ask for, what they mean together, what is refused. Imports no torch."""

from __future__ import annotations

from falcon_h1r.config_grpo import GRPOConfig, SelectionConfig
from falcon_h1r.config_rules import at_least, one_of, share
from falcon_h1r.config_stage import LimitsConfig
from falcon_h1r.types import InputError

DOMAINS = ("math", "code", "science", "other")
KEY = "grpo.selection"


def asks_for_selection(selection: SelectionConfig) -> bool:
    """Whether a pipeline has a stage to run: not by the defaults, with which every maths problem is taken as it is."""
    return (
        selection.num_rollouts > 0
        or selection.disjoint_from_sft
        or selection.drop_unverifiable
        or selection.domains != SelectionConfig().domains
    )


def selection_limits(grpo: GRPOConfig) -> LimitsConfig:
    """Tokens of a prompt and of a response where the SFT model is sampled; a row holds one of each."""
    prompt, response = grpo.limits.prompt_tokens, grpo.selection.max_response_tokens
    response = grpo.limits.response_tokens if response is None else response
    return LimitsConfig(prompt_tokens=prompt, response_tokens=response, row_tokens=prompt + response)


def check_selection(selection: SelectionConfig) -> None:
    """Refuse values that nothing could be selected by.

    Raises:
        InputError: naming the key.
    """
    if not selection.domains:
        raise InputError(f"{KEY}.domains: empty, so that no problem would be left")
    for name in selection.domains:
        one_of(f"{KEY}.domains", name, DOMAINS)
    at_least(f"{KEY}.num_rollouts", selection.num_rollouts, 0)
    if selection.temperature <= 0:
        raise InputError(f"{KEY}.temperature={selection.temperature}: greedy rollouts of a problem are all the same")
    if not 0 < selection.top_p <= 1:
        raise InputError(f"{KEY}.top_p={selection.top_p}: has to be above 0 and at most 1")
    if selection.max_response_tokens is not None:
        at_least(f"{KEY}.max_response_tokens", selection.max_response_tokens, 1)
    at_least(f"{KEY}.drop_consistent_wrong", selection.drop_consistent_wrong, 2)  # one answer agrees with nobody
    share(f"{KEY}.keep_unsolved_share", selection.keep_unsolved_share)
