#!/usr/bin/env bash
# Trains on the GPUs of one machine, or of several nodes under Slurm; see launch/README.md.
#   bash launch/gpu.sh [--dry_run] -- --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]
#   bash launch/gpu.sh --slurm --nodes=2 --gpus=8 [--partition=P] [--time=24:00:00] [--dry_run] -- ...
# What follows -- goes to experiments.train. Under Slurm the checkout and the workdir must lie where
# all nodes see them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/options.sh

slurm=0 nodes=1 gpus=8 partition='' time=''
parse "nodes gpus partition time" "slurm dry_run" "" "$@"
set -- "${rest[@]}"
[ $# -gt 0 ] || usage "nothing to train: give the flags of experiments.train behind --"
[[ "$nodes" =~ ^[1-9][0-9]*$ && "$gpus" =~ ^[1-9][0-9]*$ ]] || usage "--nodes and --gpus are counts"

export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" # JAX's own: 0.75

run bash -c 'source launch/setup.sh'
run .venv/bin/python -m pip install --quiet 'jax[cuda]'
train=(bash launch/again.sh .venv/bin/python -m experiments.train "$@")
if [ "$slurm" -eq 0 ]; then
  run "${train[@]}"
  exit
fi

# One process a node, which has all GPUs of it; JAX finds the others by Slurm's own variables. Two
# minutes before the time is up Slurm sends SIGTERM to the processes: they save and end with 75, and
# the job is queued again. None is killed because another has ended: the first one may be writing.
options=(--job-name=remix --nodes="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus" --exclusive)
options+=(--requeue --open-mode=append --output=slurm-%j.log --signal=TERM@120)
[ -z "$partition" ] || options+=(--partition="$partition")
[ -z "$time" ] || options+=(--time="$time")
step="$(printf ' %q' srun --kill-on-bad-exit=0 .venv/bin/python -m experiments.train "$@")"
job="trap : TERM
code=0;$step || code=\$?
if [ \$code -eq 75 ]; then scontrol requeue \$SLURM_JOB_ID; fi
exit \$code"
run sbatch "${options[@]}" --wrap "$job"
