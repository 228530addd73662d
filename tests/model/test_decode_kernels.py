"""One token's updates: torch's against the packed ones, and what a GPU's kernels are called with.

mamba-ssm's update itself runs, in Triton's interpreter. causal-conv1d is compiled for CUDA only: a stand-in checks what
the function demands and computes what it documents. Whether the compiled kernels keep their word, only tests/gpu can
tell.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from falcon_h1r.model.conv import packed_conv_taps
from falcon_h1r.model.decode_kernels import (
    by_group,
    choose_decode_kernels,
    conv_update,
    fused_conv_update,
    fused_state_update,
    state_update,
)
from falcon_h1r.model.ssd import ssd_recurrence
from tests.model.kernel_cases import mamba_ssm_folder, relative_error
from tests.model.update_cases import CASES, UpdateCase, update_inputs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_state_update_is_the_recurrence(case: UpdateCase) -> None:
    inputs = update_inputs(case)
    started = inputs["state"].double()
    state = by_group(started, case.num_groups).clone()
    steps = [tuple(tensor.double() for tensor in step) for step in inputs["steps"]]
    outputs = torch.stack([state_update(state, *step) for step in steps])  # (steps, B, H, P)
    A, D = steps[0][2], steps[0][5]
    for slot in range(case.num_slots):
        x, dt, B, C = (torch.stack([step[part][slot] for step in steps]) for part in (0, 1, 3, 4))
        seq_idx = torch.zeros(len(steps), dtype=torch.int64)
        expected, final = ssd_recurrence(x, dt, A, B, C, D, seq_idx, initial_states=started[slot][None])
        assert (outputs[:, slot] - expected).abs().max() < 1e-12
        assert (state[slot] - by_group(final[0], case.num_groups)).abs().max() < 1e-12


@pytest.fixture(scope="module")
def interpretation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    missing = [name for name in ("triton", "einops") if find_spec(name) is None]
    missing += [] if mamba_ssm_folder() else ["mamba-ssm"]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed (make setup, on Linux)")
    results = tmp_path_factory.mktemp("interpreted") / "results.pt"
    command = [sys.executable, "-m", "tests.model.interpreted_update", str(results)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    loaded: dict[str, Any] = torch.load(results)
    return loaded


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_interpreted_update_equals_torchs(interpretation: dict[str, Any], case: UpdateCase) -> None:
    assert "recurrence mamba-ssm 2." in interpretation["description"]
    inputs = update_inputs(case)
    state = by_group(inputs["state"], case.num_groups).clone()
    outputs = torch.stack([state_update(state, *step) for step in inputs["steps"]])
    found = interpretation["results"][str(case)]
    assert relative_error(found["outputs"], outputs) < 3e-6
    assert relative_error(by_group(found["state"], case.num_groups), state) < 3e-6


def stand_in_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """causal_conv1d_update as documented: (batch, dim), (batch, dim, state_len), (dim, width), (dim)."""
    batch, dim = x.shape
    width = weight.shape[1]
    assert conv_state.shape[:2] == (batch, dim) and conv_state.shape[2] >= width - 1 and 2 <= width <= 4
    assert weight.shape[0] == dim and x.dtype == conv_state.dtype and activation == "silu"
    if bias is not None:
        assert bias.shape == (dim,) and bias.stride(-1) == 1 and bias.dtype == weight.dtype
    window = torch.cat([conv_state, x[..., None]], dim=-1)
    conv_state.copy_(window[..., 1:])
    sums = (window[..., -width:].to(weight.dtype) * weight).sum(-1)
    return F.silu(sums if bias is None else sums + bias).to(x.dtype)


@pytest.mark.parametrize("update", [conv_update, partial(fused_conv_update, stand_in_update)], ids=["torch", "fused"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_conv_updates_are_the_packed_convolution(update: Any, has_bias: bool, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    num_slots, channels, num_tokens = 3, 10, 7
    rows = torch.randn(num_tokens, num_slots, channels + 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(channels, generator=generator, dtype=torch.float64) if has_bias else None
    memory = torch.zeros(num_slots + 2, width - 1, channels, dtype=torch.float64)
    state = memory[:num_slots]
    outputs = torch.stack([update(row[:, 2 : 2 + channels], state, weight, bias) for row in rows])
    for slot in range(num_slots):
        inputs = rows[:, slot, 2 : 2 + channels]
        expected = packed_conv_taps(inputs, weight, bias, torch.arange(num_tokens))
        assert (outputs[:, slot] - expected).abs().max() < 1e-12
        assert torch.equal(state[slot], inputs[num_tokens - width + 1 :])
    assert not memory[num_slots:].any()


def test_the_device_decides_not_what_is_installed() -> None:
    for device, dtype in (("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.float64)):
        kernels = choose_decode_kernels(device, dtype)
        assert kernels.conv is conv_update and kernels.state is state_update


def test_a_gpu_gets_the_fused_updates_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from falcon_h1r.model import decode_kernels
    from falcon_h1r.model.kernels import _Found

    for is_there in (True, False):
        function = print if is_there else None
        monkeypatch.setattr(decode_kernels, "_find", lambda name, *_, found=function: _Found(found, name))
        decode_kernels.choose_decode_kernels.cache_clear()
        kernels = choose_decode_kernels("cuda", torch.bfloat16)
        if is_there:
            assert isinstance(kernels.conv, partial) and kernels.conv.func is fused_conv_update
            assert isinstance(kernels.state, partial) and kernels.state.func is fused_state_update
        else:
            assert kernels.conv is conv_update and kernels.state is state_update
        assert "causal-conv1d" in kernels.description and "mamba-ssm" in kernels.description
    decode_kernels.choose_decode_kernels.cache_clear()
