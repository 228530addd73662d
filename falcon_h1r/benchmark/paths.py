"""How each contender computes: ours through the package's public entry points, transformers' and TRL's through theirs.

transformers has no packed row on a CPU that keeps documents apart. It runs them right in two ways, one document after
the other or as a right-padded batch with its mask; a row of its own with `position_ids` is fast and wrong, for they
reset its attention and neither its convolution nor its scan.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import FalconH1ForCausalLM
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer, mamba2_chunk_scan

from falcon_h1r.benchmark.cases import BY_DOCUMENT, LEAKING, OURS, PADDED
from falcon_h1r.config_run import EngineConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import PackedBatch
from falcon_h1r.distributed.engine import TorchEngine
from falcon_h1r.distributed.world import World
from falcon_h1r.model.hybrid import packed_hidden_states, packed_mixer
from falcon_h1r.model.kernels import Kernels, choose_kernels
from falcon_h1r.model.logprobs import packed_logprobs
from falcon_h1r.model.row import Row
from falcon_h1r.model.ssd import ssd_scan
from falcon_h1r.sft.losses import weighted_cross_entropy

NO_LABEL = -100  # cross_entropy's ignore_index
TRL_CHUNK_SIZE = 32_768  # vocabulary entries of a tile: what TRL's trainers call its function with


def losses(path: str, model: FalconH1ForCausalLM, batch: PackedBatch) -> list[Callable[[], Tensor]]:
    """The mean loss of a row as a sum of parts, each with a backward of its own."""
    denominator = float(batch.loss_weights.sum())
    if path == OURS:
        return [lambda: _our_loss(model, batch, denominator)]
    calls = _transformers_calls(path, batch)
    return [partial(_transformers_loss, model, arguments, labels, denominator) for arguments, labels in calls]


# -----------------------------------------------------------------------------
# Ours


def _our_loss(model: FalconH1ForCausalLM, batch: PackedBatch, denominator: float) -> Tensor:
    logprobs, _ = packed_logprobs(model, packed_hidden_states(model, batch), batch)
    return weighted_cross_entropy(logprobs, batch, denominator)


def our_mixer(mixer: FalconH1Mixer, batch: PackedBatch) -> Callable[[Tensor], Tensor]:
    row = Row.from_batch(batch)
    return lambda hidden: packed_mixer(mixer, hidden, row, kernels_for(hidden, mixer))[0]


def kernels_for(hidden: Tensor, mixer: FalconH1Mixer) -> Kernels:
    return choose_kernels(hidden.device, hidden.dtype, mixer.chunk_size)


def our_scan(batch: PackedBatch) -> Callable[..., Tensor]:
    return lambda x, dt, A, B, C, D: ssd_scan(x, dt, A, B, C, D, batch.seq_idx)[0]


def training_engine(model: FalconH1ForCausalLM, recompute: str, optimizer: OptimizerConfig) -> TorchEngine:
    """The engine of the recipes, in a world of one."""
    engine = EngineConfig(activation_checkpointing=recompute)
    return TorchEngine(model, optimizer, num_steps=1000, world=World(0, 1, model.device), engine=engine)


def engine_loss(engine: TorchEngine, batch: PackedBatch) -> Tensor:
    """The cold start's loss of one row."""
    logprobs, _ = engine.logprobs(batch)
    return weighted_cross_entropy(logprobs, batch, float(batch.loss_weights.sum()))


# -----------------------------------------------------------------------------
# transformers


def transformers_mixer(mixer: FalconH1Mixer) -> Callable[[Tensor], Tensor]:
    return lambda hidden: mixer(hidden[None])[0]


def transformers_scan(chunk_size: int | None) -> Callable[..., Tensor]:
    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        outputs: Tensor = mamba2_chunk_scan(x[None], dt[None], A, B[None], C[None], chunk_size=chunk_size, D=D)
        return outputs[0]

    return scan


def _transformers_calls(path: str, batch: PackedBatch) -> list[tuple[dict[str, Any], Tensor]]:
    """The model's arguments and the labels (sequences, tokens) of every call."""
    documents = batch.input_ids.split(batch.lengths)
    if path == BY_DOCUMENT:
        return [({"input_ids": ids[None]}, _next_tokens(ids[None])) for ids in documents]
    if path == PADDED:
        mask = pad_sequence([torch.ones_like(ids) for ids in documents], batch_first=True)
        ids = pad_sequence(list(documents), batch_first=True)
        return [({"input_ids": ids, "attention_mask": mask}, _next_tokens(ids.masked_fill(mask == 0, NO_LABEL)))]
    assert path == LEAKING, path
    labels = batch.input_ids.masked_fill(batch.position_ids == 0, NO_LABEL)[None]
    return [({"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None]}, _next_tokens(labels))]


def _next_tokens(labels: Tensor) -> Tensor:
    """Entry t becomes the label of what follows token t."""
    return F.pad(labels[:, 1:], (0, 1), value=NO_LABEL)


def _transformers_loss(
    model: FalconH1ForCausalLM, arguments: dict[str, Any], labels: Tensor, denominator: float
) -> Tensor:
    logits = model(**arguments, use_cache=False).logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    return F.cross_entropy(wide, labels.flatten(), ignore_index=NO_LABEL, reduction="sum") / denominator


# -----------------------------------------------------------------------------
# The head alone


def head_logprobs(path: str, model: FalconH1ForCausalLM, batch: PackedBatch) -> Callable[[Tensor], Tensor]:
    """Logprobs of a document's tokens from hidden states (T, E), with the entropies beside them as GRPO logs them."""
    weight, targets, scale = model.lm_head.weight, batch.input_ids[1:], model.model.lm_head_multiplier
    if path == OURS:
        return lambda hidden: packed_logprobs(model, hidden, batch)[0]
    if path == "naive":
        return lambda hidden: _naive_logprobs(hidden[:-1], weight, targets, scale)
    if importlib.util.find_spec("trl") is None:
        raise ModuleNotFoundError("trl is not installed")
    from trl.kernels import ChunkedLogProbFunction

    settings = (1.0, TRL_CHUNK_SIZE, None, scale, ("entropy",))
    return lambda hidden: ChunkedLogProbFunction.apply(hidden[:-1], weight, None, targets, *settings)[0]


def _naive_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> Tensor:
    """All logits at once: (n, E), (V, E), (n) -> (n)."""
    logits = hidden @ weight.t() * scale
    logprobs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    with torch.no_grad():
        (logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1)
