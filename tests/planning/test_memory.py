"""The plan's bytes are those of the model and of what autograd keeps; more sharing never needs more memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from falcon_h1r.benchmark.cases import equal_lengths, mixed_lengths
from falcon_h1r.benchmark.workloads import Setup, random_model, random_row
from falcon_h1r.config import LoRAConfig
from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.hybrid import hybrid_layer, rotary_angles
from falcon_h1r.model.lora import add_adapters
from falcon_h1r.model.precision import compute_in
from falcon_h1r.model.row import Row
from falcon_h1r.planning.activations import kept_between, layer_kept
from falcon_h1r.planning.layout import Layout
from falcon_h1r.planning.measure import padded_share
from falcon_h1r.planning.memory import MemoryEstimate, estimate_memory
from falcon_h1r.planning.search import DEGREES, KEEPING, Subject
from falcon_h1r.planning.shape import Widths, count_parameters
from falcon_h1r.planning.state_bytes import state_bytes
from tests.conftest import TINY_ARCHITECTURE

TOKENS = 4096  # enough for norms and gates to run in blocks, as they do in rows that matter
NARROW: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_d_ssm": 256,
    "mamba_n_heads": 4,
    "mamba_d_head": 64,
    "mamba_n_groups": 2,
    "mamba_d_state": 32,
    "mamba_rms_norm": True,
    "tie_word_embeddings": False,
    "vocab_size": 512,
}
MULTIPLIERS: dict[str, Any] = {
    "attention_in_multiplier": 0.9,
    "ssm_in_multiplier": 0.4,
    "key_multiplier": 0.5,
    "mlp_multipliers": [0.3, 0.03],
}


def setup_of(architecture: dict[str, Any], dtype: str = "float32") -> Setup:
    return Setup(architecture, dtype, "cpu", None, 1, seed=0)


def estimate(subject: Subject, layout: Layout) -> MemoryEstimate:
    return estimate_memory(subject.widths, subject.parameters, layout)


# -----------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_by_part_are_those_of_the_model(tied: bool) -> None:
    setup = setup_of({**TINY_ARCHITECTURE, "vocab_size": 320, "tie_word_embeddings": tied})
    model, counted = random_model(setup.shape(), setup), count_parameters(setup.shape(), LoRAConfig())
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.embedding == model.model.embed_tokens.weight.numel()
    assert counted.head == (0 if tied else model.lm_head.weight.numel())
    assert counted.full_precision == sum(
        weight.numel()
        for layer in model.model.layers
        for weight in (layer.mamba.A_log, layer.mamba.D, layer.mamba.dt_bias)
    )


def test_the_7b_is_counted_whole(subject_7b: Subject) -> None:
    assert subject_7b.parameters.total == 7_585_648_736


@pytest.mark.parametrize(("dtype", "rank"), [("float32", 0), ("bfloat16", 4), ("float32", 4)])
def test_weight_and_gradient_bytes_are_those_of_the_model(dtype: str, rank: int) -> None:
    setup, lora = setup_of({**TINY_ARCHITECTURE, "vocab_size": 320}, dtype), LoRAConfig(rank=rank)
    model = random_model(setup.shape(), setup)
    if rank:
        add_adapters(model, lora, seed=0)
    layout = Layout(1, 64, dtype=dtype, engine="torch", lora_rank=rank, lora_targets=tuple(lora.target_modules))
    state = state_bytes(count_parameters(setup.shape(), lora), layout)
    assert state.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert state.phases["layers"].gradients == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert state.optimizer == 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)


def test_a_sharded_run_holds_twenty_bytes_a_parameter_over_all_ranks(subject_7b: Subject) -> None:
    parameters = subject_7b.parameters
    for num_ranks in (1, 8, 256):
        state = state_bytes(parameters, Layout(num_ranks, 64, zero_stage=3))
        # 4 weight, 4 gradient, 8 moments, and ZeRO's own copy of the weights
        held = state.weights + state.optimizer + state.phases["loss"].gradients
        assert held == pytest.approx(20 * parameters.total / num_ranks, rel=1e-6)


# -----------------------------------------------------------------------------
# Activations


def kept_by_autograd(setup: Setup, dtype: torch.dtype, lengths: tuple[int, ...], lora: LoRAConfig) -> int:
    """Bytes of all storages that one layer's forward saves, weights aside."""
    model = random_model(setup.shape(), setup)
    compute_in(model, dtype)
    if lora.rank:
        add_adapters(model, lora, seed=0)
    batch = random_row(lengths, 512, setup)
    row, rotation = Row.from_batch(batch), rotary_angles(model, batch.position_ids)
    aside = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), *rotation)}
    aside |= {tensor.untyped_storage().data_ptr() for tensor in (row.position_ids, row.seq_idx, row.slots)}
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in aside:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or a freed block's address would be used again
        return tensor

    hidden = torch.randn(sum(lengths), setup.shape().hidden_size, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hybrid_layer(model.model.layers[0], hidden, row, rotation)
    return sum(found.values())


@pytest.mark.parametrize(
    "changes", [{}, MULTIPLIERS, {"ssm_in_multiplier": 0.4}], ids=["plain", "scaled", "one scaled"]
)
@pytest.mark.parametrize(("dtype", "rank"), [("float32", 0), ("bfloat16", 0), ("float32", 4), ("bfloat16", 4)])
def test_what_a_layer_keeps_is_what_autograd_saves(changes: dict[str, Any], dtype: str, rank: int) -> None:
    lora = LoRAConfig(rank=rank)
    setup = setup_of({**NARROW, **changes}, dtype if rank else "float32")
    layout = Layout(
        1,
        TOKENS,
        dtype=dtype,
        engine="torch",
        lora_rank=rank,
        lora_targets=tuple(lora.target_modules) if rank else (),
        backend="cpu",
    )
    kept = kept_by_autograd(setup, getattr(torch, dtype), equal_lengths(TOKENS, 2), lora)
    assert layer_kept(Widths.of(setup.shape()), layout).total == pytest.approx(kept, rel=0.01)


def test_documents_of_different_lengths_are_kept_padded_too() -> None:
    setup, lengths = setup_of(NARROW), mixed_lengths(TOKENS, 6)
    layout = Layout(1, TOKENS, dtype="float32", engine="torch", backend="cpu", padded_share=padded_share(lengths))
    kept = kept_by_autograd(setup, torch.float32, lengths, LoRAConfig())
    assert layer_kept(Widths.of(setup.shape()), layout).total == pytest.approx(kept, rel=0.01)


def test_padding_is_that_of_the_rows_buckets() -> None:
    lengths = mixed_lengths(3000)
    row = Row.from_batch(pack_row([Document([1] * length, [0.0] + [1.0] * (length - 1)) for length in lengths]))
    assert padded_share(lengths) == sum(count * longest for count, longest in row.buckets) / 3000
    assert padded_share((8, 8, 8)) is None


def test_what_is_kept_between_passes_falls_with_checkpointing(subject_7b: Subject) -> None:
    kept = layer_kept(subject_7b.widths, Layout(8, 36_864))
    sizes = [
        kept_between(subject_7b.widths, Layout(8, 36_864, checkpointing=mode, activation_offload=offload), kept)
        for mode, offload in KEEPING
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(KEEPING)
    assert sizes[2] == 36_864 * 3072 * 2  # layer: its input, (t, E) in bfloat16
    assert sizes[3] == 0


# -----------------------------------------------------------------------------
# Properties of the whole

STAGES = st.sampled_from([("torch", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)])
LAYOUTS = st.builds(
    lambda engine, keeping, rows, backend: Layout(
        64, rows * 1024, engine=engine[0], zero_stage=engine[1], checkpointing=keeping[0],
        activation_offload=keeping[1], backend=backend,
    ),
    STAGES,
    st.sampled_from(KEEPING),
    st.integers(2, 64),
    st.sampled_from(["cpu", "cuda"]),
)  # fmt: skip


@given(layout=LAYOUTS)
def test_a_higher_sequence_degree_never_needs_more_memory(subject_7b: Subject, layout: Layout) -> None:
    peaks = [estimate(subject_7b, replace(layout, sequence_parallel=degree)).peak_bytes for degree in DEGREES]
    assert peaks == sorted(peaks, reverse=True)


@given(layout=LAYOUTS)
def test_more_ranks_never_need_more_memory_each(subject_7b: Subject, layout: Layout) -> None:
    peaks = [estimate(subject_7b, replace(layout, num_gpus=number)).peak_bytes for number in (2, 8, 64, 256)]
    assert peaks == sorted(peaks, reverse=True)


@given(layout=LAYOUTS)
def test_a_longer_row_never_needs_less_memory(subject_7b: Subject, layout: Layout) -> None:
    longer = replace(layout, row_tokens=layout.row_tokens + 1024)
    assert estimate(subject_7b, longer).peak_bytes >= estimate(subject_7b, layout).peak_bytes


@given(layout=LAYOUTS)
def test_recomputing_never_needs_more_memory(subject_7b: Subject, layout: Layout) -> None:
    peaks = [
        estimate(subject_7b, replace(layout, checkpointing=mode, activation_offload=offload)).peak_bytes
        for mode, offload in KEEPING
    ]
    assert peaks == sorted(peaks, reverse=True)


@given(layout=LAYOUTS)
def test_the_parts_are_the_peak(subject_7b: Subject, layout: Layout) -> None:
    found = estimate(subject_7b, layout)
    assert found.peak_bytes == max(found.moments.values()) == found.moments[found.moment]
    assert min(vars_of(found)) >= 0


def vars_of(found: MemoryEstimate) -> list[int]:
    parts = found.parts
    return [
        parts.weights,
        parts.gradients,
        parts.optimizer,
        parts.activations,
        parts.working,
        parts.logits,
        parts.buffers,
    ]


def test_the_optimizer_moves_to_the_cpu(subject_7b: Subject) -> None:
    on_gpu = estimate(subject_7b, Layout(8, 8192, zero_stage=2))
    offloaded = estimate(subject_7b, Layout(8, 8192, zero_stage=2, optimizer_offload=True))
    assert offloaded.parts.optimizer == 0 < on_gpu.parts.optimizer
    assert offloaded.host_bytes > on_gpu.parts.optimizer
    assert offloaded.peak_bytes < on_gpu.peak_bytes


def test_the_whole_vocabulary_never_stands_for_a_whole_row(subject_7b: Subject) -> None:
    logits = 36_864 * subject_7b.widths.vocabulary * 4
    for stage in (1, 2, 3):
        found = estimate(subject_7b, Layout(8, 36_864, zero_stage=stage))
        assert found.parts.logits < logits / 4


def test_narrow_copies_are_of_all_linear_layers() -> None:
    setup = setup_of(NARROW)
    layer = random_model(setup.shape(), setup).model.layers[0]
    linear = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    widths = Widths.of(setup.shape())
    narrow, wide = (
        layer_kept(widths, Layout(1, 64, dtype=dtype, engine="torch", backend="cpu")).total
        for dtype in ("bfloat16", "float32")
    )
    assert narrow - wide / 2 == pytest.approx(2 * linear, rel=0.05)
