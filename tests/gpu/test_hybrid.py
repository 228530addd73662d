"""On a GPU: a packed row's logprobs and gradients are those of the CPU, whatever a layer keeps for its backward."""

from __future__ import annotations

import copy

import pytest
import torch

from falcon_h1r.config import ModelConfig
from falcon_h1r.data.packing import pack_row
from falcon_h1r.model.hybrid import ForwardPlan, packed_hidden_states
from falcon_h1r.model.kernels import choose_kernels
from falcon_h1r.model.load import keep_full_precision, random_policy
from falcon_h1r.model.logprobs import packed_logprobs
from tests.conftest import TINY_ARCHITECTURE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# Widths that the fused kernels take: heads of 16, states of 16.
ARCHITECTURE = {
    **TINY_ARCHITECTURE,
    **{"hidden_size": 64, "head_dim": 16, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64},
    **{"mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 64},
}
PLANS = {
    "none": ForwardPlan(),
    "layer": ForwardPlan(recompute="layer"),
    "offloaded": ForwardPlan(recompute="layer", offload=True),
    "selective": ForwardPlan(recompute="selective"),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("plan", PLANS)
def test_a_packed_row_equals_the_cpu(tokenizer, random_documents, plan: str, dtype: torch.dtype, tolerance) -> None:
    reference = random_policy(ModelConfig(architecture=ARCHITECTURE), tokenizer, seed=0)
    model = copy.deepcopy(reference).to("cuda", dtype)
    keep_full_precision(model)
    row = pack_row(random_documents([1, 70, 130, 5, 64]))

    def backward(policy, batch, forward_plan: ForwardPlan) -> torch.Tensor:
        logprobs, _ = packed_logprobs(policy, packed_hidden_states(policy, batch, forward_plan), batch)
        (logprobs * batch.loss_weights).sum().backward()
        return logprobs.detach().float().cpu()

    expected = backward(reference, row, ForwardPlan())
    found = backward(model, row.to(torch.device("cuda")), PLANS[plan])
    print(choose_kernels(torch.device("cuda"), dtype, 64).description)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    for parameter, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        error = (parameter.grad.float().cpu() - wanted.grad).norm() / wanted.grad.norm().clamp(min=1e-20)
        assert error < 2 * tolerance
