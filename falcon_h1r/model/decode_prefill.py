"""Reading documents before decoding goes on from them: short ones in one packed row, long ones in chunks.

A chunk continues its document exactly: attention sees all earlier keys, the convolution the last inputs, the scan the
carried state (`initial_states` of falcon_h1r.model.ssd). So a prompt of any length takes the working memory of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import FalconH1ForCausalLM
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1DecoderLayer, FalconH1Mixer

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.conv import packed_conv
from falcon_h1r.model.decode_cache import DocumentState
from falcon_h1r.model.decode_weights import head_logits
from falcon_h1r.model.hybrid import (
    Rotation,
    add_feed_forward,
    embedded,
    gated_norm,
    packed_prefill,
    project_heads,
    project_mixer,
    rms_norm,
    rotary_angles,
    scaled,
    scan_weights,
    split_conv,
    step_sizes,
)
from falcon_h1r.model.precision import project
from falcon_h1r.model.ssd import ssd_scan

QUERY_BLOCK = 1024  # queries of a chunk that attend at once: their mask is (QUERY_BLOCK, keys)


def read_documents(
    model: FalconH1ForCausalLM, documents: Sequence[Sequence[int]], max_tokens: int
) -> list[DocumentState]:
    """Read each document once, at most `max_tokens` tokens at a time."""
    short = [index for index, document in enumerate(documents) if len(document) <= max_tokens]
    states: dict[int, DocumentState] = {}
    row: list[int] = []
    for index in short:
        if row and sum(len(documents[each]) for each in row) + len(documents[index]) > max_tokens:
            states.update(zip(row, read_row(model, [documents[each] for each in row]), strict=True))
            row = []
        row.append(index)
    if row:
        states.update(zip(row, read_row(model, [documents[each] for each in row]), strict=True))
    for index, document in enumerate(documents):
        if index not in states:
            states[index] = read_in_chunks(model, document, max_tokens)
    return [states[index] for index in range(len(documents))]


def read_row(model: FalconH1ForCausalLM, documents: Sequence[Sequence[int]]) -> list[DocumentState]:
    """Read whole documents in one packed row, by the trainer's forward."""
    row = pack_row([Document(list(ids), [0.0] * len(ids)) for ids in documents]).to(model.device)
    hidden, layers = packed_prefill(model, row)
    logits = head_logits(model, hidden[row.document_ends])
    keys, values = ([getattr(layer, name).split(row.lengths) for layer in layers] for name in ("keys", "values"))
    return [
        DocumentState(
            length=length,
            logits=logits[index],
            keys=[layer[index] for layer in keys],
            values=[layer[index] for layer in values],
            conv=[layer.conv[index] for layer in layers],
            ssm=[layer.ssm[index] for layer in layers],
        )
        for index, length in enumerate(row.lengths)
    ]


def read_in_chunks(model: FalconH1ForCausalLM, document: Sequence[int], chunk_tokens: int) -> DocumentState:
    """Read one document chunk by chunk."""
    state: DocumentState | None = None
    for start in range(0, len(document), chunk_tokens):
        ids = torch.tensor(document[start : start + chunk_tokens], device=model.device)
        state = read_on(model, ids, state)
    assert state is not None
    return state


def read_on(model: FalconH1ForCausalLM, input_ids: Tensor, before: DocumentState | None) -> DocumentState:
    """Read more tokens (t) of a document that was read as far as `before`."""
    start = 0 if before is None else before.length
    positions = torch.arange(start, start + len(input_ids), device=input_ids.device)
    rotation = rotary_angles(model, positions)
    hidden = embedded(model, input_ids)  # (t, E)
    after = DocumentState(start + len(input_ids), hidden, [], [], [], [])
    for index, layer in enumerate(model.model.layers):
        normed = rms_norm(hidden, layer.input_layernorm)
        attention = _attention(layer, normed, rotation, before, after, index)
        mixed = _mixer(layer.mamba, normed, before, after, index)
        hidden = torch.add(hidden, mixed, alpha=layer.ssm_out_multiplier)
        hidden = torch.add(hidden, attention, alpha=layer.attn_out_multiplier)
        hidden = add_feed_forward(layer, hidden)
    after.logits = head_logits(model, rms_norm(hidden[-1:], model.model.final_layernorm))[0]
    return after


def _attention(
    layer: FalconH1DecoderLayer,
    normed: Tensor,
    rotation: Rotation,
    before: DocumentState | None,
    after: DocumentState,
    index: int,
) -> Tensor:
    """(t, E) -> (t, E), over all keys so far, which are kept in `after`."""
    attention = layer.self_attn
    query, key, value = project_heads(attention, scaled(normed, layer.attention_in_multiplier), rotation)
    if before is not None:
        key, value = torch.cat([before.keys[index], key]), torch.cat([before.values[index], value])
    after.keys.append(key)
    after.values.append(value)
    keys, values = (heads.transpose(0, 1)[None] for heads in (key, value))  # (1, K, S, d)
    seen = torch.arange(len(key), device=key.device)
    attended = []
    for start in range(0, len(query), QUERY_BLOCK):
        block = query[start : start + QUERY_BLOCK].transpose(0, 1)[None]  # (1, H, q, d)
        last = len(key) - len(query) + start + block.shape[2]  # nothing from here on is seen
        own = torch.arange(last - block.shape[2], last, device=key.device)
        attended.append(
            F.scaled_dot_product_attention(
                block,
                keys[:, :, :last],
                values[:, :, :last],
                attn_mask=seen[:last] <= own[:, None],
                scale=attention.scaling,
                enable_gqa=True,
            )[0].transpose(0, 1)
        )
    return project(attention.o_proj, torch.cat(attended).flatten(1))


def _mixer(
    mixer: FalconH1Mixer, normed: Tensor, before: DocumentState | None, after: DocumentState, index: int
) -> Tensor:
    """(t, E) -> (t, E), from the states in `before` to those in `after`."""
    gate, conv_input, dt = project_mixer(mixer, normed)
    weights, width = scan_weights(mixer), mixer.conv_kernel_size - 1
    tail = conv_input.new_zeros(width, mixer.conv_dim) if before is None else before.conv[index].t()
    window = torch.cat([tail, conv_input])
    positions = torch.arange(len(window), device=window.device)
    convolved = packed_conv(window, weights.conv, weights.conv_bias, positions)[width:]
    x, B, C = split_conv(mixer, convolved, mixer.num_heads)
    outputs, states = ssd_scan(
        x,
        step_sizes(mixer, dt, weights),
        weights.A,
        B,
        C,
        weights.D,
        torch.zeros(len(normed), dtype=torch.int64, device=normed.device),
        initial_states=None if before is None else before.ssm[index][None],
        return_final_states=True,
    )
    assert states is not None
    after.conv.append(window[len(window) - width :].t())
    after.ssm.append(states[0])
    return project(mixer.out_proj, gated_norm(mixer, outputs.flatten(1), gate))
