"""mamba-ssm's one-token update on CPU tensors, as in interpreted_scan.py.

python -m tests.model.interpreted_update RESULTS
"""

from __future__ import annotations

import sys

from tests.model.interpreted_scan import prepare  # isort: skip  (sets TRITON_INTERPRET before triton is imported)

import torch

from falcon_h1r.model.decode_kernels import choose_decode_kernels
from tests.model.kernel_cases import mamba_ssm_folder
from tests.model.update_cases import CASES, update_inputs


def main(results_file: str) -> None:
    torch.set_num_threads(1)
    folder = mamba_ssm_folder()
    assert folder is not None
    prepare(folder)
    kernels = choose_decode_kernels("cuda", torch.float32)
    results = {}
    for case in CASES:
        inputs = update_inputs(case)
        outputs = [kernels.state(inputs["state"], *step) for step in inputs["steps"]]
        results[str(case)] = {"outputs": torch.stack(outputs), "state": inputs["state"]}
    torch.save({"description": kernels.description, "results": results}, results_file)


if __name__ == "__main__":
    main(sys.argv[1])
