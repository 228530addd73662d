"""The settings of GRPO: how rollouts are drawn, rewarded, kept and learnt from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig

# ruff: noqa: UP045  (OmegaConf reads these annotations at run time)


@dataclass
class VLLMConfig:
    """vLLM as the sampler: servers on GPUs of their own, or an engine on the trainer's. See docs/vllm.md."""

    servers: list[str] = field(default_factory=list)  # their addresses: http://host:8000; rank i samples at server i
    start_seconds: float = 600.0  # a server has to answer within
    silent_seconds: float = 3600.0  # ... and to send more of a rollout, or take new weights, within; rollouts may queue
    tensor_parallel: int = 1  # of an engine on the trainer's GPUs: consecutive ranks that share one
    memory_share: float = 0.4  # of a GPU's memory, for such an engine while it is awake
    max_sync_gap: float = 0.05  # mean |sampler - trainer| logprob after a sync; more, and the run stops


@dataclass
class RolloutConfig:
    """How rollouts are drawn."""

    name: str = "torch"  # torch: by this project's own sampler; vllm_server; vllm_colocate
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_strings: list[str] = field(default_factory=list)  # beside the end of the turn; they stay in the text
    max_slots: int = 512  # rows generated at once by one rank
    prefill_tokens: int = 8192  # of prompts processed in one row
    dtype: Optional[str] = None  # of a copy of the weights to sample from; null: the trainer's own, which need no sync
    meeting_tokens: int = 32  # decoded by every slot between two meetings of the ranks
    oversampling: float = 1.0  # groups begun at once for each that the step needs
    step_tokens: Optional[int] = None  # of response, sampled in one step over all ranks; beyond, it learns from less
    max_partial_steps: int = 0  # a rollout cut off with its step goes on in later ones, at most so many; 0: none is cut
    overlap: bool = False  # the next step's rollouts are drawn while this one's are learnt from: one step off-policy
    vllm: VLLMConfig = field(default_factory=VLLMConfig)


@dataclass
class RewardConfig:
    """What a rollout's reward is summed from; each part is logged by itself. See falcon_h1r.grpo.rewards."""

    correct: float = 1.0  # where the verifier finds the answer right; of code: where all tests pass
    format_penalty: float = 0.0  # subtracted where <think>...</think> is broken
    several_boxes_penalty: float = 0.0  # ... where more than one box stands after </think>
    language_mixing_penalty: float = 0.0  # ... times the share of letters neither Latin nor of the question's script
    overlong_penalty: float = 0.0  # ... at the limit, growing from 0 over the last overlong_buffer_tokens before it
    overlong_buffer_tokens: int = 0
    truncated_penalty: float = 0.0  # ... where the limit cut the response off


@dataclass
class SelectionConfig:
    """RL problems chosen by recipes/selection.py: unseen, verifiable, neither solved by the SFT model nor hopeless."""

    domains: list[str] = field(default_factory=lambda: ["math"])  # whose rewards are known; GRPO leaves out the rest
    disjoint_from_sft: bool = False  # drop problems that occur in sft.data
    drop_unverifiable: bool = False  # drop problems whose gold the verifier cannot read; rollouts always do

    num_rollouts: int = 0  # of each problem; 0: none
    temperature: float = 0.6
    top_p: float = 0.95
    max_response_tokens: Optional[int] = None  # null: grpo.limits.response_tokens
    drop_consistent_wrong: int = 4  # 0 right, but so many of 8 agree: the gold is suspect; of n, the same share
    keep_unsolved_share: float = 0.1  # of the problems with 0 right


@dataclass
class GRPOLossConfig:
    """The objective; see falcon_h1r.grpo.losses for the formulas."""

    objective: str = "clip"  # clip (PPO's, GRPO's), gspo (ratios of whole responses) or cispo (clipped weights)
    clip_low: float = 0.2
    clip_high: float = 0.28
    cispo_cap: float = 5.0  # of cispo: the ratio counts up to this
    importance_cap: float = 2.0  # of exp(old policy - sampler), per token
    cross_entropy_weight: float = 0.0  # of the cross-entropy on correct rollouts
    kl_coefficient: float = 0.0  # 0: no reference model is loaded
    entropy_coefficient: float = 0.0
    aggregation: str = "sequence"  # every rollout counts the same; token: every token (DAPO); constant (Dr. GRPO)
    advantage_scale: str = "group"  # divided by the group's deviation, the batch's, or none (Dr. GRPO)


@dataclass
class GRPOConfig:
    """Reinforcement learning with verifiable rewards."""

    data: SourceConfig = field(default_factory=SourceConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-6, warmup_steps=10))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: GRPOLossConfig = field(default_factory=GRPOLossConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    num_steps: int = 100  # of the optimizer
    updates_per_batch: int = 1  # optimizer steps on the same rollouts
    problems_per_step: int = 32  # groups with contrast in one batch, over all ranks
    group_size: int = 8
    zero_variance: str = "backfill"  # groups without contrast: others are drawn; reject: none; duplicate others of it
    max_backfill_rounds: int = 4  # at most so many times the groups needed are drawn beside; then go on short
    surplus_cache_groups: int = 0  # groups drawn beyond need and kept for the next steps, at most so many
    surplus_cache_steps: int = 1  # ... and for at most so many steps: they age as the policy moves on
    surplus_cache_refresh: bool = False  # problems of groups that grew too old are drawn again, before others
    skip_solved_steps: int = 0  # a problem whose whole group was right is passed over for so many steps
    truncated: str = "keep"  # rollouts cut by the limit: learnt from, or mask: credited but without loss
    alarms: bool = True  # for collapse and reward hacking; see falcon_h1r.grpo.alarms
    dev_every_steps: int = 0  # accuracy on the development problems, for the curve; 0: never
