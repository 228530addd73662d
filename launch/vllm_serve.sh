#!/usr/bin/env bash
# A vLLM server for GRPO to sample from (rollout=vllm_server), on this node's GPUs:
#
#   launch/vllm_serve.sh MODEL [OPTION...]
#   PORT=8001 CUDA_VISIBLE_DEVICES=4,5 TENSOR_PARALLEL=2 launch/vllm_serve.sh runs/sft/model --max-num-seqs 128
#
# MODEL: a folder or hub name of the shape that is trained. Only its config and tokenizer are read: the server starts
# with random weights, and the trainer sends it the policy's before the first rollout. OPTION: of vLLM; it comes last.
#
# HOST (0.0.0.0), PORT (8000): where it listens.
# TENSOR_PARALLEL (1): GPUs that share one copy of the model. More copies: more servers, each on GPUs of its own.
# MAX_TOKENS (53248): of prompt and response together, at least those of grpo.limits.
# SLOTS (256): rollouts at once, grpo.rollout.max_slots.
# DTYPE (bfloat16), MEMORY_SHARE (0.9): of the weights; of the GPU's memory that is used.
# PYTHON: of the environment that has vLLM and this project (constraints-vllm.txt), by default .venv-vllm/bin/python.
set -euo pipefail
refuse() { echo "$1" >&2; exit 2; }
[[ $# -ge 1 && $1 != -* ]] || refuse "usage: [PORT=8000] [TENSOR_PARALLEL=1] $0 MODEL [OPTION...]"

PYTHON=${PYTHON:-$(dirname "$0")/../.venv-vllm/bin/python}
command -v "$PYTHON" >/dev/null || refuse "PYTHON=$PYTHON: no such program; constraints-vllm.txt says how to make it"
options=(
    --host "${HOST:-0.0.0.0}" --port "${PORT:-8000}"
    --tensor-parallel-size "${TENSOR_PARALLEL:-1}"
    --max-model-len "${MAX_TOKENS:-53248}" --max-num-seqs "${SLOTS:-256}"
    --dtype "${DTYPE:-bfloat16}" --mamba-ssm-cache-dtype float32
    --gpu-memory-utilization "${MEMORY_SHARE:-0.9}"
    --load-format dummy --generation-config vllm
    # What the trainer insists on: weights over NCCL, logprobs of what is sampled from, a look at what was received.
    --weight-transfer-config '{"backend": "nccl"}'
    --logprobs-mode processed_logprobs --max-logprobs -1
    --worker-extension-cls falcon_h1r.rollout.vllm_worker.WeightReport
)
export VLLM_SERVER_DEV_MODE=1  # without it, there are no endpoints for weights
exec "$PYTHON" -m vllm.entrypoints.cli.main serve "$1" "${options[@]}" "${@:2}"
