#!/usr/bin/env bash
# Any recipe under the deepspeed launcher, on one node or on those of a hostfile (see hostfile.example):
#
#   launch/deepspeed.sh recipes/sft.py experiment=quickstart sft.data.path=traces.jsonl
#   HOSTFILE=hostfile launch/deepspeed.sh recipes/sft.py ...      once; it reaches the nodes with pdsh over ssh
#
# and without ssh, on every node of the hostfile with the NODE_RANK of its line:
#
#   HOSTFILE=hostfile NODE_RANK=0 MASTER_ADDR=node-0 launch/deepspeed.sh recipes/sft.py ...
#   HOSTFILE=hostfile NODE_RANK=1 MASTER_ADDR=node-0 launch/deepspeed.sh recipes/sft.py ...
#
# NPROC: processes, where there is no hostfile; by default one for each visible GPU, or 2 where there is none.
# MASTER_ADDR, MASTER_PORT (29500; one node: a free one): where node 0 can be reached, the same on all nodes.
#
# SIGTERM, SIGUSR1 and Ctrl-C reach the ranks of this node, but not those that were started over ssh.
# The engine is the recipe's own setting, engine.name=deepspeed, under any launcher.
set -euo pipefail
refuse() { echo "$1" >&2; exit 2; }
[[ $# -ge 1 ]] || refuse "usage: [NPROC=N | HOSTFILE=FILE [NODE_RANK=R MASTER_ADDR=HOST]] $0 RECIPE.py [OVERRIDE...]"

HOSTFILE=${HOSTFILE:-}
NODE_RANK=${NODE_RANK:-}
options=(--no_local_rank)  # the ranks read theirs from the environment
if [[ -z $HOSTFILE ]]; then
    [[ -z $NODE_RANK ]] || refuse "NODE_RANK=$NODE_RANK needs HOSTFILE, the file that lists the nodes"
else
    [[ -f $HOSTFILE ]] || refuse "HOSTFILE=$HOSTFILE: no such file"
    options+=(--hostfile="$HOSTFILE" --master_port="${MASTER_PORT:-29500}")
    [[ -z ${MASTER_ADDR:-} ]] || options+=(--master_addr="$MASTER_ADDR")
    if [[ -n $NODE_RANK ]]; then
        num_nodes=$(grep -cE '^[^#[:space:]]+[[:space:]]+slots=[0-9]' "$HOSTFILE" || true)
        [[ $NODE_RANK =~ ^[0-9]+$ && $NODE_RANK -lt $num_nodes ]] ||
            refuse "NODE_RANK=$NODE_RANK: $HOSTFILE lists $num_nodes nodes, counted from 0"
        [[ -n ${MASTER_ADDR:-} ]] || refuse "NODE_RANK=$NODE_RANK needs MASTER_ADDR, the name or address of node 0"
        options+=(--no_ssh --node_rank="$NODE_RANK")
    fi
fi

PYTHON=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
num_gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [[ $num_gpus -eq 0 ]]; then
    export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}  # it takes a machine for one with GPUs unless it is told
    num_gpus=2
fi
if [[ -z $HOSTFILE ]]; then
    free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
    MASTER_PORT=${MASTER_PORT:-$("$PYTHON" -c "$free_port")}
    # No hostfile at all, or the launcher would look for /job/hostfile.
    options+=(--hostfile= --num_gpus="${NPROC:-$num_gpus}" --master_port="$MASTER_PORT")
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
command=("$PYTHON" -m deepspeed.launcher.runner "${options[@]}" "$@")
[[ -z $HOSTFILE || -n $NODE_RANK ]] || exec "${command[@]}"  # over ssh

# Told to stop, the launcher would leave its ranks behind, so they are told here: they are its child's children.
# shellcheck disable=SC2317,SC2329  # the traps call it
tell_ranks() {
    "$PYTHON" - "$launcher" "$1" <<'END'
import psutil, signal, sys
ranks = [rank for node in psutil.Process(int(sys.argv[1])).children() for rank in node.children()]
for rank in ranks:
    rank.send_signal(signal.Signals[sys.argv[2]])
END
}
trap 'tell_ranks SIGTERM' TERM INT HUP
trap 'tell_ranks SIGUSR1' USR1
# In a session of its own: the terminal's Ctrl-C would have the launcher kill the ranks after 30 seconds.
setsid "${command[@]}" &
launcher=$!
status=0
wait "$launcher" || status=$?
while [[ $status -gt 128 ]] && kill -0 "$launcher" 2>/dev/null; do  # it was a trap that ended the wait
    status=0
    wait "$launcher" || status=$?
done
exit "$status"
