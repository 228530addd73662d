"""The sizes of a model that memory and time are reckoned from: widths, and parameters by part.

Parameters are counted on a model without memory, so that no formula of ours can be wrong about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from falcon_h1r.benchmark.flops import attention_head_dim, conv_channels, inner_channels
from falcon_h1r.model.precision import FULL_PRECISION

if TYPE_CHECKING:
    from transformers import FalconH1Config

    from falcon_h1r.config import LoRAConfig


@dataclass(frozen=True, slots=True)
class Widths:
    """Of one layer and the vocabulary; the letters are those of docs/plan.md."""

    num_layers: int  # L
    hidden: int  # E
    mlp: int  # I
    query: int  # H d
    key: int  # K d
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # d
    inner: int  # D = M P, of the mixer
    num_ssm_heads: int  # M
    states: int  # 2 G N: B and C of a token
    ssm_state: int  # M P N: the state of a sequence
    conv: int  # C = D + 2 G N
    conv_kernel: int
    chunk: int  # Q, of the GPU's scan
    vocabulary: int  # V
    scaled_inputs: int  # copies of the normed input that projections keep: one, or two where multipliers differ
    scaled_mlp_output: bool  # a multiplier of the MLP's output other than 1

    @property
    def projection(self) -> int:
        """What in_proj gives a token: gate, convolution's input, dt."""
        return self.inner + self.conv + self.num_ssm_heads

    @classmethod
    def of(cls, config: FalconH1Config) -> Widths:
        head_dim, inner = attention_head_dim(config), inner_channels(config)
        multipliers = (config.attention_in_multiplier, config.ssm_in_multiplier)
        num_scaled = sum(multiplier != 1.0 for multiplier in multipliers)
        return cls(
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            mlp=config.intermediate_size,
            query=config.num_attention_heads * head_dim,
            key=config.num_key_value_heads * head_dim,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            inner=inner,
            num_ssm_heads=config.mamba_n_heads,
            states=2 * config.mamba_n_groups * config.mamba_d_state,
            ssm_state=inner * config.mamba_d_state,
            conv=conv_channels(config),
            conv_kernel=config.mamba_d_conv,
            chunk=config.mamba_chunk_size,
            vocabulary=config.vocab_size,
            # With both multipliers the normed input itself is kept by nobody; with none or one, it is.
            scaled_inputs=2 if num_scaled else 1,
            scaled_mlp_output=config.mlp_multipliers[1] != 1.0,
        )


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters by part. Tied embeddings count once, and the head is then 0."""

    embedding: int
    head: int
    layers: int  # all layers and the last norm, but for the next
    full_precision: int  # A_log, D and dt_bias
    largest: int  # the largest single weight
    adapters: int = 0  # of LoRA, float32 at least; the only ones trained where there are any
    adapter_tensors: int = 0

    @property
    def total(self) -> int:
        """Without adapters."""
        return self.embedding + self.head + self.layers + self.full_precision

    @property
    def trained(self) -> int:
        return self.adapters or self.total


def count_parameters(config: FalconH1Config, lora: LoRAConfig) -> Parameters:
    """By part, on a model without memory."""
    from falcon_h1r.model.load import weightless_model
    from falcon_h1r.model.lora import add_adapters, is_adapter

    model = weightless_model(config)
    embedding = head = layers = full_precision = largest = 0
    for name, parameter in model.named_parameters():
        number = parameter.numel()
        largest = max(largest, number)
        if name == "model.embed_tokens.weight":
            embedding += number
        elif name == "lm_head.weight":
            head += number
        elif name.endswith(FULL_PRECISION):
            full_precision += number
        else:
            layers += number
    adapters = []
    if lora.rank:
        adapted = add_adapters(model, lora, seed=0)
        adapters = [parameter.numel() for name, parameter in adapted.named_parameters() if is_adapter(name)]
    return Parameters(embedding, head, layers, full_precision, largest, sum(adapters), len(adapters))
