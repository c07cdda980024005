#!/usr/bin/env bash
# Sets up .venv and trains PPO and ReMix-PPO on the embedded arithmetic task; results in runs/local.
# Arguments go to experiments.compare and win: bash launch/local.sh --seeds=5 --workdir=runs/five
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS="[experiments]"
source launch/setup.sh
# The C library keeps memory, on large pages, instead of faulting it in anew at each step: 10 to 20 %
# of the learning phase on a CPU (docs/benchmark.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-$(cat launch/malloc.txt)}"
exec .venv/bin/python -m experiments.compare --methods=ppo,remix-ppo --learning_rates=1e-4 \
  --bases=1 --seeds=3 --workers=1 --workdir=runs/local "$@"
