#!/usr/bin/env bash
# SmolLM2-135M from its package to a comparison of methods, in parts of some minutes: when the time is
# up it ends with 75, and the same command goes on from there.
#   bash launch/smollm2.sh [--out=runs/smollm2] [--seconds=540] [--model=DIR] [--gguf=FILE]
#     [--workers=4] [--gsm8k=FILE] [--dry_run] [-- FLAGS OF experiments.compare]
# Cold start on sums of 2 to 4 terms with their steps; PPO, GRPO, ReMix and ReMix+ on sums of 2 to 5,
# three rates each, three seeds; then a survey of reasoning-gym's tasks. Needs .venv (launch/gpu.sh or
# launch/setup.sh make it) with the extras experiments, tasks and gguf.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/options.sh

out=runs/smollm2 seconds=540 model='' gguf='' workers=4 gsm8k=''
parse "out seconds model gguf workers gsm8k" "dry_run" "" "$@"
set -- "${rest[@]}"
[[ "$seconds" =~ ^[1-9][0-9]*$ && "$workers" =~ ^[1-9][0-9]*$ ]] || usage "--seconds and --workers are counts"
python=.venv/bin/python

# A command within the time that is left; 124 is timeout's own code for a command that it ended.
within() {
  local left=$((seconds - SECONDS)) code=0
  if [ "$left" -le 0 ]; then code=124; else
    run timeout --signal=TERM --kill-after=30 "$left" "$@" || code=$?
  fi
  if [ "$code" -eq 124 ] || [ "$code" -eq 75 ]; then
    echo "smollm2.sh: the time is up; the same command goes on" >&2
    exit 75
  fi
  return "$code"
}

if [ -z "$model" ]; then
  model="$out/model"
  if [ ! -f "$model/generation_config.json" ]; then # its last file
    run rm -rf "$model"
    within "$python" -m experiments.smollm2.prepare --out="$model" --gguf="$gguf"
  fi
fi
[ -f "$out/cold.jsonl" ] || within "$python" -m experiments.smollm2.examples --out="$out/cold.jsonl" \
  --sets='reasoning_gym:chain_sum?size=480&seed=500000&min_terms=2&max_terms=4&min_digits=2&max_digits=2'
[ -d "$out/cold/export" ] || within "$python" -m experiments.sft --model="$model" \
  --data="$out/cold.jsonl" --out="$out/cold" \
  --suites='reasoning_gym:chain_sum?size=128&seed=408000&min_terms=2&max_terms=2&min_digits=2&max_digits=2' \
  --config.steps=15 --config.data.prompt_tokens=96 --config.data.response_tokens=80
# Several runs share a card: each process takes its part of the memory, and the first one too.
part="$(awk "BEGIN { print 0.92 / ($workers + 1) }")"
XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-$part}" \
  within "$python" -m experiments.compare --config=experiments/configs/smollm2_chain_sum.py \
  --models="$out/cold/export" --workdir="$out/chain_sum" --workers="$workers" --seeds=3 --tuning=1 \
  --methods=ppo,grpo,remix-ppo,remix-grpo,remix-plus-ppo --learning_rates=3e-6,1e-5,3e-5 "$@"
within "$python" -m experiments.smollm2.survey --models="$model,$out/cold/export" --gsm8k="$gsm8k" \
  --out="$out/survey"
