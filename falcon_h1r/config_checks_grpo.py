"""What is refused of GRPO's settings: values out of bounds, and combinations that contradict. Imports no torch."""

from __future__ import annotations

from falcon_h1r.config_checks_vllm import check_vllm
from falcon_h1r.config_grpo import GRPOConfig, GRPOLossConfig, RewardConfig, RolloutConfig
from falcon_h1r.config_rules import at_least, one_of
from falcon_h1r.types import InputError

SAMPLERS = ("torch", "vllm_server", "vllm_colocate")


def check_grpo(grpo: GRPOConfig) -> None:
    """Refuse what cannot be trained with.

    Raises:
        InputError: naming the key.
    """
    if grpo.group_size < 2:
        raise InputError(
            f"grpo.group_size={grpo.group_size}: advantages are taken within a group, which needs at least 2 rollouts"
        )
    if grpo.optimizer.reference_batch_tokens is not None and grpo.optimizer.batch_tokens is None:
        raise InputError(
            "grpo.optimizer.batch_tokens is not set: reference_batch_tokens needs it, for how long rollouts become is "
            "not known before they are drawn"
        )
    for name in ("updates_per_batch", "problems_per_step", "surplus_cache_steps"):
        at_least(f"grpo.{name}", getattr(grpo, name), 1)
    for name in ("max_backfill_rounds", "surplus_cache_groups", "skip_solved_steps"):
        at_least(f"grpo.{name}", getattr(grpo, name), 0)
    if grpo.num_steps % grpo.updates_per_batch:
        raise InputError(
            f"grpo.num_steps={grpo.num_steps}: updates_per_batch={grpo.updates_per_batch} has to divide it"
        )
    one_of("grpo.zero_variance", grpo.zero_variance, ("backfill", "reject", "duplicate"))
    one_of("grpo.truncated", grpo.truncated, ("keep", "mask"))
    _check_rollout(grpo.rollout)
    _check_surplus(grpo)
    _check_reward(grpo.reward, grpo.limits.response_tokens)
    _check_loss(grpo.loss)


def _check_rollout(rollout: RolloutConfig) -> None:
    one_of("grpo.rollout.name", rollout.name, SAMPLERS)
    if rollout.temperature <= 0:
        raise InputError(f"grpo.rollout.temperature={rollout.temperature}: greedy rollouts have no contrast")
    if rollout.top_p < 1.0 or rollout.top_k > 0:
        raise InputError(
            f"grpo.rollout.top_p={rollout.top_p}, top_k={rollout.top_k}: RL samples the whole "
            "distribution (top_p 1, top_k 0), or its logprobs are not those of what was sampled"
        )
    for name in ("max_slots", "prefill_tokens", "meeting_tokens"):
        at_least(f"grpo.rollout.{name}", getattr(rollout, name), 1)
    at_least("grpo.rollout.oversampling", rollout.oversampling, 1.0)
    at_least("grpo.rollout.max_partial_steps", rollout.max_partial_steps, 0)
    if rollout.step_tokens is not None:
        at_least("grpo.rollout.step_tokens", rollout.step_tokens, 1)
    if rollout.dtype is not None:
        one_of("grpo.rollout.dtype", rollout.dtype, ("float32", "bfloat16", "float64"))
    if "" in rollout.stop_strings:
        raise InputError("grpo.rollout.stop_strings: one is empty, which every response ends in")
    if rollout.overlap and rollout.name == "torch" and rollout.dtype is None:
        raise InputError(
            "grpo.rollout.overlap=true: the sampler would draw with the weights that are being trained; set "
            "grpo.rollout.dtype, for a copy of them, or grpo.rollout.name=vllm_server"
        )
    if rollout.max_partial_steps and rollout.oversampling == 1 and rollout.step_tokens is None:
        raise InputError(
            f"grpo.rollout.max_partial_steps={rollout.max_partial_steps}: a step that begins no more groups than it "
            "needs cuts none; set oversampling above 1, or step_tokens"
        )
    check_vllm(rollout)


def _check_surplus(grpo: GRPOConfig) -> None:
    if grpo.surplus_cache_groups and grpo.rollout.oversampling == 1:
        raise InputError(
            f"grpo.surplus_cache_groups={grpo.surplus_cache_groups}: a step that begins no more groups than it needs "
            "has none to spare; set grpo.rollout.oversampling above 1"
        )
    if grpo.surplus_cache_refresh and not grpo.surplus_cache_groups:
        raise InputError("grpo.surplus_cache_refresh=true: needs grpo.surplus_cache_groups above 0")


def _check_reward(reward: RewardConfig, response_tokens: int) -> None:
    if reward.correct <= 0:
        raise InputError(f"grpo.reward.correct={reward.correct}: has to be above 0, or right answers earn nothing")
    for name, value in vars(reward).items():
        at_least(f"grpo.reward.{name}", value, 0)
    if reward.overlong_penalty and not 0 < reward.overlong_buffer_tokens <= response_tokens:
        raise InputError(
            f"grpo.reward.overlong_buffer_tokens={reward.overlong_buffer_tokens}: overlong_penalty needs 1 to "
            f"limits.response_tokens={response_tokens} of them"
        )


def _check_loss(loss: GRPOLossConfig) -> None:
    one_of("grpo.loss.objective", loss.objective, ("clip", "gspo", "cispo"))
    one_of("grpo.loss.aggregation", loss.aggregation, ("sequence", "token", "constant"))
    one_of("grpo.loss.advantage_scale", loss.advantage_scale, ("group", "batch", "none"))
    for name in ("cispo_cap", "importance_cap"):
        if getattr(loss, name) <= 0:
            raise InputError(f"grpo.loss.{name}={getattr(loss, name)}: has to be above 0, or nothing is learnt")
    for name in ("clip_low", "clip_high", "cross_entropy_weight", "kl_coefficient", "entropy_coefficient"):
        at_least(f"grpo.loss.{name}", getattr(loss, name), 0.0)


def check_reference(loss: GRPOLossConfig, zero_stage: int, adapter_rank: int) -> None:
    """Refuse a KL term whose reference model would be held whole beside sharded weights.

    Raises:
        InputError: naming the key.
    """
    if loss.kl_coefficient and zero_stage == 3 and not adapter_rank:
        raise InputError(
            f"grpo.loss.kl_coefficient={loss.kl_coefficient}: every rank holds its reference model whole, which "
            "engine.zero_stage=3 is there to avoid; take stage 2, or model.lora.rank, whose reference is the base model"
        )
