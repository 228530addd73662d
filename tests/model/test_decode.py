"""Decoding step by step: the packed forward's numbers, whatever happens to other slots meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import FalconH1Config, FalconH1ForCausalLM

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model import decode_cache
from falcon_h1r.model.decode import decode_step
from falcon_h1r.model.decode_cache import DocumentState, SlotCache
from falcon_h1r.model.decode_prefill import read_documents, read_in_chunks, read_row
from falcon_h1r.model.decode_weights import FoldedWeights, ModuleWeights, decode_weights
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.model.load import keep_full_precision
from falcon_h1r.model.precision import compute_in

KINDS = [FoldedWeights, ModuleWeights]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"mamba_rms_norm": False},
    {"mamba_norm_before_gate": True},
    {"time_step_limit": (0.01, 0.2)},
    {"num_key_value_heads": 4, "mamba_n_groups": 1, "mamba_d_conv": 2, "mamba_conv_bias": False},
]


def variant(model: FalconH1ForCausalLM, changes: dict[str, Any]) -> FalconH1ForCausalLM:
    if not changes:
        return model
    torch.manual_seed(1)
    changed = FalconH1ForCausalLM(FalconH1Config(**{**model.config.to_dict(), **changes})).double().eval()
    with torch.no_grad():
        for parameter in changed.parameters():  # norms and biases, too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return changed


def literal_logits(model: FalconH1ForCausalLM, ids: list[int]) -> Tensor:
    """Of the next token: the packed forward over all tokens, which is what a cache has to give."""
    hidden = packed_hidden_states(model, pack_row([Document(ids, [0.0] * len(ids))]))[-1]
    logits: Tensor = model.lm_head(hidden) * model.model.lm_head_multiplier
    return logits


def opened(model: FalconH1ForCausalLM, documents: list[list[int]], max_slots: int = 16) -> SlotCache:
    cache = SlotCache(model, max_slots, model.device)
    for state in read_row(model, documents):
        cache.admit(state, 1)
    return cache


def random_ids(lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(300, size=length).tolist() for length in lengths]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_step_gives_the_packed_forwards_logits(tiny_model, kind: Any, changes: dict[str, Any]) -> None:
    model = variant(tiny_model, changes)
    documents = random_ids([5, 1, 17])
    cache, weights = opened(model, documents), kind(model)
    for step in range(6):
        drawn = [(7 * step + slot) % 300 for slot in range(3)]
        for document, token in zip(documents, drawn, strict=True):
            document.append(token)
        logits = decode_step(weights, cache, torch.tensor(drawn))
        expected = torch.stack([literal_logits(model, document) for document in documents])
        assert (logits - expected).abs().max() < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_slots_that_leave_join_or_change_places_leave_the_others_alone(
    tiny_model, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_cache, "SPAN_SLOTS", 2)
    monkeypatch.setattr(decode_cache, "BLOCK_TOKENS", 8)  # the caches grow several times
    rng = np.random.default_rng(1)
    cache, weights, documents = SlotCache(tiny_model, 3, tiny_model.device), kind(tiny_model), []
    for step in range(25):
        if step % 4 == 0:
            (new,) = random_ids([int(rng.integers(1, 30))])
            cache.make_slots(len(documents) + 2, most=16)
            cache.admit(read_row(tiny_model, [new])[0], 2)
            documents += [list(new), list(new)]
        if step % 5 == 4:
            gone = sorted(rng.choice(len(documents), size=2, replace=False).tolist())
            to, origin = cache.release(gone)
            for slot, source in zip(to, origin, strict=True):
                documents[slot] = documents[source]
            del documents[cache.num_slots :]
        if step % 6 == 5:
            order = rng.permutation(len(documents))
            cache.reorder(order)
            documents = [documents[slot] for slot in order.tolist()]
        drawn = rng.integers(300, size=len(documents))
        logits = decode_step(weights, cache, torch.from_numpy(drawn))
        for slot, token in enumerate(drawn.tolist()):
            documents[slot] = [*documents[slot], token]
            assert (logits[slot] - literal_logits(tiny_model, documents[slot])).abs().max() < 1e-10
        assert cache.host_lengths[: len(documents)].tolist() == cache.lengths[: len(documents)].tolist()
    assert 3 < len(documents) < cache.max_slots <= 16 and 30 < cache.capacity <= 64


def test_sorting_is_left_where_it_would_spare_little(tiny_model) -> None:
    cache = SlotCache(tiny_model, 200, tiny_model.device)
    cache.num_slots = 200
    cache.host_lengths[:] = np.tile([10, 400], 100)
    order = cache.better_order()
    assert order is not None and cache.host_lengths[order].tolist() == [400] * 100 + [10] * 100
    cache.host_lengths[:] = np.tile([300, 320], 100)
    assert cache.better_order() is None


@torch.no_grad()
@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 16, 37])
def test_a_prompt_read_in_chunks_ends_in_the_same_state(tiny_model, chunk_tokens: int) -> None:
    (document,) = random_ids([37])
    (whole,) = read_row(tiny_model, [document])
    chunked = read_in_chunks(tiny_model, document, chunk_tokens)
    assert (chunked.logits - whole.logits).abs().max() < 1e-10
    for name in ("keys", "values", "conv", "ssm"):
        for ours, expected in zip(getattr(chunked, name), getattr(whole, name), strict=True):
            assert ours.shape == expected.shape and (ours - expected).abs().max() < 1e-10, name


@torch.no_grad()
def test_documents_come_back_in_order_however_they_are_read(tiny_model) -> None:
    documents = random_ids([4, 30, 9, 1, 12])
    expected = read_row(tiny_model, documents)
    for max_tokens in (10, 13, 1000):
        for ours, theirs in zip(read_documents(tiny_model, documents, max_tokens), expected, strict=True):
            assert ours.length == theirs.length and (ours.logits - theirs.logits).abs().max() < 1e-10


@torch.no_grad()
def test_queries_of_a_long_chunk_attend_in_blocks(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    from falcon_h1r.model import decode_prefill

    (document,) = random_ids([37])
    expected = read_in_chunks(tiny_model, document, 20)
    monkeypatch.setattr(decode_prefill, "QUERY_BLOCK", 3)
    assert (read_in_chunks(tiny_model, document, 20).logits - expected.logits).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_refreshed_weights_are_the_modules(tiny_model, kind: Any) -> None:
    weights = kind(tiny_model)
    for parameter in tiny_model.parameters():
        parameter.mul_(1.1)
    weights.refresh()
    (document,) = random_ids([9])
    logits = decode_step(weights, opened(tiny_model, [document]), torch.tensor([3]))
    assert (logits[0] - literal_logits(tiny_model, [*document, 3])).abs().max() < 1e-10


def test_only_small_models_in_wide_dtypes_are_folded(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    from falcon_h1r.model import decode_weights as module

    assert isinstance(decode_weights(tiny_model), FoldedWeights)
    compute_in(tiny_model, torch.bfloat16)
    assert isinstance(decode_weights(tiny_model), ModuleWeights)
    compute_in(tiny_model, torch.float32)
    monkeypatch.setattr(module, "FOLDED_PARAMETERS", 10)
    assert isinstance(decode_weights(tiny_model), ModuleWeights)


@torch.no_grad()
def test_bfloat16_keeps_its_ssm_state_in_float32(tiny_model) -> None:
    reference = tiny_model.float()
    documents = random_ids([20, 3])
    expected = torch.stack([literal_logits(reference, [*document, 5]) for document in documents])
    model = reference.to(torch.bfloat16)
    keep_full_precision(model)
    cache = opened(model, documents)
    logits = decode_step(decode_weights(model), cache, torch.tensor([5, 5]))
    assert logits.dtype == torch.float32
    for layer in cache.layers:
        assert {layer.keys.dtype, layer.values.dtype, layer.conv.dtype} == {torch.bfloat16}
        assert layer.ssm.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_state_of_its_own_keeps_no_row_alive(tiny_model) -> None:
    with torch.no_grad():
        first, _ = read_row(tiny_model, random_ids([3, 500]))
    own: DocumentState = first.own()
    assert own.keys[0].untyped_storage().nbytes() == own.keys[0].nbytes < first.keys[0].untyped_storage().nbytes()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_steps_rounded_up_to_recorded_shapes_change_nothing(
    tiny_model, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graph would play, played by hand into one buffer, with slots that leave and join between."""
    from falcon_h1r.model import decode_graphs

    monkeypatch.setattr(decode_graphs, "BLOCK_ENTRIES", 4)
    played: list[tuple[int, ...]] = []

    def record(step: decode_graphs.Step) -> decode_graphs.Step:
        buffer: list[Tensor] = []

        def play() -> Tensor:
            logits = step()
            played.append(tuple(logits.shape))
            buffer[:] = buffer or [torch.empty_like(logits)]
            return buffer[0].copy_(logits)

        return play

    documents = random_ids([5, 1, 17])
    cache, weights = opened(tiny_model, documents, max_slots=6), kind(tiny_model)
    recorders: list[decode_graphs.Record] = []

    def new_recorder() -> decode_graphs.Record:
        recorders.append(record)
        return record

    graphs = decode_graphs.DecodeGraphs(weights, cache, new_recorder)
    for step in range(14):
        if step == 5:
            cache.release([0])
            documents = [documents[2], documents[1]]
        if step == 9:
            (new,) = random_ids([8])
            cache.admit(read_row(tiny_model, [new])[0], 2)
            documents += [list(new), list(new)]
        if step == 11:
            for parameter in tiny_model.parameters():
                parameter.mul_(1.0)
            weights.refresh()
        drawn = [(5 * step + slot) % 300 for slot in range(len(documents))]
        documents = [[*document, token] for document, token in zip(documents, drawn, strict=True)]
        logits = graphs.step(torch.tensor(drawn))
        expected = torch.stack([literal_logits(tiny_model, document) for document in documents])
        assert logits.shape == expected.shape and (logits - expected).abs().max() < 1e-10
    num_recorders = len(recorders)
    cache.reserve(2 * cache.capacity)  # moves the caches
    graphs.step(torch.tensor(drawn))
    assert len(recorders) == num_recorders + 1  # a pool whose graphs are all forgotten is not recorded into again
    assert len(played) > 3 and {shape[0] for shape in played} <= {2, 4}
    assert graphs.shape_of(3, 9) == (4, 16) and graphs.shape_of(5, 1) == (6, 4)
