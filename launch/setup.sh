#!/usr/bin/env bash
# Sourced: makes .venv from requirements.txt, with the extras named in $EXTRAS (".[test]"), when it
# is missing or the requirements have changed since.
PYTHON="${PYTHON:-python3}"
"$PYTHON" - <<'CHECK' || exit 2
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"error: Python {sys.version.split()[0]}: remix_jax needs 3.11 to 3.13 (set PYTHON=)")
CHECK
target=".${EXTRAS:-}"
stamp=".venv/installed${EXTRAS:-}"
wanted="$(cat requirements.txt setup.py | cksum)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "setting up .venv (a few minutes, once)"
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$target"
  echo "$wanted" > "$stamp"
fi
