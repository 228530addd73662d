"""What the checks work on: the run's config, this rank's world, and a small model that stands in for the run's.

The small model has the run's heads, their widths and states (which decide the kernels), its multipliers and settings;
its hidden size and number of layers are cut. `doctor.full=true` takes the run's own model instead.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.falcon_h1.modeling_falcon_h1 import compute_mup_vector

from falcon_h1r.config import Config, ModelConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document
from falcon_h1r.data.tokenisation import train_tokenizer
from falcon_h1r.distributed.engine import Engine
from falcon_h1r.distributed.engines import open_engine
from falcon_h1r.distributed.world import World
from falcon_h1r.dry_run.steps import shrunken_architecture
from falcon_h1r.model.load import DTYPES, load_model, load_tokenizer, planned_config, random_policy
from falcon_h1r.model.lora import add_adapters
from falcon_h1r.model.precision import compute_in

if TYPE_CHECKING:
    from transformers import FalconH1Config, FalconH1ForCausalLM, PreTrainedTokenizerBase

# The smallest update that SFT and GRPO of the published recipe are made of.
# Adam's epsilon would swallow gradients as small as a stand-in may have.
SETTINGS = OptimizerConfig(learning_rate=1e-5, weight_decay=0.0, schedule="constant", epsilon=1e-15)
DOCUMENT_TOKENS = (48, 3, 31, 2, 9, 27)  # very unequal, as in a packed row
ROW_TOKENS = 64  # several documents share a row, and there is more than one row
TEXTS = ["Compute 12 + 30. Twelve and thirty make 42. The answer is 42."] * 20
VOCABULARY = 512
PLANNED_STEPS = 8
LOGIT_SPREAD = 2.0  # standard deviation


@dataclass
class Examination:
    """One rank's side of it. A check may keep nothing but the engine that it has opened."""

    config: Config
    folder: Path  # of the run, which the file system is judged by
    world: World
    engine: Engine | None = field(default=None, repr=False)

    @cached_property
    def shape(self) -> FalconH1Config:
        """Of the model that the run trains."""
        return planned_config(self.config.model)[0]

    @property
    def dtype(self) -> torch.dtype:
        """In which the run's forward computes."""
        return DTYPES[self.config.model.dtype]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model that runs here."""
        if self.config.doctor.full and self.config.model.path is not None:
            return load_tokenizer(self.config.model)
        return train_tokenizer(TEXTS, VOCABULARY)

    def make_model(self, seed: int) -> FalconH1ForCausalLM:
        """The model that runs here, ready to train: the same on every rank."""
        settings, full = self.config.model, self.config.doctor.full
        if full and settings.path is not None:
            model = load_model(settings, self.world.device, to_train=not settings.lora.rank)
        else:
            architecture = settings.architecture if full else small_architecture(self.shape)
            kept = settings.dtype if settings.lora.rank or self.dtype == torch.float64 else "float32"
            small = ModelConfig(architecture=architecture, dtype=kept)
            model = random_policy(small, self.tokenizer, seed).to(self.world.device).eval()
            compute_in(model, self.dtype)
            sharpen(model)
            for layer in model.model.layers:
                layer.mamba.mup_vector = compute_mup_vector(model.config).to(self.world.device, self.dtype)
        if settings.lora.rank:
            add_adapters(model, settings.lora, seed)
        return model

    def open_engine(self, seed: int = 0) -> Engine:
        """The configured engine around that model; its start proves the gradient's scale.

        Raises:
            InputError, RuntimeError: as the engine does.
        """
        model = self.make_model(self.config.seed + seed)
        return open_engine(model, SETTINGS, PLANNED_STEPS, self.world, self.config.engine)

    def opened_engine(self) -> Engine:
        """The engine that an earlier check has opened, or a new one. It meets this check's world."""
        if self.engine is None:
            self.engine = self.open_engine()
        self.engine.world = self.world
        return self.engine

    def documents(self) -> list[Document]:
        """A step's: random tokens, each weighed."""
        rng = random.Random(self.config.seed)
        return [
            Document([rng.randrange(len(self.tokenizer)) for _ in range(length)], [0.0] + [1.0] * (length - 1))
            for length in DOCUMENT_TOKENS
        ]


@torch.no_grad()
def sharpen(model: FalconH1ForCausalLM) -> None:
    """Scale a random model's head until its logits spread like a trained one's: by `LOGIT_SPREAD`.

    Multipliers are tuned to the run's width. On a narrower one logits are all but equal, and sampler and trainer
    would agree whatever either computes.
    """
    if not model.config.tie_word_embeddings:
        weight = model.lm_head.weight
        spread = model.model.lm_head_multiplier * weight.float().std().item() * model.config.hidden_size**0.5
        weight.mul_(LOGIT_SPREAD / spread)


def small_architecture(shape: FalconH1Config) -> dict[str, Any]:
    """The run's shape with its hidden sizes and layers cut; heads and all that a kernel sees of them stay."""
    return {
        **shrunken_architecture(shape),
        "head_dim": getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads,
        "mamba_d_head": shape.mamba_d_head,
        "mamba_d_ssm": shape.mamba_d_head * shape.mamba_n_heads,
        "mamba_d_state": shape.mamba_d_state,
    }
