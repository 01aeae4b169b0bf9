#!/usr/bin/env bash
# One sweep on one Ray cluster over the nodes of a Slurm job:
#
#     sbatch infra/slurm/cluster.sh models=pythia store.url=s3://bucket/pythia scoring.dtype=bfloat16
#
# Nodes are the job's alone: Ray's own command ends every Ray of the user on them. klray is on the path where you submit.
#SBATCH --job-name=klray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --output=klray-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@180

set -euo pipefail

# Known to this job's processes alone, in no file and on no command line.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600  # seconds: Python off a shared disk starts slowly on many nodes
export RAY_enable_metrics_collection="${RAY_enable_metrics_collection:-0}"  # 1: ports that want no token
export RAY_USAGE_STATS_ENABLED=0 PYTHONSAFEPATH=1

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000))
state=$(mktemp -d)  # on the head node, where this script runs, too
trap 'rm -rf "$state"' EXIT
trap 'kill -TERM "$(<"$state/pid")"' TERM  # klray alone: it finishes its commits while Ray still stands

# shellcheck disable=SC2016 # for the inner shell
srun --wait=30 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" -- bash -c '
    klray score ray=cluster "${@:2}" & echo $! >"$1/pid"
    wait $! && code=0 || code=$?
    echo $code >"$1/code"; exit $code' klray "$state" "$@" &
wait $! || true
while kill -0 $! 2>/dev/null; do wait $! || true; done  # after a signal

code=$(cat "$state/code" 2>/dev/null || echo 1)
if [[ $code == 143 ]]; then  # the time is up: the same job again goes on with what is missing
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
