"""Have A_log, D and dt_bias arrived? Their values as vLLM holds them beside those that were sent.

The comparison of logprobs (sync_check.py) is the proof that all is well together, but it has to allow for how bfloat16
rounds here and there, and some weights can go missing within that. These are compared one by one, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from falcon_h1r.model.precision import FULL_PRECISION

# vLLM keeps D and dt_bias in its own dtype: bfloat16 has 8 bits.
RELATIVE, ABSOLUTE = 2.0**-7, 1e-4
NAMED = 3  # weights in a message

Vectors = dict[str, Tensor]


def kept_vectors(weights: Iterator[tuple[str, Tensor]], kept: Vectors) -> Iterator[tuple[str, Tensor]]:
    """The same weights; those of the SSM's vectors are kept on the way."""
    for name, tensor in weights:
        if name.endswith(FULL_PRECISION):
            kept[name] = tensor.detach().cpu().double().clone()
        yield name, tensor


def name_at_vllm(name: str) -> str:
    """A weight of the mixer under vLLM's name: it stands one level deeper, and A in place of A_log."""
    return name.replace("mamba.", "mamba.mamba.").replace("A_log", "A")


def missing_vectors(sent: Vectors, reports: Sequence[Mapping[str, list[float]]]) -> list[str]:
    """Names of those that are not held as they were sent.

    Args:
        reports: of every worker, in their order: each has its heads, or all of them.
    """
    missing = []
    for name, vector in sent.items():
        expected = -vector.exp() if name.endswith("A_log") else vector
        held = torch.tensor([v for report in reports for v in report.get(name_at_vllm(name), [])], dtype=torch.float64)
        copies, rest = divmod(len(held), len(expected))
        if not copies or rest or not held.allclose(expected.repeat(copies), rtol=RELATIVE, atol=ABSOLUTE):
            missing.append(name)
    return missing


def described(missing: Sequence[str], where: str) -> str:
    """One line for what is missing."""
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return f"{where} does not hold what it was sent of {', '.join(missing[:NAMED])}{more}: it lost them on loading"
