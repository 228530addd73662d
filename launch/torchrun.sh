#!/usr/bin/env bash
# Any recipe on the processes of one node, under torchrun:
#
#   launch/torchrun.sh recipes/sft.py experiment=quickstart sft.data.path=traces.jsonl
#   NPROC=4 launch/torchrun.sh recipes/grpo.py experiment=quickstart
#
# NPROC: processes; by default one for each visible GPU, or 2 where there is none.
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: [NPROC=N] $0 RECIPE.py [OVERRIDE...]" >&2; exit 2; }

PYTHON=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 2)')}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m torch.distributed.run --standalone --nnodes=1 --nproc-per-node="$NPROC" "$@"
