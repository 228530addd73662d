"""A few real optimizer steps of a model with the run's shape and a sliver of its width.

Heads, KV heads, groups, multipliers and the optimizer's settings are the run's own; widths are cut to a 32nd,
layers to two, the vocabulary to a tokenizer's that is trained on the spot. One process on the CPU: what is
tried is that the pieces fit, not how they are spread over ranks.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from falcon_h1r.config import Config, ModelConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.model.multipliers import MULTIPLIERS
from falcon_h1r.types import InputError, Trace

if TYPE_CHECKING:
    from transformers import FalconH1Config

    from falcon_h1r.data.packing import Document
    from falcon_h1r.distributed.engine import TorchEngine

SHRINK = 32
SMALLEST_WIDTH, SMALLEST_STATE = 16, 8
NUM_LAYERS = 2
NUM_SEQUENCES = 4  # of a step, at most
NUM_TRACES = 16


def run_steps(config: Config, stage: str, shape: FalconH1Config) -> list[tuple[str, str]]:
    """Train `dry_run_steps` steps on synthetic traces; what came out, step by step.

    Raises:
        InputError: where a loss or a gradient is not finite.
    """
    from falcon_h1r.data.tokenisation import conversation_texts, encode_traces, train_tokenizer
    from falcon_h1r.model.load import random_policy
    from falcon_h1r.model.lora import add_adapters
    from falcon_h1r.model.precision import compute_in, trained_dtype

    traces = _traces(config)
    tokenizer = train_tokenizer(conversation_texts(traces, config.system_prompt), vocab_size=512)
    architecture = shrunken_architecture(shape)
    model = random_policy(ModelConfig(architecture=architecture, dtype=config.model.dtype), tokenizer, config.seed)
    if config.model.lora.rank:
        add_adapters(model, config.model.lora, config.seed)
    else:
        compute_in(model, model.dtype)
        model.to(trained_dtype(model.dtype))
    documents = encode_traces(tokenizer, traces, config.system_prompt)
    optimizer = config.grpo.optimizer if stage == "grpo" else config.sft.optimizer
    engine = _engine(model, optimizer, config.dry_run_steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = f"{architecture['num_hidden_layers']} layers of {architecture['hidden_size']}"
    rows = [("model", f"{width}, {parameters:,} parameters, {config.model.dtype}")]
    num_sequences = min(NUM_SEQUENCES, config.sft.batch_sequences or NUM_SEQUENCES)
    for step in range(config.dry_run_steps):
        metrics = _train_step(engine, documents, step, num_sequences, config.seed)
        loss, grad_norm = metrics["loss"], metrics["grad_norm"]
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise InputError(
                f"dry_run_steps: step {step + 1} gives loss {loss} and gradient norm {grad_norm}; "
                f"look at model.architecture's multipliers and the learning rate {optimizer.learning_rate:g}"
            )
        rows.append((f"step {step + 1}", f"loss {loss:.4f}, gradient norm {grad_norm:.4f}"))
    return rows


def shrunken_architecture(shape: FalconH1Config) -> dict[str, Any]:
    """The shape with its widths and layers cut; how many heads there are, and all else, stays."""
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    mamba_d_head = max(1, shape.mamba_d_head // SHRINK)
    cut = {
        "hidden_size": max(SMALLEST_WIDTH, shape.hidden_size // SHRINK),
        "intermediate_size": max(SMALLEST_WIDTH, shape.intermediate_size // SHRINK),
        "num_hidden_layers": min(NUM_LAYERS, shape.num_hidden_layers),
        "head_dim": max(2, head_dim // SHRINK // 2 * 2),  # even, for the rotation takes pairs
        "mamba_d_head": mamba_d_head,
        "mamba_d_ssm": mamba_d_head * shape.mamba_n_heads,
        "mamba_d_state": max(SMALLEST_STATE, shape.mamba_d_state // SHRINK),
    }
    kept = (
        "num_attention_heads",
        "num_key_value_heads",
        "mamba_n_heads",
        "mamba_n_groups",
        "mamba_d_conv",
        "mamba_conv_bias",
        "mamba_proj_bias",
        "mamba_rms_norm",
        "mamba_norm_before_gate",
        "mamba_chunk_size",
        "max_position_embeddings",
        "rope_parameters",
        "rms_norm_eps",
        "attention_bias",
        "mlp_bias",
        "projectors_bias",
        "time_step_limit",
        "initializer_range",
        "tie_word_embeddings",
        *MULTIPLIERS,
    )
    return {**{name: getattr(shape, name) for name in kept}, **cut}


def _traces(config: Config) -> list[Trace]:
    from falcon_h1r.data.problems import generate_problems
    from falcon_h1r.data.teachers import teacher_named, write_traces

    problems = list(islice(generate_problems(config.seed, NUM_TRACES), NUM_TRACES))
    return list(write_traces(problems, teacher_named("verbose"), config.seed))


def _engine(model: Any, optimizer: OptimizerConfig, num_steps: int) -> TorchEngine:
    import torch

    from falcon_h1r.distributed.engine import TorchEngine
    from falcon_h1r.distributed.world import World

    return TorchEngine(model, optimizer, num_steps, World(rank=0, size=1, device=torch.device("cpu")))


def _train_step(
    engine: TorchEngine, documents: list[Document], step: int, batch_sequences: int, seed: int
) -> dict[str, float]:
    """The step of the cold start itself."""
    from falcon_h1r.sft.loop import train_step
    from falcon_h1r.sft.steps import step_documents

    row_tokens = 2 * max(len(document) for document in documents)
    return train_step(engine, step_documents(documents, step, batch_sequences, seed), row_tokens)
