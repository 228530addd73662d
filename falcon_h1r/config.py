"""Every setting of every recipe, as dataclasses: the schema that Hydra checks keys and types against.

One tree serves all recipes; each reads the sections it needs. Units are in the names. Checks across fields
stand in falcon_h1r/config_checks.py and run before anything is loaded. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from falcon_h1r.config_data import CurateConfig
from falcon_h1r.config_evaluate import EvaluateConfig, ScalingConfig
from falcon_h1r.config_grpo import GRPOConfig
from falcon_h1r.config_run import CheckpointConfig, EngineConfig, LaunchConfig, SupervisionConfig, TrackingConfig
from falcon_h1r.config_sources import SourceConfig
from falcon_h1r.config_stage import LimitsConfig, OptimizerConfig
from falcon_h1r.config_tools import BenchmarkSuiteConfig, DoctorConfig, PlanConfig

# Optional[...] rather than `... | None`, and no Literal: OmegaConf reads these annotations at run time.
# ruff: noqa: UP045

FALCON_SYSTEM_PROMPT = (
    "You are Falcon, a helpful AI assistant created by Technology Innovation Institute (TII). To answer the "
    "user's question, you first think about the reasoning process and then provide the user with the answer. "
    "The reasoning process is enclosed within <think> </think> tags, i.e., <think> reasoning process here "
    "</think> answer here."
)

# -----------------------------------------------------------------------------
# What all stages share


@dataclass
class LoRAConfig:
    """Low-rank adapters that are trained instead of the weights; see falcon_h1r.model.lora."""

    rank: int = 0  # 0: all weights are trained
    alpha: float = 16.0  # adapters count alpha / rank times
    dropout: float = 0.0  # has to be 0: trainer and sampler would not compute the same logprobs
    target_modules: list[str] = field(  # all that can be adapted
        default_factory=lambda: "q_proj k_proj v_proj o_proj in_proj gate_proj up_proj down_proj".split()
    )


@dataclass
class ModelConfig:
    """The checkpoint a stage starts from, or the random model it creates where `path` is null."""

    path: Optional[str] = None  # folder or hub name
    revision: Optional[str] = None  # pin a hub checkpoint to a commit
    local_files_only: bool = False  # never ask the hub
    dtype: str = "float32"  # float32, bfloat16 or float64; A_log, D and dt_bias stay float32 at least
    architecture: dict[str, Any] = field(default_factory=dict)  # FalconH1Config's fields, for a random model
    tokenizer_vocab_size: int = 384  # of the tokenizer trained for a random model
    chat_template: Optional[str] = None  # a Jinja file: replaces the tokenizer's template, or gives it one
    lora: LoRAConfig = field(default_factory=LoRAConfig)


# -----------------------------------------------------------------------------
# The stages


@dataclass
class ConversationConfig:
    """Of traces with several turns: which reasoning stays, and which turns carry loss."""

    strip_earlier_thinking: bool = True  # of all assistant's turns but the last, which alone carries loss
    tool_calls_keep_thinking: bool = (
        True  # where tools are called: reasoning stays, every assistant's turn carries loss
    )


@dataclass
class TokenStoreConfig:
    """Where the tokenised corpus is kept, and who makes it; see falcon_h1r.data.token_store."""

    cache: Optional[str] = None  # a folder that runs and nodes may share; null: tokens/ of the run's folder
    num_workers: int = 1  # processes that tokenise, on each node
    stage: Optional[str] = None  # a folder on the node's own disk, to which the tokens are copied and read from


@dataclass
class SFTConfig:
    """The cold start."""

    data: SourceConfig = field(default_factory=SourceConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_sequences: Optional[int] = 32  # of one optimizer step, over all ranks; null where batch_rows is set
    batch_rows: Optional[int] = None  # or so many full rows of row_tokens, over all data ranks
    denominator: str = "weights"  # of a step's loss: weights or tokens; see falcon_h1r.sft.losses
    num_steps: Optional[int] = None  # null: as many as num_epochs needs
    num_epochs: float = 1.0
    overlong: str = "drop"  # traces beyond prompt_tokens + response_tokens: drop, or trim on the right
    conversations: ConversationConfig = field(default_factory=ConversationConfig)
    tokens: TokenStoreConfig = field(default_factory=TokenStoreConfig)
    dev_every_steps: int = 0  # accuracy on the development problems, for the curve; 0: never


@dataclass
class DevConfig:
    """Held-out problems for the learning curves of SFT and GRPO, never those of the evaluation. No path, no curve."""

    data: SourceConfig = field(default_factory=SourceConfig)
    num_problems: Optional[int] = 128  # the first so many; null: all
    num_samples: int = 4


@dataclass
class CodeVerifierConfig:
    """The sandboxes behind the code reward; see falcon_h1r.verifier.code."""

    num_workers: int = 1  # programs that run at once, each on up to one core
    cpu_seconds: float = 6.0  # of CPU time for one test: the budget that decides
    deadline_seconds: float = 30.0  # for one test by the clock on the wall; beyond, it is undecided
    memory_limit_gib: float = 1.0  # of a program's address space
    max_tests: Optional[int] = None  # of one problem, the same ones for every response; null: all
    sandbox_url: Optional[str] = None  # .../run_code of a sandbox elsewhere; null: this machine's


@dataclass
class VerifierConfig:
    """The pool of workers behind the reward."""

    num_workers: int = 1
    deadline_seconds: float = 1.2  # CPU time for one pair's algebra
    fallbacks: list[str] = field(default_factory=list)  # without a box: answer, hash, math, number, in this order
    code: CodeVerifierConfig = field(default_factory=CodeVerifierConfig)  # for problems with tests


@dataclass
class ExportConfig:
    """What goes into the model card, and how the model is served."""

    licence: Optional[str] = None  # of the weights
    attribution: Optional[str] = None  # a sentence that the licence demands
    serve_context_tokens: Optional[int] = None
    reasoning_parser: Optional[str] = None  # the server's name for how thinking is told from the answer


@dataclass
class Config:
    """The root. `name` names the run folder, runs/NAME, where `run_dir` is null."""

    name: str = "run"
    run_dir: Optional[str] = None
    seed: int = 0
    resume: bool = False  # go on with the run in run_dir from its newest whole checkpoint; start it where there is none
    dry_run: bool = False  # resolve, check, read the head of the data, stop
    dry_run_steps: int = 0  # with dry_run: so many steps of a model of the same shape, a sliver wide
    system_prompt: str = FALCON_SYSTEM_PROMPT
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    dev: DevConfig = field(default_factory=DevConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    benchmark: BenchmarkSuiteConfig = field(default_factory=BenchmarkSuiteConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
