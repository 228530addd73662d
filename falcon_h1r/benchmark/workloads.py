"""The work of each contender, ready to be run and timed: forward, backward and, for a training step, the update.

Both sides compute the same function of the same random weights and tokens. A piece of work returns facts about its
results (a loss, a norm of gradients), so that the page can show that they agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import FalconH1ForCausalLM

from falcon_h1r.benchmark import paths
from falcon_h1r.benchmark.cases import OURS, Case, Contender
from falcon_h1r.benchmark.meter import Laps
from falcon_h1r.config import ModelConfig
from falcon_h1r.config_stage import OptimizerConfig
from falcon_h1r.data.packing import Document, PackedBatch, pack_row
from falcon_h1r.model.load import DT_RANGE, DTYPES, planned_config, random_weights

if TYPE_CHECKING:
    from transformers import FalconH1Config

Work = Callable[[Laps], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What all cases of a run share; crosses into the processes that measure."""

    architecture: dict[str, Any]
    dtype: str
    device: str
    num_layers: int | None
    num_threads: int
    seed: int
    memory_limit_gib: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def shape(self, vocab_size: int | None = None, **changes: Any) -> FalconH1Config:
        """The model's config with this vocabulary, by default its own."""
        architecture = {**self.architecture, **changes}
        if self.num_layers is not None:
            architecture["num_hidden_layers"] = self.num_layers
        vocabulary = vocab_size or architecture["vocab_size"]
        return planned_config(ModelConfig(architecture=architecture, tokenizer_vocab_size=vocabulary))[0]


def prepare(case: Case, contender: Contender, setup: Setup) -> Work:
    """Build weights and inputs; what is returned runs once a call."""
    torch.manual_seed(setup.seed)
    prepare_part = {
        "scan": _mixer_work,
        "scan_alone": _scan_work,
        "model": _model_work,
        "lengths": _model_work,
        "row": _training_step_work,
        "loss": _loss_work,
    }[case.part]
    return prepare_part(case, contender, setup)


def random_model(shape: FalconH1Config, setup: Setup) -> FalconH1ForCausalLM:
    """Random weights made on the device, as where training starts from scratch."""
    with torch.device(setup.device):
        model = random_weights(shape, DTYPES[setup.dtype])
    return model.train()  # no dropout; the mode in which transformers takes its fused kernel


def random_row(lengths: tuple[int, ...], vocab_size: int, setup: Setup) -> PackedBatch:
    """Documents of random tokens; every token but a document's first carries loss."""
    tokens = torch.randint(vocab_size, (sum(lengths),)).split(lengths)
    documents = [Document(ids.tolist(), [0.0] + [1.0] * (len(ids) - 1)) for ids in tokens]
    return pack_row(documents).to(torch.device(setup.device))


def _chunking(contender: Contender) -> dict[str, int]:
    """What a contender changes about the shape: results do not depend on it."""
    return {} if contender.chunk_size is None else {"mamba_chunk_size": contender.chunk_size}


# -----------------------------------------------------------------------------
# A mixer, and its scan


def _mixer_work(case: Case, contender: Contender, setup: Setup) -> Work:
    shape = setup.shape(vocab_size=512, num_hidden_layers=1, **_chunking(contender))
    mixer = random_model(shape, setup).model.layers[0].mamba
    batch = random_row(case.lengths, 512, setup)
    inputs = torch.randn(case.num_tokens, shape.hidden_size).to(setup.device, DTYPES[setup.dtype])
    forward = paths.our_mixer(mixer, batch) if contender.path == OURS else paths.transformers_mixer(mixer)
    return _differentiated(forward, (inputs,), list(mixer.parameters()))


def _scan_work(case: Case, contender: Contender, setup: Setup) -> Work:
    shape = setup.shape(vocab_size=512)
    tokens, heads = case.num_tokens, shape.mamba_n_heads
    dtype = DTYPES[setup.dtype]
    x = torch.randn(tokens, heads, shape.mamba_d_head, dtype=dtype)
    B, C = (torch.randn(tokens, shape.mamba_n_groups, shape.mamba_d_state, dtype=dtype) for _ in range(2))
    low, high = (math.log(bound) for bound in DT_RANGE)
    dt = torch.exp(torch.rand(tokens, heads) * (high - low) + low)
    A, D = -torch.arange(1.0, heads + 1), torch.ones(heads)
    inputs = tuple(tensor.to(setup.device) for tensor in (x, dt, A, B, C, D))
    batch = random_row(case.lengths, 512, setup)
    forward = paths.our_scan(batch) if contender.path == OURS else paths.transformers_scan(contender.chunk_size)
    return _differentiated(forward, inputs, [])


def _differentiated(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], parameters: list[nn.Parameter]) -> Work:
    """Forward and backward to all inputs and parameters, from one fixed gradient.

    Args:
        forward: its result has the shape of its first input.
    """
    grad_outputs = torch.randn(inputs[0].shape).to(inputs[0])
    leaves = [*(tensor.requires_grad_() for tensor in inputs), *parameters]

    def work(laps: Laps) -> dict[str, float]:
        outputs = forward(*inputs)
        laps.mark("forward")
        outputs.backward(grad_outputs)
        laps.mark("backward")
        return {"output_norm": float(outputs.detach().norm()), "grad_norm": _take_grad_norm(leaves)}

    return work


# -----------------------------------------------------------------------------
# The model, a training step, the head


def _model_work(case: Case, contender: Contender, setup: Setup) -> Work:
    shape = setup.shape(case.vocab_size, **_chunking(contender))
    model = random_model(shape, setup)
    batch = random_row(case.lengths, shape.vocab_size, setup)
    losses = paths.losses(contender.path, model, batch)

    def work(laps: Laps) -> dict[str, float]:
        total = 0.0
        for compute_loss in losses:
            loss = compute_loss()
            laps.mark("forward")
            loss.backward()
            laps.mark("backward")
            total += loss.item()
        return {"loss": total, "grad_norm": _take_grad_norm(list(model.parameters()))}

    return work


def _training_step_work(case: Case, contender: Contender, setup: Setup) -> Work:
    shape = setup.shape(case.vocab_size)
    batch = random_row(case.lengths, shape.vocab_size, setup)
    engine = paths.training_engine(random_model(shape, setup), case.recompute, setup.optimizer)

    def work(laps: Laps) -> dict[str, float]:
        loss = paths.engine_loss(engine, batch)
        laps.mark("forward")
        engine.backward(loss)
        laps.mark("backward")
        grad_norm = engine.step().grad_norm
        laps.mark("step")
        return {"loss": loss.item(), "grad_norm": grad_norm}

    return work


def _loss_work(case: Case, contender: Contender, setup: Setup) -> Work:
    shape = setup.shape(case.vocab_size, num_hidden_layers=1)
    model = random_model(shape, setup)
    batch = random_row(case.lengths, shape.vocab_size, setup)
    hidden = torch.randn(case.num_tokens, shape.hidden_size).to(setup.device, DTYPES[setup.dtype]).requires_grad_()
    logprobs_of = paths.head_logprobs(contender.path, model, batch)

    def work(laps: Laps) -> dict[str, float]:
        loss = -logprobs_of(hidden).sum() / batch.loss_weights.sum()
        laps.mark("forward")
        loss.backward()
        laps.mark("backward")
        return {"loss": loss.item(), "grad_norm": _take_grad_norm([hidden, model.lm_head.weight])}

    return work


def _take_grad_norm(leaves: list[Any]) -> float:
    """The norm of all gradients together, which are then let go."""
    norms = [leaf.grad.norm().double() for leaf in leaves if leaf.grad is not None]
    for leaf in leaves:
        leaf.grad = None
    return float(torch.stack(norms).norm())
