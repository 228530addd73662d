"""Tokenizer, template and config of the checkpoint that the run starts from: the inspection of `model.inspect`."""

from __future__ import annotations

from falcon_h1r.config_checks import check_model_path
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import OK, SKIPPED, WARN, Finding, graded
from falcon_h1r.model.inspect import inspect_checkpoint
from falcon_h1r.model.load import load_config, load_tokenizer


def check_checkpoint(examination: Examination) -> list[Finding]:
    """Every line of the inspection; what would spoil training raises InputError and is red."""
    config = examination.config
    if config.model.path is None:
        advice = "model.path is null: a run would train a tokenizer and start from random weights"
        return [Finding("checkpoint", SKIPPED, "none", advice)]
    check_model_path(config.model)
    longest = max(limits.prompt_tokens + limits.response_tokens for limits in (config.sft.limits, config.grpo.limits))
    results = inspect_checkpoint(
        config.model,
        load_config(config.model),
        load_tokenizer(config.model),
        config.system_prompt,
        longest_tokens=longest,
    )
    return [graded(each.name, OK if each.ok else WARN, each.value, each.advice) for each in results]
