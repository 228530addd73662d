"""A layout: how a training run is spread over GPUs, and what it keeps. Its memory and speed are what is planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from falcon_h1r.config import Config

DTYPE_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class Layout:
    """What the engine section and the row's length say, for so many GPUs."""

    num_gpus: int
    row_tokens: int  # T, shared by the ranks of a sequence group
    dtype: str = "bfloat16"
    engine: str = "deepspeed"
    zero_stage: int = 0
    optimizer_offload: bool = False
    sequence_parallel: int = 1  # s
    checkpointing: str = "none"
    activation_offload: bool = False
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    backend: str = "cuda"  # whose kernels' working memory counts: cuda or cpu
    padded_share: float | None = None  # bucketed attention: of the row, what buckets hold; None: read where it lies

    @property
    def rank_tokens(self) -> int:
        """t = T / s: the tokens of a rank between attention and scan."""
        return -(-self.row_tokens // self.sequence_parallel)

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that see rows of their own."""
        return self.num_gpus // self.sequence_parallel

    @property
    def size(self) -> int:
        """Bytes of a number in the model's dtype."""
        return DTYPE_BYTES[self.dtype]

    @property
    def wide(self) -> int:
        """Bytes of a number where float32 is the least."""
        return max(4, self.size)

    @property
    def weight_size(self) -> int:
        """Bytes that a weight is kept in: those that are trained in float32 at least, frozen ones as they compute."""
        return self.size if self.lora_rank else self.wide

    @property
    def casts_weights(self) -> bool:
        """Whether the forward makes narrow copies of the weights, which the backward needs again."""
        return self.size < self.weight_size

    def describe(self) -> str:
        """`ZeRO 2, sequence 2, checkpointing selective`."""
        zero = f"ZeRO {self.zero_stage}" if self.engine == "deepspeed" else "replicas"
        parts = [zero, f"sequence {self.sequence_parallel}", f"checkpointing {self.checkpointing}"]
        if self.activation_offload:
            parts.append("activations on the CPU")
        if self.optimizer_offload:
            parts.append("optimizer on the CPU")
        return ", ".join(parts)

    def overrides(self) -> str:
        """The settings that ask for this layout, as one types them."""
        settings = [
            f"engine.name={self.engine}",
            f"engine.zero_stage={self.zero_stage}",
            f"engine.sequence_parallel={self.sequence_parallel}",
            f"engine.activation_checkpointing={self.checkpointing}",
        ]
        settings += ["engine.activation_offload=true"] if self.activation_offload else []
        settings += ["engine.optimizer_offload=true"] if self.optimizer_offload else []
        return " ".join(settings)


def layout_of(config: Config, num_gpus: int, row_tokens: int) -> Layout:
    """The one that the config asks for."""
    engine, lora = config.engine, config.model.lora
    return Layout(
        num_gpus=num_gpus,
        row_tokens=row_tokens,
        dtype=config.model.dtype,
        engine=engine.name,
        zero_stage=engine.zero_stage,
        optimizer_offload=engine.optimizer_offload,
        sequence_parallel=engine.sequence_parallel,
        checkpointing=engine.activation_checkpointing,
        activation_offload=engine.activation_offload,
        lora_rank=lora.rank,
        lora_targets=tuple(lora.target_modules) if lora.rank else (),
    )
