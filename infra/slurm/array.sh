#!/usr/bin/env bash
# Independent jobs of one GPU each that share one list; the store tells each what is done:
#
#     sbatch infra/slurm/array.sh models=pythia store.url=s3://bucket/pythia scoring.dtype=bfloat16
#
# Each starts a Ray of its own that nobody else can join, so several may share a node.
#SBATCH --job-name=klray
#SBATCH --array=0-15
#SBATCH --cpus-per-task=6
#SBATCH --gpus=1
#SBATCH --mem=48G
#SBATCH --time=04:00:00
#SBATCH --output=klray-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@180

set -euo pipefail

export PYTHONSAFEPATH=1
job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
cache="${KLRAY_CACHE:-${TMPDIR:-/tmp}}/klray-$job"  # on a disk of the node
trap 'rm -rf "$cache"' EXIT

klray score ray.workers=1 ray.gpus_per_worker=1 scoring.threads=4 scoring.cache_dir="$cache" "$@" &
klray=$!
trap 'kill -TERM $klray' TERM  # klray alone: it finishes its commit while its Ray still stands
wait $klray && code=0 || code=$?
while kill -0 $klray 2>/dev/null; do wait $klray && code=0 || code=$?; done  # after a signal

if [[ $code == 143 ]]; then  # the time is up: the same job again goes on with what is missing
    scontrol requeue "$job"
fi
exit "$code"
