#!/usr/bin/env bash
# What a slurm job does: one torchrun on each of its nodes, and back into the queue when it has to stop.
# It is started by slurm_node.sbatch and slurm_nodes.sbatch, with a recipe and its overrides.
#
# The run goes on in run_dir (resume=true is added) whenever slurm starts the job again:
#   - 300 seconds before the time limit slurm warns this shell; the ranks get SIGUSR1, save, and the job is requeued;
#   - preemption reaches the ranks as SIGTERM; they save, and slurm starts the job again later.
#
# CONTAINER: an image to run in. A .sif file is run by apptainer; any other name goes to pyxis (srun --container-image).
# CONTAINER_MOUNTS: folders that the run reads or writes besides this one, as FOLDER:FOLDER,...
# MASTER_ADDR, MASTER_PORT: where the first node is reached, if not at its name in slurm and a port by the job's number.
# NPROC, PYTHON, STOP_SECONDS: see torchrun.sh.
set -euo pipefail
refuse() { echo "$1" >&2; exit 2; }
[[ $# -ge 1 && " $* " == *" run_dir="* ]] ||
    refuse "usage: sbatch [OPTION...] launch/slurm_node.sbatch RECIPE.py run_dir=FOLDER [OVERRIDE...]"
[[ -n ${SLURM_JOB_ID:-} ]] || refuse "$0 is for slurm jobs: sbatch launch/slurm_node.sbatch $*"

NNODES=$SLURM_JOB_NUM_NODES
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${MASTER_ADDR:-${hosts[0]}}
# Below the ports that systems give out by themselves.
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export NNODES MASTER_ADDR MASTER_PORT

# Ranks that are still saving are not killed because another node has finished; a node that is lost ends the rest.
options=(--kill-on-bad-exit=0 --wait="${STOP_SECONDS:-600}" --cpu-bind=none)
# srun no longer takes this over from the job by itself.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
mounts=$PWD:$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
command=(launch/torchrun.sh "$@" resume=true)
case ${CONTAINER:-} in
    "") ;;
    *.sif) command=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$CONTAINER" "${command[@]}") ;;
    *) options+=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD") ;;
esac

warned=
# scancel signals the ranks, not this shell.
trap 'warned=yes; scancel --signal=USR1 "$SLURM_JOB_ID" || true' USR1
srun "${options[@]}" "${command[@]}" &
step=$!
status=0
wait "$step" || status=$?
while [[ $status -gt 128 ]] && kill -0 "$step" 2>/dev/null; do  # it was the trap that ended the wait
    status=0
    wait "$step" || status=$?
done
[[ $status -ne 0 ]] || exit 0

# The ranks stopped because they had to. Whether they asked for the requeue themselves (supervision.requeue) or could
# not, as in a container without scontrol, it is due; so it is after preemption whose grace period was not used up.
if [[ -n $warned ]] || [[ $(scontrol show job "$SLURM_JOB_ID") =~ PreemptTime=[0-9] ]]; then
    scontrol requeue "$SLURM_JOB_ID" || true  # refused where it is back in the queue already
fi
exit "$status"
