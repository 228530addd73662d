"""The kernels of a layer against their slow twins, on a packed row with resets: outputs and every gradient.

    attention     softmax by its formula, document after document, with a mask
    convolution   tap after tap (`model.conv.packed_conv_taps`)
    scan          the recurrence, token after token (`model.ssd.ssd_recurrence`)

The twins work in float64 on inputs that were rounded to the run's dtype; head widths and states are the run's. The
error is the largest difference as a share of the largest entry.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from falcon_h1r.data.packing import Document, pack_row
from falcon_h1r.doctor.examination import Examination
from falcon_h1r.doctor.finding import FAILED, OK, WARN, Finding, graded
from falcon_h1r.model.conv import packed_conv_taps
from falcon_h1r.model.kernels import choose_kernels
from falcon_h1r.model.row import Row
from falcon_h1r.model.ssd import ssd_recurrence

# On a GPU the scan's products of float32 are TF32.
TOLERANCES = {
    ("cpu", torch.float64): 1e-10,
    ("cpu", torch.float32): 1e-4,
    ("cpu", torch.bfloat16): 3e-2,
    ("cuda", torch.float64): 1e-10,
    ("cuda", torch.float32): 5e-3,
    ("cuda", torch.bfloat16): 3e-2,
}
BEFORE_BORDER, AFTER_BORDER = 40, 24  # tokens around the border of a chunk of the scan

Tensors = dict[str, Tensor]


def check_kernels(examination: Examination) -> list[Finding]:
    """Which kernels were chosen, and how far each is from its twin."""
    device, dtype, shape = examination.world.device, examination.dtype, examination.shape
    kernels = choose_kernels(device, dtype, shape.mamba_chunk_size)
    row = row_with_resets(shape.mamba_chunk_size, device)
    limit = TOLERANCES[device.type, dtype]
    scale = (getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads) ** -0.5
    cases: list[tuple[str, Tensors, Callable[..., Tensor], Callable[..., Tensor]]] = [
        (
            "attention kernel",
            attention_inputs(examination, len(row.seq_idx)),
            lambda query, key, value: kernels.attention(query, key, value, row, scale),
            lambda query, key, value: attention_formula(query, key, value, row, scale),
        ),
        (
            "convolution kernel",
            conv_inputs(examination, len(row.seq_idx)),
            lambda inputs, weight, bias: kernels.conv(inputs, weight, bias, row),
            lambda inputs, weight, bias: packed_conv_taps(inputs, weight, bias, row.position_ids),
        ),
        (
            "scan kernel",
            scan_inputs(examination, len(row.seq_idx)),
            lambda x, dt, A, B, C, D: kernels.scan(x, dt, A, B, C, D, row),
            lambda x, dt, A, B, C, D: recurrence_by_document(x, dt, A, B, C, D, row),
        ),
    ]
    return [
        choice_finding(kernels.description, device.type),
        *(compare(name, fast, slow, inputs, limit) for name, inputs, fast, slow in cases),
    ]


def choice_finding(description: str, device_type: str) -> Finding:
    """A GPU that runs torch's paths trains rightly, and slowly."""
    slow = device_type == "cuda" and ("torch (" in description or "torch SDPA" in description)
    advice = "install the fused kernels: header of constraints-gpu.txt"
    return graded("kernels", WARN if slow else OK, description, advice)


def compare(
    name: str, fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: Tensors, limit: float
) -> Finding:
    """Outputs and gradients of both; the worst of them is what counts."""
    actual = outputs_and_gradients(fast, inputs)
    expected = outputs_and_gradients(slow, {key: tensor.double() for key, tensor in inputs.items()})
    errors = {key: relative_error(actual[key], expected[key]) for key in expected}
    worst = max(errors, key=lambda key: errors[key] if errors[key] == errors[key] else float("inf"))
    of = "outputs" if worst == "outputs" else f"gradient of {worst}"
    measured = f"{of} off by {errors[worst]:.1e} at most ({limit:.0e} allowed)"
    advice = "do not train with it: reinstall its package for this torch, or uninstall it to fall back to torch's"
    return graded(name, OK if errors[worst] <= limit else FAILED, measured, advice)


def row_with_resets(chunk_tokens: int, device: torch.device) -> Row:
    """A document up to before the first chunk's border, one of one token, one across the border, and short ones."""
    chunk_tokens = max(chunk_tokens, 2 * BEFORE_BORDER)
    lengths = (chunk_tokens - BEFORE_BORDER, 1, BEFORE_BORDER + AFTER_BORDER, 1, 7)
    return Row.from_batch(pack_row([Document([0] * length, [0.0] * length) for length in lengths]).to(device))


def outputs_and_gradients(function: Callable[..., Tensor], inputs: Tensors) -> Tensors:
    """Outputs under "outputs", and the gradient of every input under its name, in float64 on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs.values()]
    outputs = function(*leaves)
    cotangent = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(outputs, leaves, cotangent.to(outputs))
    results = {"outputs": outputs.detach(), **dict(zip(inputs, gradients, strict=True))}
    return {name: tensor.double().cpu() for name, tensor in results.items()}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# -----------------------------------------------------------------------------
# Inputs: few heads, for heads do not know of each other; widths are the run's


def attention_inputs(examination: Examination, num_tokens: int) -> Tensors:
    """Two KV heads at most, each read by as many query heads as in the run, up to four."""
    shape, normal = examination.shape, _normals(2)
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    num_kv = min(2, shape.num_key_value_heads)
    num_heads = num_kv * min(4, shape.num_attention_heads // shape.num_key_value_heads)
    heads = {"query": num_heads, "key": num_kv, "value": num_kv}
    return _at(examination, {name: normal(num_tokens, count, head_dim) for name, count in heads.items()})


def conv_inputs(examination: Examination, num_tokens: int) -> Tensors:
    """Weights are float32 at least, as in the model."""
    shape, normal = examination.shape, _normals(3)
    channels = 2 * shape.mamba_d_head + 2 * shape.mamba_d_state
    weights = {"weight": normal(channels, shape.mamba_d_conv), "bias": normal(channels)}
    wide = torch.promote_types(examination.dtype, torch.float32)
    return {
        **_at(examination, {"inputs": normal(num_tokens, channels)}),
        **{name: tensor.to(examination.world.device, wide) for name, tensor in weights.items()},
    }


def scan_inputs(examination: Examination, num_tokens: int) -> Tensors:
    """Two heads a group, two groups at most; step sizes, A and D are float32 at least, as in the model."""
    shape, normal = examination.shape, _normals(4)
    num_groups = min(2, shape.mamba_n_groups)
    num_heads = num_groups * min(2, shape.mamba_n_heads // shape.mamba_n_groups)
    wide = torch.promote_types(examination.dtype, torch.float32)
    narrow = _at(
        examination,
        {
            "x": normal(num_tokens, num_heads, shape.mamba_d_head),
            "B": normal(num_tokens, num_groups, shape.mamba_d_state),
            "C": normal(num_tokens, num_groups, shape.mamba_d_state),
        },
    )
    device = examination.world.device
    return {
        "x": narrow["x"],
        "dt": normal(num_tokens, num_heads).sub(1).exp().to(device, wide),  # around 0.4
        "A": -normal(num_heads).exp().to(device, wide),
        "B": narrow["B"],
        "C": narrow["C"],
        "D": normal(num_heads).to(device, wide),
    }


def _at(examination: Examination, tensors: Tensors) -> Tensors:
    return {name: tensor.to(examination.world.device, examination.dtype) for name, tensor in tensors.items()}


def _normals(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


# -----------------------------------------------------------------------------
# Slow twins


def attention_formula(query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float) -> Tensor:
    """Causal attention, document after document."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
    outputs = []
    for q, k, v in zip(*(heads.split(list(row.lengths)) for heads in (query, key, value)), strict=True):
        scores = torch.einsum("thd,shd->hts", q, k) * scale
        future = torch.ones(len(q), len(q), dtype=torch.bool, device=q.device).triu(1)
        outputs.append(torch.einsum("hts,shd->thd", scores.masked_fill(future, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def recurrence_by_document(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, row: Row) -> Tensor:
    """The definition of the scan, each document by itself."""
    outputs = []
    for own_x, own_dt, own_B, own_C in zip(*(t.split(list(row.lengths)) for t in (x, dt, B, C)), strict=True):
        one_document = torch.zeros(len(own_x), dtype=torch.long, device=x.device)
        outputs.append(ssd_recurrence(own_x, own_dt, A, own_B, own_C, D, one_document)[0])
    return torch.cat(outputs)
