#!/usr/bin/env bash
# Sets up .venv with the test tools, then lint, format, types and the tests.
# Arguments go to pytest: bash launch/test.sh tests/rl -k ppo
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EXTRAS="[test]"
source launch/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A worker a core, four at most (each takes some 4 GB); a file's tests stay together, and with them
# what it compiles; files in their order, or those of few and long tests would come last.
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
