"""On a GPU: Triton's autotuning keeps its first configuration. It decides speed alone, and takes minutes a shape."""

from __future__ import annotations

from typing import Any

import torch

if torch.cuda.is_available():
    import triton  # before mamba-ssm, which decorates its kernels as it is imported

    autotune: Any = triton.autotune
    triton.autotune = lambda configs, *args, **kwargs: autotune(configs[:1], *args, **kwargs)
