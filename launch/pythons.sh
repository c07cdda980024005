#!/usr/bin/env bash
# Under every Python 3.11 to 3.13 in reach: installs the built wheel in an empty environment outside
# of the checkout, and trains one step with it. Prints a table; fails if one of them does.
#   bash launch/pythons.sh [--keep=DIR]
# Takes minutes and 1.4 GB each; --keep leaves the environments in DIR. No part of the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/options.sh

keep=''
parse "keep" "dry_run" "" "$@"
place="${keep:-$(mktemp -d)}"
mkdir -p "$place"
place="$(cd "$place" && pwd)"
[ -n "$keep" ] || trap 'rm -rf "$place"' EXIT

# On the PATH, else pyenv's newest of that version.
interpreter() {
  local found
  for found in "$(command -v "python$1" || true)" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
    # A name may be there and say no: a shim of pyenv.
    if [ -x "$found" ] && "$found" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" \
      2> /dev/null; then
      echo "$found"
      return
    fi
  done
}

# What $1, an environment's Python, says of the step; the task and its model are the checkout's.
one_step() {
  (cd "$place" && env -u PYTHONPATH "$1" - "$OLDPWD/experiments/arithmetic" "$2") << 'PROGRAM'
import importlib.metadata, json, math, pathlib, sys

import remix_jax
from remix_jax import config as c

task, workdir = map(pathlib.Path, sys.argv[1:])
assert "site-packages" in remix_jax.__file__, f"not the wheel's: {remix_jax.__file__}"
problems = task / "problems"
config = c.Config(
    steps=1, batch_size=32, mini_batch_size=16, micro_batch_size=16, score_batch_size=32,
    reincarnation_step=0, checkpoint_every=0,
    model=c.Model(path=str(task / "base")),
    data=c.Data(
        train=str(problems / "train.jsonl"), validation=str(problems / "validation.jsonl"),
        suites=(str(problems / "chain3.jsonl"),), prompt_tokens=18, response_tokens=16,
    ),
    evaluation=c.Evaluation(batch_size=64),
)
remix_jax.train(config, str(workdir))
step = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
assert step["step"] == 1 and math.isfinite(step["loss"]), step
names = ("jax", "flax", "numpy", "orbax-checkpoint", "transformers")
versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
print(f"trained: loss {step['loss']:.4g}; {versions}")
PROGRAM
}

# Of a copy: setuptools leaves build/ where it builds, and takes what lies there into later wheels.
build() {
  mkdir "$place/source"
  cp -r remix_jax math_grader setup.py pyproject.toml MANIFEST.in requirements.txt README.md "$place/source"
  "$1" -m pip wheel --quiet --no-deps --wheel-dir "$place" "$place/source"
}

table=() code=0
for version in 3.11 3.12 3.13; do
  python="$(interpreter "$version")"
  if [ -z "$python" ]; then
    table+=("Python $version: not on this machine")
    continue
  fi
  own="$place/$version" log="$place/$version.log"
  show "$python" -m venv "$own"
  [ "$dry_run" -eq 0 ] || continue
  if {
    "$python" -m venv --clear "$own" &&
      { [ -d "$place/source" ] || build "$own/bin/python"; } &&
      "$own/bin/python" -m pip install --quiet "$place"/remix_jax-*.whl &&
      one_step "$own/bin/python" "$own/run"
  } > "$log" 2>&1; then
    table+=("Python $version: $(tail -n 1 "$log"); $(du -sh "$own" | cut -f 1)")
  else
    table+=("Python $version: FAILED: $(tail -n 1 "$log")")
    tail -n 20 "$log" >&2
    code=1
  fi
done
printf '%s\n' "${table[@]}"
exit "$code"
