"""Which dtype weights are kept in, and which the forward computes in. They differ where a model trains in bfloat16.

Training in bfloat16 keeps every weight in float32 and computes in bfloat16: a projection casts its weight as it uses
it, and the weight's gradient is accumulated in float32. So an update of 1e-5 moves A_log, D and dt_bias, and every
other weight too, and there is no second, master copy. What is handed over is cast once, A_log, D and dt_bias excepted.

Why not DeepSpeed's bf16 mode, or torch.autocast? DeepSpeed casts every parameter (its `keep_in_fp32_modules` keeps
buffers only), and its ZeRO-3 lays all partitions into one buffer of a single dtype, so that A_log cannot stay float32
beside bfloat16 weights. Autocast would also cast the matrix products inside the scan, the norms and the loss, which
have to stay in float32. The price: ZeRO holds 20 bytes a parameter instead of 16 (4 weight, 4 gradient, 8 moments, and
4 of a copy that DeepSpeed updates, against 2, 2, 8 and 4), and weights and gradients travel in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import FalconH1ForCausalLM

FULL_PRECISION = ("A_log", "D", "dt_bias")  # of the SSM: float32 at least, or small updates vanish


def handed_over_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a parameter is stored in, in a checkpoint of this dtype."""
    return torch.promote_types(dtype, torch.float32) if name.endswith(FULL_PRECISION) else dtype


def trained_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a weight is kept in while it is trained, where the forward computes in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def compute_in(model: FalconH1ForCausalLM, dtype: torch.dtype) -> None:
    """Let the model's forward compute in this dtype, whatever its weights are kept in."""
    model.compute_dtype = dtype


def compute_dtype(model: FalconH1ForCausalLM) -> torch.dtype:
    """What the model's forward computes in: that of its weights, if nothing else was asked for."""
    dtype: torch.dtype = getattr(model, "compute_dtype", model.dtype)
    return dtype


def project(projection: nn.Module, inputs: Tensor) -> Tensor:
    """A linear projection in the dtype of its inputs: (..., in) -> (..., out). An adapted one casts by itself."""
    if type(projection) is not nn.Linear:
        projected: Tensor = projection(inputs)
        return projected
    bias = projection.bias
    return F.linear(inputs, projection.weight.to(inputs.dtype), None if bias is None else bias.to(inputs.dtype))
