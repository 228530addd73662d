#!/usr/bin/env bash
# Any recipe on the processes of one node, under accelerate:
#
#   launch/accelerate.sh recipes/sft.py experiment=quickstart sft.data.path=traces.jsonl
#   NPROC=4 launch/accelerate.sh recipes/grpo.py experiment=quickstart
#
# NPROC: processes; by default one for each visible GPU, or 2 where there is none.
# STOP_SECONDS (600): how long the ranks may take to save once they are told to stop; then they are killed.
# Precision and engine are the recipe's own settings, so accelerate is told of neither.
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: [NPROC=N] $0 RECIPE.py [OVERRIDE...]" >&2; exit 2; }

PYTHON=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 2)')}

options=(--num_machines=1 --num_processes="$NPROC" --mixed_precision=no --dynamo_backend=no)
if [[ $NPROC -gt 1 ]]; then
    # What starts several processes, also without a GPU: with --cpu accelerate would start just one.
    options+=(--multi_gpu --main_process_port=0)
fi

# accelerate takes torchrun's own settings from torchrun's environment; torchrun.sh says what these are.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=${STOP_SECONDS:-600}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m accelerate.commands.launch "${options[@]}" "$@"
