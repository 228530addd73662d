"""What the schema's types cannot say: impossible combinations, and settings that no code acts on yet.

Run before anything is loaded; imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from falcon_h1r.config import CodeVerifierConfig, Config, LoRAConfig, ModelConfig, SFTConfig
from falcon_h1r.config_checks_data import check_curate
from falcon_h1r.config_checks_evaluate import check_evaluate, check_scaling
from falcon_h1r.config_checks_grpo import check_grpo, check_reference
from falcon_h1r.config_checks_tools import check_benchmark, check_doctor, check_plan
from falcon_h1r.config_rules import at_least, differing, one_of, share
from falcon_h1r.config_run import CheckpointConfig, SupervisionConfig
from falcon_h1r.config_selection import asks_for_selection, check_selection
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.types import ANSWER_FALLBACKS, InputError

CHECKPOINTING_MODES = ("none", "layer", "selective")  # falcon_h1r.model.recompute says what each keeps
PASSED_BY = {  # modules whose weights are read by something else than the module's own forward
    "conv1d": "the convolution, which reads this module's weight,",
    "out_proj": "fused kernels, which read this module's weight,",
    "lm_head": "the loss, which reads this module's weight,",
}
LONGEST_SECONDS = 1e8  # three years; beyond, clocks of the system and of torch overflow


def require(key: str, value: object) -> None:
    """Refuse to go on without a setting.

    Raises:
        InputError: where it is null.
    """
    if value is None:
        raise InputError(f"{key} is not set: this recipe needs it")


def check_config(config: Config) -> None:
    """Refuse impossible combinations with one line that names the key.

    Raises:
        InputError: on the first that is found.
    """
    for key in _not_numbers(asdict(config)):
        raise InputError(f"{key}=nan: has to be a number")
    one_of("model.dtype", config.model.dtype, ("float32", "bfloat16", "float64"))
    _check_lora(config.model.lora)
    one_of("engine.name", config.engine.name, ("torch", "deepspeed"))
    _check_engine(config)
    _check_checkpoint(config.checkpoint, evaluates=bool(config.sft.dev_every_steps or config.grpo.dev_every_steps))
    _check_supervision(config.supervision)
    one_of("tracking.wandb", config.tracking.wandb, ("disabled", "offline", "online"))
    _check_sft(config.sft)
    for stage, optimizer in (("sft", config.sft.optimizer), ("grpo", config.grpo.optimizer)):
        _check_optimizer(f"{stage}.optimizer", optimizer)
    _check_limits("sft.limits", config.sft.limits)
    _check_limits("grpo.limits", config.grpo.limits)
    _check_limits("evaluate.limits", config.evaluate.limits)
    check_selection(config.grpo.selection)
    check_evaluate(config.evaluate)
    check_scaling(config.scaling)
    at_least("dry_run_steps", config.dry_run_steps, 0)
    if config.verifier.deadline_seconds <= 0:
        raise InputError(f"verifier.deadline_seconds={config.verifier.deadline_seconds}: has to be above 0")
    for name in config.verifier.fallbacks:
        one_of("verifier.fallbacks", name, ANSWER_FALLBACKS)
    _check_code_verifier(config.verifier.code)
    for key, number in _counts(config):
        at_least(key, number, 1)
    check_curate(config.curate)
    check_grpo(config.grpo)
    check_reference(config.grpo.loss, config.engine.zero_stage, config.model.lora.rank)
    check_benchmark(config.benchmark)
    check_plan(config.plan)
    check_doctor(config.doctor)


def check_model_path(settings: ModelConfig, key: str = "model.path") -> None:
    """Refuse a local path that is no checkpoint and a chat template that is no file, before loading."""
    if settings.chat_template is not None and not Path(settings.chat_template).is_file():
        raise InputError(f"model.chat_template={settings.chat_template}: no such file")
    if settings.path is None or not looks_local(settings.path):
        return
    folder = Path(settings.path).expanduser()
    if not folder.is_dir():
        raise InputError(f"{key}={settings.path}: no such folder")
    if not (folder / "config.json").is_file():
        raise InputError(f"{key}={settings.path}: no config.json in it, so it is no checkpoint")


def looks_local(path: str) -> bool:
    """A path on this machine, as against a hub name such as `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()


def check_shared_rows(key: str, limits: LimitsConfig, degree: int) -> None:
    """Refuse rows that a sequence group's ranks cannot share, of a stage that is about to run.

    Raises:
        InputError: where `degree` does not divide row_tokens.
    """
    if limits.row_tokens % degree:
        raise InputError(
            f"{key}.row_tokens={limits.row_tokens}: the {degree} ranks of engine.sequence_parallel have to share a row "
            "evenly"
        )


def _check_engine(config: Config) -> None:
    engine = config.engine
    at_least("engine.sequence_parallel", engine.sequence_parallel, 1)
    one_of("engine.activation_checkpointing", engine.activation_checkpointing, CHECKPOINTING_MODES)
    at_least("engine.zero_stage", engine.zero_stage, 0)
    if engine.zero_stage > 3:
        raise InputError(f"engine.zero_stage={engine.zero_stage}: has to be at most 3")
    if engine.zero_stage and engine.name != "deepspeed":
        raise InputError(f"engine.zero_stage={engine.zero_stage}: needs engine.name=deepspeed, not {engine.name}")
    for name, value in (("optimizer_offload", engine.optimizer_offload), ("zero_json", engine.zero_json)):
        if value and engine.name != "deepspeed":
            shown = str(value).lower() if isinstance(value, bool) else value
            raise InputError(f"engine.{name}={shown}: needs engine.name=deepspeed, not {engine.name}")
    if engine.optimizer_offload and not engine.zero_stage:
        raise InputError("engine.optimizer_offload=true: needs engine.zero_stage=1, 2 or 3, not 0")
    mode = engine.activation_checkpointing
    if engine.activation_offload and mode != "layer":
        raise InputError(f"engine.activation_offload=true: needs activation_checkpointing=layer, not {mode}")


def _check_checkpoint(checkpoint: CheckpointConfig, evaluates: bool) -> None:
    at_least("checkpoint.every_steps", checkpoint.every_steps, 0)
    at_least("checkpoint.every_minutes", checkpoint.every_minutes, 0.0)
    at_least("checkpoint.keep", checkpoint.keep, 1)
    best = checkpoint.keep_best
    if best is not None and not best.startswith(("dev_", "watch_")):
        raise InputError(f"checkpoint.keep_best={best}: no metric of an evaluation; these begin with dev_ or watch_")
    if best is not None and best.startswith("dev_") and not evaluates:
        raise InputError(f"checkpoint.keep_best={best}: is never measured; set sft.dev_every_steps, or grpo's")


def _check_supervision(supervision: SupervisionConfig) -> None:
    for name in ("silent_seconds", "lost_seconds", "wait_seconds", "collective_seconds"):
        seconds = getattr(supervision, name)
        at_least(f"supervision.{name}", seconds, 1.0)
        if seconds > LONGEST_SECONDS:
            raise InputError(f"supervision.{name}={seconds}: has to be at most {LONGEST_SECONDS:g}")
    at_least("supervision.max_skipped_steps", supervision.max_skipped_steps, 1)
    if supervision.silent_seconds < supervision.lost_seconds:
        raise InputError(
            f"supervision.silent_seconds={supervision.silent_seconds}: below lost_seconds="
            f"{supervision.lost_seconds}; a rank at work gives signs of life far more often than it makes progress"
        )


def _check_lora(lora: LoRAConfig) -> None:
    at_least("model.lora.rank", lora.rank, 0)
    if lora.dropout != 0:
        raise InputError(
            f"model.lora.dropout={lora.dropout}: has to be 0, or the trainer's logprobs would not be the sampler's"
        )
    if lora.alpha <= 0:
        raise InputError(f"model.lora.alpha={lora.alpha}: has to be above 0")
    if lora.rank and not lora.target_modules:
        raise InputError("model.lora.target_modules: empty, so that nothing would be trained")
    for name in lora.target_modules:
        if name in PASSED_BY:
            raise InputError(f"model.lora.target_modules={name}: {PASSED_BY[name]} would pass the adapter by")
        one_of("model.lora.target_modules", name, LoRAConfig().target_modules)


def _check_optimizer(key: str, optimizer: OptimizerConfig) -> None:
    one_of(f"{key}.schedule", optimizer.schedule, ("linear", "constant"))
    at_least(f"{key}.learning_rate", optimizer.learning_rate, 0.0)
    at_least(f"{key}.warmup_steps", optimizer.warmup_steps, 0)
    share(f"{key}.warmup_share", optimizer.warmup_share)
    if optimizer.batch_tokens is not None and optimizer.reference_batch_tokens is None:
        raise InputError(f"{key}.batch_tokens={optimizer.batch_tokens}: does nothing without reference_batch_tokens")
    for index, group in enumerate(optimizer.groups):
        _check_pattern(f"{key}.groups[{index}].pattern", group.pattern)
        for name in ("learning_rate_multiplier", "weight_decay_multiplier"):
            at_least(f"{key}.groups[{index}].{name}", getattr(group, name) or 0.0, 0.0)


def _check_pattern(key: str, pattern: str) -> None:
    if not pattern:
        raise InputError(f"{key}: empty, so that it would match every parameter")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{key}={pattern}: not a regular expression ({error})") from None


def _check_limits(key: str, limits: LimitsConfig) -> None:
    at_least(f"{key}.prompt_tokens", limits.prompt_tokens, 1)
    at_least(f"{key}.response_tokens", limits.response_tokens, 1)
    longest = limits.prompt_tokens + limits.response_tokens
    if limits.row_tokens < longest:
        raise InputError(
            f"{key}.row_tokens={limits.row_tokens} is shorter than prompt_tokens + response_tokens = "
            f"{limits.prompt_tokens} + {limits.response_tokens} = {longest}: a whole sample has to fit a row"
        )


def _check_sft(sft: SFTConfig) -> None:
    one_of("sft.overlong", sft.overlong, ("drop", "trim"))
    one_of("sft.denominator", sft.denominator, ("weights", "tokens"))
    if sft.batch_rows is not None and sft.batch_sequences is not None:
        raise InputError(
            f"sft.batch_rows={sft.batch_rows}, batch_sequences={sft.batch_sequences}: a step is made of one or the "
            "other; set the other to null"
        )
    if sft.batch_rows is None and sft.batch_sequences is None:
        raise InputError("sft.batch_sequences: null, and so is batch_rows; a step is made of one or the other")
    if sft.num_epochs <= 0:
        raise InputError(f"sft.num_epochs={sft.num_epochs}: has to be above 0")


def _check_code_verifier(code: CodeVerifierConfig) -> None:
    if code.cpu_seconds <= 0:
        raise InputError(f"verifier.code.cpu_seconds={code.cpu_seconds}: has to be above 0")
    if code.deadline_seconds < code.cpu_seconds:
        raise InputError(
            f"verifier.code.deadline_seconds={code.deadline_seconds}: below cpu_seconds={code.cpu_seconds}, so that "
            "the wall clock would decide"
        )
    at_least("verifier.code.memory_limit_gib", code.memory_limit_gib, 0.0625)
    if code.sandbox_url is not None and not code.sandbox_url.startswith(("http://", "https://")):
        raise InputError(f"verifier.code.sandbox_url={code.sandbox_url}: has to start with http:// or https://")


def _counts(config: Config) -> list[tuple[str, float]]:
    """Numbers that cannot be below one."""
    counts: list[tuple[str, float | None]] = [
        ("launch.num_processes", config.launch.num_processes),
        ("launch.num_nodes", config.launch.num_nodes),
        ("tracking.log_every_steps", config.tracking.log_every_steps),
        ("sft.batch_sequences", config.sft.batch_sequences),
        ("sft.batch_rows", config.sft.batch_rows),
        ("sft.tokens.num_workers", config.sft.tokens.num_workers),
        ("sft.optimizer.reference_batch_tokens", config.sft.optimizer.reference_batch_tokens),
        ("sft.optimizer.batch_tokens", config.sft.optimizer.batch_tokens),
        ("grpo.optimizer.reference_batch_tokens", config.grpo.optimizer.reference_batch_tokens),
        ("grpo.optimizer.batch_tokens", config.grpo.optimizer.batch_tokens),
        ("sft.num_steps", config.sft.num_steps),
        ("grpo.num_steps", config.grpo.num_steps),
        ("dev.num_problems", config.dev.num_problems),
        ("dev.num_samples", config.dev.num_samples),
        ("verifier.num_workers", config.verifier.num_workers),
        ("verifier.code.num_workers", config.verifier.code.num_workers),
        ("verifier.code.max_tests", config.verifier.code.max_tests),
        ("benchmark.repeats", config.benchmark.repeats),
        ("benchmark.checkpoint_steps", config.benchmark.checkpoint_steps),
        ("benchmark.checkpoint_row_tokens", config.benchmark.checkpoint_row_tokens),
        ("benchmark.grpo_problems", config.benchmark.grpo_problems),
        ("benchmark.grpo_rollouts", config.benchmark.grpo_rollouts),
        ("benchmark.num_layers", config.benchmark.num_layers),
        ("benchmark.vocab_size", config.benchmark.vocab_size),
        ("benchmark.loss_tokens", config.benchmark.loss_tokens),
        ("benchmark.loss_peer_tokens", config.benchmark.loss_peer_tokens),
        ("benchmark.train_row_tokens", config.benchmark.train_row_tokens),
    ]
    return [(key, number) for key, number in counts if number is not None]


def _not_numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys whose value is NaN, which no bound would refuse."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _not_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float) and math.isnan(value):
            yield f"{prefix}{name}"


def not_built_yet(config: Config, stage: str) -> list[str]:
    """Settings that a preset records and no code of this version acts on: a real run refuses them.

    A setting that is silently ignored computes something else than was asked for.
    """
    found: list[str] = []
    if stage == "select" or (stage == "pipeline" and asks_for_selection(config.grpo.selection)):
        found += differing("grpo.rollout", config.grpo.rollout, name="torch")  # which selection samples with
    if stage == "export":
        found += differing("export", config.export, **dict.fromkeys(vars(config.export)))
    return found
