"""mamba-ssm's Triton scan on CPU tensors: `python -m tests.model.interpreted_scan RESULTS`, a process of its own.

Triton reads TRITON_INTERPRET when it is imported, once for a process. Under it the kernels themselves run, block by
block, in numpy, which knows no bfloat16. Around them are replaced:

- the package's `__init__`, which wants a compiled extension that the scan does not use;
- autotuning, which times kernels: each keeps its first configuration;
- the interpreter's check of every sum for overflow, half of its time, which compiled kernels leave out as well;
- the two questions that a launch asks of CUDA: the current device, and how many multiprocessors it has.

What runs is the scan that `choose_kernels` gives to a GPU, from its look for the package to the last kernel. Shows
call site, layout, resets and gradients; not speed, nor what a GPU's compiler makes of the kernels.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch
import triton
from triton.runtime import interpreter

from falcon_h1r.model.kernels import choose_kernels
from tests.model.kernel_cases import (
    CHUNK_TOKENS,
    HALF_CASE,
    NEIGHBOUR_CASES,
    SCAN_CASES,
    ScanCase,
    mamba_ssm_folder,
    outputs_and_gradients,
    row_of,
    scan_inputs,
)


def prepare(folder: Path) -> None:
    sys.path.append(str(folder.parent))
    package = ModuleType("mamba_ssm")
    package.__path__ = [str(folder)]
    sys.modules["mamba_ssm"] = package
    autotune: Any = triton.autotune
    triton.autotune = lambda configs, *args, **kwargs: autotune(configs[:1], *args, **kwargs)
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    cuda: Any = torch.cuda
    cuda.device = lambda index: nullcontext()
    cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=4)


def main(results_file: str) -> None:
    torch.set_num_threads(1)
    folder = mamba_ssm_folder()
    assert folder is not None
    prepare(folder)
    kernels = choose_kernels(torch.device("cuda"), torch.float32, chunk_size=CHUNK_TOKENS)

    def run(case: ScanCase, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        row = row_of(case.lengths)
        return outputs_and_gradients(lambda *tensors: kernels.scan(*tensors, row), scan_inputs(case, dtype))

    results = {(case, torch.float32): run(case, torch.float32) for case in (*SCAN_CASES, *NEIGHBOUR_CASES)}
    results[HALF_CASE, torch.float16] = run(HALF_CASE, torch.float16)
    named = {f"{case}-{dtype}": tensors for (case, dtype), tensors in results.items()}
    torch.save({"description": kernels.description, "results": named}, results_file)


if __name__ == "__main__":
    main(sys.argv[1])
