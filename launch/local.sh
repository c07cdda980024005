#!/usr/bin/env bash
# Sets up .venv and trains PPO and ReMix-PPO on the embedded arithmetic task; results in runs/local.
# Arguments go to experiments.compare: bash launch/local.sh --seeds=5 --workdir=runs/five
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
# Large pages for the C library's allocations: 10 to 20 % of the learning phase on a CPU.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec .venv/bin/python -m experiments.compare "$@"
