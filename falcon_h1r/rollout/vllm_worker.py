"""What vLLM's own processes are asked for: the vectors of the SSM as they hold them. Imports neither vllm nor torch.

A server is started with `--worker-extension-cls falcon_h1r.rollout.vllm_worker.WeightReport` (launch/vllm_serve.sh
does), which adds the method below to its workers, and is asked over /collective_rpc. A, D and dt_bias are few numbers,
three for each head of a layer; reloads have lost them, and a model without its A_log can come close to one with it.
"""

from __future__ import annotations

from typing import Any

METHOD = "report_ssm_vectors"
EXTENSION = "falcon_h1r.rollout.vllm_worker.WeightReport"
VECTORS = (".A", ".D", ".dt_bias")  # vLLM's names


class WeightReport:
    """Mixed into vLLM's worker."""

    model_runner: Any

    def report_ssm_vectors(self) -> dict[str, list[float]]:
        """This worker's heads of each."""
        return held_vectors(self.model_runner.model)


def held_vectors(model: Any) -> dict[str, list[float]]:
    """Of vLLM's FalconH1ForCausalLM, by its own names."""
    return {
        name: parameter.detach().float().flatten().tolist()
        for name, parameter in model.named_parameters()
        if name.endswith(VECTORS)
    }
