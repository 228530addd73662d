#!/usr/bin/env bash
# Any recipe on the processes of one node, or of several, under torchrun:
#
#   launch/torchrun.sh recipes/sft.py experiment=quickstart sft.data.path=traces.jsonl
#   NPROC=4 launch/torchrun.sh recipes/grpo.py experiment=quickstart
#
# and on every one of several nodes, each with its own NODE_RANK:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-node launch/torchrun.sh recipes/sft.py ...
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=first-node launch/torchrun.sh recipes/sft.py ...
#
# NPROC: processes of this node; by default one for each visible GPU, or 2 where there is none.
# NODE_RANK: 0, 1, ...; under slurm, where srun starts this on every node, it is known.
# MASTER_ADDR, MASTER_PORT (29500): where node 0 can be reached, the same on all nodes.
# STOP_SECONDS (600): how long the ranks may take to save once they are told to stop; then they are killed.
set -euo pipefail
refuse() { echo "$1" >&2; exit 2; }
[[ $# -ge 1 ]] || refuse "usage: [NPROC=N] [NNODES=N NODE_RANK=R MASTER_ADDR=HOST] $0 RECIPE.py [OVERRIDE...]"

NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-}}
options=(--nnodes="$NNODES")
if [[ $NNODES == 1 ]]; then
    options+=(--standalone)
else
    [[ $NODE_RANK =~ ^[0-9]+$ && $NODE_RANK -lt $NNODES ]] ||
        refuse "NNODES=$NNODES needs NODE_RANK, from 0 to $((NNODES - 1)); it is '$NODE_RANK'"
    [[ -n ${MASTER_ADDR:-} ]] || refuse "NNODES=$NNODES needs MASTER_ADDR, the name or address of node 0"
    # The static rendezvous, where rank 0 is on node 0 and all meet at this one port. With c10d any node may get
    # rank 0, and the ranks then meet at whatever name that node has for itself, and at a random port.
    options+=(--node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}")
fi

PYTHON=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count() or 2)')}
# torchrun hands on only the signals that it is told of; the last is slurm's warning before the time limit.
signals=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
options+=(--nproc-per-node="$NPROC" --signals-to-handle="$signals" --shutdown-timeout="${STOP_SECONDS:-600}")

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m torch.distributed.run "${options[@]}" "$@"
