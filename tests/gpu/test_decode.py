"""On a GPU: decode steps by the fused updates and as CUDA graphs agree with the torch path.

`python -m pytest -m gpu`. It has passed on an H200, without causal-conv1d.
"""

from __future__ import annotations

import pytest
import torch

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.model.decode import decode_step
from falcon_h1r.model.decode_cache import SlotCache
from falcon_h1r.model.decode_graphs import DecodeGraphs
from falcon_h1r.model.decode_kernels import by_group, choose_decode_kernels, conv_update, state_update
from falcon_h1r.model.decode_prefill import read_row
from falcon_h1r.model.decode_weights import FoldedWeights, ModuleWeights
from falcon_h1r.model.hybrid import packed_hidden_states
from falcon_h1r.rollout.sampler import Prompt, SamplingSettings
from falcon_h1r.rollout.torch_sampler import TorchSampler
from tests.model.kernel_cases import relative_error
from tests.model.update_cases import CASES, UpdateCase, update_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_update(case: UpdateCase) -> None:
    kernels = choose_decode_kernels("cuda", torch.float32)
    if kernels.state is state_update:
        pytest.skip(kernels.description)
    inputs = update_inputs(case)
    state, reference = inputs["state"].cuda(), by_group(inputs["state"], case.num_groups).clone()
    for step in inputs["steps"]:
        expected = state_update(reference, *step)
        assert relative_error(kernels.state(state, *(tensor.cuda() for tensor in step)).cpu(), expected) < 1e-5
    assert relative_error(by_group(state.cpu(), case.num_groups), reference) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_conv_update(dtype: torch.dtype) -> None:
    kernels = choose_decode_kernels("cuda", dtype)
    if kernels.conv is conv_update:
        pytest.skip(kernels.description)
    generator = torch.Generator("cuda").manual_seed(0)
    weight, bias = torch.randn(64, 4, generator=generator, device="cuda"), torch.randn(64, device="cuda")
    states = [torch.zeros(5, 3, 64, dtype=dtype, device="cuda") for _ in range(2)]
    for _ in range(6):
        inputs = torch.randn(5, 100, generator=generator, device="cuda").to(dtype)[:, 8:72]
        fused = kernels.conv(inputs, states[0], weight, bias)
        expected = conv_update(inputs, states[1], weight, bias)
        assert relative_error(fused.float(), expected) < (1e-5 if dtype == torch.float32 else 2e-2)
        assert torch.equal(states[0], states[1])


@torch.no_grad()
@pytest.mark.parametrize("kind", [FoldedWeights, ModuleWeights])
@pytest.mark.parametrize("with_graphs", [False, True])
def test_steps_give_the_packed_forwards_logits(tiny_model, kind, with_graphs: bool) -> None:
    model = tiny_model.float().cuda()
    documents = [[5, 6, 7], [9], list(range(30))]
    cache, weights = SlotCache(model, 8, model.device), kind(model)
    for state in read_row(model, documents):
        cache.admit(state, 1)
    graphs = DecodeGraphs(weights, cache) if with_graphs else None
    for step in range(8):
        drawn = [(7 * step + slot) % 300 for slot in range(3)]
        documents = [[*document, token] for document, token in zip(documents, drawn, strict=True)]
        newest = torch.tensor(drawn, device=model.device)
        logits = graphs.step(newest) if graphs is not None else decode_step(weights, cache, newest)
        row = pack_row([Document(ids, [0.0] * len(ids)) for ids in documents]).to(model.device)
        expected = model.lm_head(packed_hidden_states(model, row)[row.document_ends]) * model.model.lm_head_multiplier
        assert relative_error(logits, expected) < 5e-3  # the packed scan is TF32


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_graphs_change_no_rollout_beyond_rounding(tiny_model, tokenizer, dtype: torch.dtype | None) -> None:
    model = tiny_model.float().cuda()
    prompts = [Prompt("a", [5, 6, 7]), Prompt("b", list(range(20)))]
    settings = SamplingSettings(num_samples=3, max_response_tokens=20, temperature=0.0)
    plain, recorded = (
        TorchSampler(model, tokenizer, max_slots=4, dtype=dtype, use_graphs=use_graphs).generate(prompts, settings)
        for use_graphs in (False, True)
    )
    for ours, expected in zip(recorded, plain, strict=True):
        assert ours.response_ids[:3] == expected.response_ids[:3]  # later, rounding may decide between two tokens
        assert ours.sampler_logprobs[:3] == pytest.approx(expected.sampler_logprobs[:3], abs=0.05)
